// What emulator.h's primitives are made of, for the thread that runs.
#include "machine.h"

namespace seqkernels::emulator {

namespace {

void shuffle(CudaThread* const* lanes) {
  uint64_t values[cuda::kWarpSize];
  for (int i = 0; i < cuda::kWarpSize; ++i) values[i] = lanes[i]->value;
  for (int i = 0; i < cuda::kWarpSize; ++i) lanes[i]->value = values[i ^ lanes[i]->mask];
}

void conjoin(CudaThread* const* lanes) {
  uint64_t all = 1;
  for (int i = 0; i < cuda::kWarpSize; ++i) all &= lanes[i]->value;
  for (int i = 0; i < cuda::kWarpSize; ++i) lanes[i]->value = all;
}

}  // namespace

void barrier(Group group, Where where) {
  constexpr Primitive kPrimitives[] = {Primitive::kWarpBarrier, Primitive::kTeamBarrier, Primitive::kBlockBarrier,
                                       Primitive::kClusterBarrier};
  machine->meet(group, kPrimitives[static_cast<int>(group)], where);
}

uint64_t exchange(uint64_t value, int mask, Where where) {
  CudaThread& thread = machine->me();
  if (mask < 0 || mask >= cuda::kWarpSize) machine->fail("shuffle with mask " + std::to_string(mask));
  thread.value = value, thread.mask = mask;
  machine->meet(Group::kWarp, Primitive::kShuffle, where, shuffle);
  return thread.value;
}

bool all(bool value, Where where) {
  CudaThread& thread = machine->me();
  thread.value = value;
  machine->meet(Group::kWarp, Primitive::kShuffle, where, conjoin, true);
  return thread.value != 0;
}

void multiply(Operands operands, float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Where where) {
  CudaThread& thread = machine->me();
  thread.operands = operands, thread.d = d, thread.a = a, thread.b[0] = b0, thread.b[1] = b1;
  machine->meet(Group::kWarp, Primitive::kMma, where, static_cast<void (*)(CudaThread* const*)>(multiply));
}

uint32_t* peer(uint32_t* own, int rank, Where where) {
  CudaThread& thread = machine->me();
  thread.primitive = Primitive::kAccess, thread.where = where;
  if (machine->arena.block_of(own) != thread.block) machine->fail("a peer's copy of what is not in own shared memory");
  if (rank < 0 || rank >= machine->launch.cluster) machine->fail("a peer of rank " + std::to_string(rank));
  const char* theirs = machine->arena.at(thread.block - thread.cluster_rank + rank);
  return reinterpret_cast<uint32_t*>(const_cast<char*>(theirs) + (reinterpret_cast<char*>(own) - thread.shared));
}

void pause(Where where) {
  CudaThread& thread = machine->me();
  thread.primitive = Primitive::kPause, thread.where = where;
  machine->give_way();
}

void check_team(int number, int threads, Where where) {
  CudaThread& thread = machine->me();
  thread.primitive = Primitive::kTeamBarrier, thread.where = where;
  if (threads != machine->meeting(Group::kTeam).size || number != thread.index / kTeamThreads)
    machine->fail(name(thread) + ": the barrier of another team");
}

void check_address(const void* address, size_t bytes, cuda::Scope scope, Where where) {
  CudaThread& thread = machine->me();
  thread.primitive = Primitive::kAccess, thread.where = where;
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    machine->fail(name(thread) + ": misaligned " + place(thread.primitive, where));
  if (scope == cuda::Scope::kDevice && machine->arena.contains(address))
    machine->fail(name(thread) + ": shared memory in " + place(thread.primitive, where) +
                  ", whose scope is the device");
  if (relaxed_access) relaxed_access(address, bytes, __builtin_return_address(0));
}

void interleave() { machine->interleave(); }

uint32_t draw(uint32_t below) { return machine->draw(below); }

// Under ThreadSanitizer stores are seen at once, so that its reports name the line that stores.
bool hold(uint32_t* to, uint32_t word) {
  if (is_sanitized()) {
    machine->progressed();
    return false;
  }
  machine->held().put({to, word, current->index, current->index / kTeamThreads, machine->meeting(Group::kTeam).round,
                       machine->meeting(Group::kBlock).round, machine->is_late()});
  return true;
}

const uint32_t* held(const uint32_t* from) {
  const Store* store = machine->held().find(from);
  return store ? &store->word : nullptr;
}

// With them goes what other threads of the block or of the team stored before a barrier: it is before this fence, too.
void store_held() {
  StoreBuffer& held = machine->held();
  const int round = machine->meeting(Group::kBlock).round, team_round = machine->meeting(Group::kTeam).round;
  for (size_t i = held.size(); i-- > 0;) {
    const bool before_team = held[i].team == current->index / kTeamThreads && held[i].team_round < team_round;
    if (held[i].thread == current->index || held[i].round < round || before_team) machine->store(held, i);
  }
}

}  // namespace seqkernels::emulator
