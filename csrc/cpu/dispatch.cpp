#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <atomic>
#include <cstdlib>
#include <list>
#include <stdexcept>

namespace seqkernels {
namespace {

struct Isa {
  KernelTable table;
  bool (*available)();
};

// An ISA's kernels with those that another one has for bfloat16.
KernelTable extended(KernelTable table, const Bf16Kernels& bf16) {
  table.isa = bf16.isa;
  for (int cell = 0; cell < kCellKinds; ++cell) table.cells[cell][int(DType::kBFloat16)] = bf16.cells[cell];
  return table;
}

bool always() { return true; }

#if defined(__x86_64__)
[[maybe_unused]] bool has_avx2() {
  __builtin_cpu_init();
  unsigned a, b, c = 0, d;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);  // a name not every compiler supports below
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

[[maybe_unused]] bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Linux wants to be asked for tile registers, for good: signal handlers' stacks must hold 8 KB more from then on. So this is
// asked only where no other ISA is named.
[[maybe_unused]] bool has_amx() {
  static const bool granted = [] {
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    unsigned a, b, c, d = 0;
    if (!has_avx512bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kAmxBf16) || !(d & kAmxTile))
      return false;
#if defined(__linux__)
    constexpr int kRequestState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    return syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;
#else
    return false;
#endif
  }();
  return granted;
}
#endif

// Those of this build (SEQKERNELS_HAS_*, from setup.py), best last. Never destroyed: threads may outlive main.
const std::vector<Isa>& isas() {
  static const auto* const all = new std::vector<Isa>{
      {baseline_kernels(), always},
#if defined(SEQKERNELS_HAS_AVX2)
      {avx2_kernels(), has_avx2},
#endif
#if defined(SEQKERNELS_HAS_AVX512)
      {avx512_kernels(), has_avx512},
#endif
#if defined(SEQKERNELS_HAS_AVX512BF16)
      {extended(avx512_kernels(), avx512bf16_kernels()), has_avx512bf16},
#endif
#if defined(SEQKERNELS_HAS_AMX)
      {extended(avx512_kernels(), amx_kernels()), has_amx},
#endif
  };
  return *all;
}

// Those that were added at run time; a list, for tables are pointed at.
std::list<KernelTable>& added() {
  static auto* const all = new std::list<KernelTable>;
  return *all;
}

std::vector<std::string> names(const std::vector<Isa>& list, bool only_available = false) {
  std::vector<std::string> result;
  for (const Isa& isa : list)
    if (!only_available || isa.available()) result.emplace_back(isa.table.isa);
  return result;
}

std::string joined(const std::vector<std::string>& list) {
  std::string text;
  for (const std::string& item : list) text += (text.empty() ? "" : ", ") + item;
  return text;
}

const KernelTable* find(const std::string& name, const char* source) {
  for (const KernelTable& table : added())
    if (name == table.isa) return &table;
  for (const Isa& isa : isas())
    if (name == isa.table.isa) {
      if (isa.available()) return &isa.table;
      throw std::invalid_argument(std::string(source) + ": this CPU cannot run " + name + "; it can run " +
                                  joined(available_cpu_isas()));
    }
  throw std::invalid_argument(std::string(source) + ": expected one of " + joined(compiled_cpu_isas()) + ", got '" +
                              name + "'");
}

const KernelTable* choose() {
  const char* const forced = std::getenv("SEQKERNELS_CPU_ISA");
  if (forced && *forced) return find(forced, "SEQKERNELS_CPU_ISA");
  const KernelTable* best = nullptr;
  for (const Isa& isa : isas())
    if (isa.available()) best = &isa.table;
  return best;
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{choose()};
  return table;
}

}  // namespace

const KernelTable& cpu_kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> compiled_cpu_isas() { return names(isas()); }
std::vector<std::string> available_cpu_isas() { return names(isas(), true); }

void add_cpu_isa(const Bf16Kernels& kernels) {
  for (const KernelTable& table : added())
    if (table.isa == std::string(kernels.isa)) return;
  added().push_back(extended(baseline_kernels(), kernels));
}

void set_cpu_isa(const std::string& isa) { current() = find(isa, "set_cpu_isa"); }

}  // namespace seqkernels
