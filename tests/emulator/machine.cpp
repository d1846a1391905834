#include "machine.h"

#include <stdexcept>

#include "faults.h"

namespace seqkernels::emulator {

Thread* current = nullptr;
Machine* machine = nullptr;

namespace {

// A thread that gets this many turns while nobody stores, arrives or ends is idle; all idle, nothing will ever happen.
constexpr int kPatience = 1000;

// Fibers are kept between launches, but for those of one that failed.
std::vector<std::unique_ptr<CudaThread>> pool;

void check(const Launch& launch) {
  if (machine) throw std::runtime_error("a launch within a launch");
  if (launch.blocks < 1 || launch.threads < 1 || launch.threads > 1024 || launch.threads % cuda::kWarpSize != 0)
    throw std::runtime_error("a launch takes blocks of whole warps, 32 to 1024 threads");
  if (launch.cluster < 1 || launch.blocks % launch.cluster != 0)
    throw std::runtime_error("a launch takes whole clusters");
}

}  // namespace

// ---------------------------------------------------------------- launches

void run(const Launch& launch, void (*body)(void*), void* argument) {
  check(launch);
  Machine local(launch, body, argument);
  local.run();
}

Machine::Machine(const Launch& launch, void (*body)(void*), void* argument)
    : launch(launch),
      arena(launch.blocks, launch.shared_bytes),
      body_(body),
      argument_(argument),
      alive_(launch.blocks * launch.threads),
      random_(launch.seed) {
  const int warps = launch.threads / cuda::kWarpSize;
  for (int i = 0; i < launch.blocks * warps; ++i) warps_.push_back({i * cuda::kWarpSize, cuda::kWarpSize});
  const int teams = (launch.threads + kTeamThreads - 1) / kTeamThreads, team_threads = launch.threads / teams;
  for (int i = 0; i < launch.blocks * teams; ++i) teams_.push_back({i * team_threads, team_threads});
  for (int i = 0; i < launch.blocks; ++i) blocks_.push_back({i * launch.threads, launch.threads});
  const int cluster_threads = launch.cluster * launch.threads;
  for (int i = 0; i < launch.blocks / launch.cluster; ++i) clusters_.push_back({i * cluster_threads, cluster_threads});
  unstarted_.assign(launch.blocks, launch.threads);
  unfinished_ = unstarted_;

  held_.resize(launch.blocks);

  // Seeds differ in how finely threads interleave, how long stores are held back, and which blocks and warps lag behind.
  rarely_ = 2u << draw(6);
  lazily_ = 1u << draw(9);
  late_ = 64u << draw(5);
  const uint32_t slow_blocks = draw(4), slow_warps = draw(4);  // quarters
  ready_.reserve(alive_);
  bool slow_block = false, slow_warp = false;
  for (int number = 0; number < alive_; ++number) {
    if (number == static_cast<int>(pool.size())) pool.push_back(std::make_unique<CudaThread>(&Machine::enter, number));
    CudaThread& thread = *pool[number];
    const int block = number / launch.threads, index = number % launch.threads;
    if (index == 0) slow_block = draw(4) < slow_blocks;
    if (index % cuda::kWarpSize == 0) slow_warp = draw(4) < slow_warps;
    static_cast<Thread&>(thread) = {index,          block,         block % launch.cluster,
                                    launch.threads, launch.blocks, arena.at(block)};
    thread.stage = Stage::kNew;
    thread.primitive = Primitive::kStart;
    thread.slow = slow_block || slow_warp;
    thread.epoch = 0;
    if (is_sanitized()) thread.fiber.set_name(name(thread).c_str());
    threads_.push_back(&thread);
    ready_.push_back(&thread);
  }
}

void Machine::run() {
  machine = this;
  {
    Faults faults;
    release(&begin_);
    CudaThread& first = pick();
    current = &first;
    Fiber::switch_over(main_, first.fiber);
    current = nullptr;
    acquire(&end_);
  }
  machine = nullptr;
  if (fault_) error_ = std::make_exception_ptr(std::runtime_error(describe_fault()));
  if (!error_) return;
  pool.clear();  // their stacks still hold calls of this launch
  std::rethrow_exception(error_);
}

void Machine::enter() {
  for (;;) {  // a launch each
    acquire(&machine->begin_);
    machine->start();
    try {
      machine->body_(machine->argument_);
    } catch (...) {
      machine->error_ = std::current_exception();
    }
    machine->end();
  }
}

void Machine::start() {
  CudaThread& thread = me();
  thread.stage = Stage::kReady;
  if (unstarted_[thread.block]-- == launch.threads) arena.open(thread.block);
}

void Machine::end() {
  if (error_) abandon();
  CudaThread& thread = me();
  if (--unfinished_[thread.block] == 0) {
    while (!held().empty()) give_way();
    if (!arena.close(thread.block))
      fail("bytes next to the shared memory of block " + std::to_string(thread.block) + " were written");
  }
  progressed();
  thread.stage = Stage::kEnded;
  release(&end_);
  if (--alive_ > 0)
    resume_another();
  else
    Fiber::switch_over(thread.fiber, main_);
}

void Machine::abandon() {
  release(&end_);
  Fiber::switch_over(me().fiber, main_);
  std::terminate();
}

void Machine::fail(const std::string& what) {
  error_ = std::make_exception_ptr(std::runtime_error(what + standing()));
  abandon();
}

void Machine::fault(const char* address) {
  fault_ = address;
  faulty_ = &me();
  abandon();
}

// ---------------------------------------------------------------- scheduling

uint32_t Machine::draw(uint32_t below) {  // splitmix64
  uint64_t z = random_ += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return static_cast<uint32_t>(((z >> 32) * below) >> 32);
}

CudaThread& Machine::pick() {
  const auto count = static_cast<uint32_t>(ready_.size());
  uint32_t index = draw(count);
  if (ready_[index]->slow && draw(16) > 0) index = draw(count);  // once: the last few slow ones must not starve
  CudaThread& thread = *ready_[index];
  ready_[index] = ready_.back();
  ready_.pop_back();
  return thread;
}

void Machine::resume_another() {
  if (ready_.empty()) fail("deadlock: threads wait for others that do not come");
  CudaThread &from = me(), &to = pick();
  if (&from == &to) return;
  current = &to;
  Fiber::switch_over(from.fiber, to.fiber);
}

void Machine::give_way() {
  CudaThread& thread = me();
  if (StoreBuffer& held = this->held(); !held.empty() && draw(lazily_) == 0)
    for (size_t i = held.size(); i-- > 0;)
      if (draw(held[i].is_late ? 64 : 2) == 0) store(held, i);
  if (thread.epoch != epoch_) thread.epoch = epoch_, thread.idle = 0;
  if (++thread.idle == kPatience && ++idle_threads_ > ready_.size() + voting_ && !store_all())
    fail("deadlock: all that still run have long been waiting for a word that nobody stores");
  ready_.push_back(&thread);
  resume_another();
}

// What is still held back may be what all wait for.
bool Machine::store_all() {
  bool any = false;
  for (StoreBuffer& held : held_)
    while (!held.empty()) store(held, 0), any = true;
  if (any) progressed();
  return any;
}

void Machine::interleave() {
  if (draw(rarely_) == 0) give_way();
}

void Machine::store(StoreBuffer& held, size_t index) {
  const Store store = held.take(index);
  if (*store.to != store.word) progressed();
  std::atomic_ref(*store.to).store(store.word, std::memory_order_relaxed);
}

Meeting& Machine::meeting(Group group) {
  const CudaThread& thread = me();
  switch (group) {
    case Group::kWarp:
      return warps_[(thread.block * launch.threads + thread.index) / cuda::kWarpSize];
    case Group::kTeam:
      return teams_[(thread.block * launch.threads + thread.index) / teams_.front().size];
    case Group::kBlock:
      return blocks_[thread.block];
    case Group::kCluster:
      return clusters_[thread.block / launch.cluster];
  }
  std::terminate();
}

void Machine::meet(Group group, Primitive primitive, Where where, void (*complete)(CudaThread* const*), bool is_vote) {
  CudaThread& thread = me();
  thread.primitive = primitive, thread.where = where;
  Meeting& meeting = this->meeting(group);
  if (meeting.arrived == 0) meeting.primitive = primitive, meeting.where = where;
  if (meeting.primitive != primitive || !same(meeting.where, where))
    fail("divergence: " + name(thread) + " is at " + place(primitive, where) + " where others wait at " +
         place(meeting.primitive, meeting.where));

  const bool orders = !complete;
  char* clock = &meeting.clocks[meeting.round % 2];
  if (group == Group::kCluster) store_held();
  if (orders) release(clock);
  if (is_vote)
    ++voting_;
  else
    progressed();
  thread.stage = Stage::kWaiting;
  if (++meeting.arrived == meeting.size) {
    CudaThread* const* members = &threads_[meeting.first];
    if (complete) complete(members);
    if (is_vote) {
      voting_ -= static_cast<size_t>(meeting.size);
      if (members[0]->value != 0) progressed();
    }
    meeting.arrived = 0;
    ++meeting.round;
    for (int i = 0; i < meeting.size; ++i) members[i]->stage = Stage::kReady, ready_.push_back(members[i]);
  }
  resume_another();
  if (orders) acquire(clock);
}

}  // namespace seqkernels::emulator
