#include <cstring>

#include "machine.h"

namespace seqkernels::emulator {

namespace {

constexpr size_t kReportedLines = 24;

const char* name_of(Primitive primitive) {
  switch (primitive) {
    case Primitive::kStart:
      return "start";
    case Primitive::kWarpBarrier:
      return "warp_barrier";
    case Primitive::kTeamBarrier:
      return "team_barrier";
    case Primitive::kBlockBarrier:
      return "block_barrier";
    case Primitive::kClusterBarrier:
      return "cluster_barrier";
    case Primitive::kShuffle:
      return "shuffle";
    case Primitive::kMma:
      return "mma";
    case Primitive::kPause:
      return "pause";
    case Primitive::kAccess:
      return "relaxed access";
  }
  return "?";
}

std::string doing(const CudaThread& thread) {
  switch (thread.stage) {
    case Stage::kNew:
      return "not started";
    case Stage::kReady:
      return "running, last at " + place(thread.primitive, thread.where);
    case Stage::kWaiting:
      return "at " + place(thread.primitive, thread.where);
    case Stage::kEnded:
      return "ended, last at " + place(thread.primitive, thread.where);
  }
  return "?";
}

}  // namespace

bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() && !std::strcmp(a.file_name(), b.file_name());
}

std::string place(Primitive primitive, const Where& where) {
  if (primitive == Primitive::kStart) return "start";
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(name_of(primitive)) + " in " + (slash ? slash + 1 : where.file_name()) + ":" +
         std::to_string(where.line());
}

std::string name(const Thread& thread) {
  return "block " + std::to_string(thread.block) + " thread " + std::to_string(thread.index);
}

// One line for consecutive threads of a block that do the same.
std::string Machine::standing() const {
  std::string text;
  size_t lines = 0;
  for (size_t first = 0, end = 0; first < threads_.size(); first = end) {
    const CudaThread& thread = *threads_[first];
    const std::string what = doing(thread);
    while (end < threads_.size() && threads_[end]->block == thread.block && doing(*threads_[end]) == what) ++end;
    if (++lines > kReportedLines) return text + "\n  ...";
    text += "\n  block " + std::to_string(thread.block) + " thread" + (end - first > 1 ? "s " : " ");
    text += std::to_string(thread.index);
    if (end - first > 1) text += "-" + std::to_string(threads_[end - 1]->index);
    text += ": " + what;
  }
  return text;
}

std::string Machine::describe_fault() const {
  const CudaThread* owner = nullptr;
  for (const CudaThread* thread : threads_)
    if (thread->fiber.guards(fault_)) owner = thread;
  const std::string what = owner ? "stack overflow of " + name(*owner) : arena.describe(fault_);
  char address[32];
  std::snprintf(address, sizeof address, "%p", static_cast<const void*>(fault_));
  return name(*faulty_) + ": bad address " + address + ", " + what + "; last at " +
         place(faulty_->primitive, faulty_->where);
}

}  // namespace seqkernels::emulator
