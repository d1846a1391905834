// Counts what the kernels' accesses would cost a GPU's memory: a build of its own, see __init__.py, for which the compiler
// reports every plain access as it would to ThreadSanitizer, whose place this file takes. check_address reports the relaxed.
//
// A warp's access is what its lanes do at one place of the code for the n-th time since the block's last barrier. Costs:
//   shared memory  wavefronts: lanes by 32, 16 or 8, of 4, 8 or 16 bytes, as often as the most words of one of 32 banks
//   global memory  sectors of 32 bytes
// and beside them the fewest that the same lanes and bytes could do with. At its end, the program prints a line for each
// place: address of the code, kind, bytes of a lane, warps' accesses, cost, least cost.
#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "machine.h"

namespace seqkernels::emulator {

namespace {

using Addresses = std::vector<std::pair<int, uintptr_t>>;  // of some lanes

struct Site {
  const void* code;
  char kind;  // of the access: s, g or p, shared memory, that of a peer, or global; capital where it is a store
  size_t bytes;
  bool operator<(const Site& other) const {
    return std::tie(code, kind, bytes) < std::tie(other.code, other.kind, other.bytes);
  }
};

struct Cost {
  int64_t accesses = 0, cost = 0, least = 0;
};

struct Warp {
  int round = -1;
  std::map<Site, int> counts[cuda::kWarpSize];
  std::map<std::pair<Site, int>, Addresses> accesses;
};

constexpr size_t kStack = 128 << 10;  // bytes above this that are the fiber's own

std::map<Site, Cost> costs;
std::map<int, Warp> warps;
const Machine* of_machine = nullptr;

size_t count_parts(const Addresses& lanes, size_t bytes, size_t part) {
  std::set<uintptr_t> parts;
  for (const auto& [lane, address] : lanes)
    for (uintptr_t at = address / part; at <= (address + bytes - 1) / part; ++at) parts.insert(at);
  return parts.size();
}

void add_shared(const Addresses& lanes, size_t bytes, Cost& cost) {
  const int together = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
  for (int first = 0; first < cuda::kWarpSize; first += together) {
    std::set<uintptr_t> banks[32];
    size_t most = 0;
    for (const auto& [lane, address] : lanes)
      if (lane / together * together == first)
        for (uintptr_t word = address / 4; word <= (address + bytes - 1) / 4; ++word) {
          banks[word % 32].insert(word);
          most = std::max(most, banks[word % 32].size());
        }
    cost.cost += static_cast<int64_t>(most);
    cost.least += most > 0;
  }
}

void add(const Site& site, const Addresses& lanes) {
  Cost& cost = costs[site];
  ++cost.accesses;
  if (site.kind == 's' || site.kind == 'S') return add_shared(lanes, site.bytes, cost);
  cost.cost += static_cast<int64_t>(count_parts(lanes, site.bytes, 32));
  cost.least += static_cast<int64_t>((count_parts(lanes, site.bytes, 1) + 31) / 32);
}

void finish(Warp& warp) {
  for (const auto& [key, lanes] : warp.accesses) add(key.first, lanes);
  for (auto& counts : warp.counts) counts.clear();
  warp.accesses.clear();
}

void finish_all() {
  for (auto& [number, warp] : warps) finish(warp);
  warps.clear();
}

void record(const void* code, const void* address, size_t bytes, bool is_store) {
  if (!machine || !current) return;
  if (of_machine != machine) finish_all(), of_machine = machine;
  const auto begin = reinterpret_cast<uintptr_t>(address),
             here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  if (begin - here < kStack || address == &current || begin - reinterpret_cast<uintptr_t>(current) < sizeof(CudaThread))
    return;
  const CudaThread& thread = machine->me();
  const int owner = machine->arena.block_of(address);
  const char kind = owner < 0 ? 'g' : owner == thread.block ? 's' : 'p';
  Warp& warp = warps[(thread.block * machine->launch.threads + thread.index) / cuda::kWarpSize];
  const int round = machine->meeting(Group::kBlock).round, lane = thread.index % cuda::kWarpSize;
  if (round != warp.round) finish(warp), warp.round = round;
  const Site site{code, is_store ? static_cast<char>(kind - 32) : kind, bytes};
  warp.accesses[{site, warp.counts[lane][site]++}].push_back({lane, begin});
}

// Of any length: in the widest pieces that one instruction takes.
void record_range(const void* code, const char* address, size_t bytes, bool is_store) {
  for (size_t done = 0, piece; done < bytes; done += piece) {
    piece = 16;
    while (piece > bytes - done || reinterpret_cast<uintptr_t>(address + done) % piece != 0) piece /= 2;
    record(code, address + done, piece, is_store);
  }
}

struct Report {
  ~Report() {
    finish_all();
    for (const auto& [site, cost] : costs)
      std::printf("traffic %p %c %zu %lld %lld %lld\n", site.code, site.kind, site.bytes,
                  static_cast<long long>(cost.accesses), static_cast<long long>(cost.cost),
                  static_cast<long long>(cost.least));
  }
} report;

}  // namespace

void relaxed_access(const void* address, size_t bytes, const void* code) { record(code, address, bytes, bytes == 4); }

}  // namespace seqkernels::emulator

// What the compiler calls.
using seqkernels::emulator::record;
using seqkernels::emulator::record_range;
#define CODE __builtin_return_address(0)
#define ACCESSES(n)                                                                       \
  void __tsan_read##n(void* address) { record(CODE, address, n, false); }                 \
  void __tsan_write##n(void* address) { record(CODE, address, n, true); }                 \
  void __tsan_unaligned_read##n(char* address) { record_range(CODE, address, n, false); } \
  void __tsan_unaligned_write##n(char* address) { record_range(CODE, address, n, true); } \
  void __tsan_volatile_read##n(void*) {} /* a prefetch, whose load is counted */          \
  void __tsan_volatile_write##n(void* address) { record(CODE, address, n, true); }
extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(char* address, size_t bytes) { record_range(CODE, address, bytes, false); }
void __tsan_write_range(char* address, size_t bytes) { record_range(CODE, address, bytes, true); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Relaxed accesses are reported as a whole, before their words.
uint32_t __tsan_atomic32_load(const uint32_t* from, int) { return __atomic_load_n(from, __ATOMIC_RELAXED); }
void __tsan_atomic32_store(uint32_t* to, uint32_t word, int) { __atomic_store_n(to, word, __ATOMIC_RELAXED); }
}
