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
#include <stdexcept>

namespace seqkernels {
namespace {

struct Isa {
  KernelTable table;
  bool available;
};

// An ISA's kernels with those that another one has for bfloat16.
KernelTable extended(KernelTable table, const Bf16Kernels& bf16) {
  table.isa = bf16.isa;
  for (int cell = 0; cell < int(CellKind::kCount); ++cell) table.cells[cell][int(DType::kBFloat16)] = bf16.cells[cell];
  return table;
}

// Run everywhere, and are for tests alone.
const std::vector<KernelTable>& emulated_isas() {
  static const std::vector<KernelTable> all = {extended(baseline_kernels(), emulated_avx512bf16_kernels()),
                                               extended(baseline_kernels(), emulated_amx_kernels())};
  return all;
}

#if defined(__x86_64__)
// Whether there are tile registers with bfloat16 products, and the system lets this process use them: Linux wants to be asked.
bool has_amx() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned a, b, c, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kAmxBf16) || !(d & kAmxTile)) return false;
#if defined(__linux__)
  constexpr int kRequestState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Best last.
const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = [] {
    std::vector<Isa> list{{baseline_kernels(), true}};
#if defined(__x86_64__)
    __builtin_cpu_init();
    unsigned a, b, c = 0, d;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);  // a name not every compiler supports below
    const bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    list.push_back({avx2_kernels(), avx2});
    list.push_back({avx512_kernels(), avx512});
    list.push_back({extended(avx512_kernels(), avx512bf16_kernels()), avx512bf16});
    list.push_back({extended(avx512_kernels(), amx_kernels()), avx512bf16 && has_amx()});
#endif
    return list;
  }();
  return all;
}

std::string names(bool only_available) {
  std::string text;
  for (const Isa& isa : isas())
    if (isa.available || !only_available) text += (text.empty() ? "" : ", ") + std::string(isa.table.isa);
  return text;
}

const KernelTable* find(const std::string& name, const char* source) {
  for (const KernelTable& table : emulated_isas())
    if (name == table.isa) return &table;
  for (const Isa& isa : isas())
    if (name == isa.table.isa) {
      if (isa.available) return &isa.table;
      throw std::invalid_argument(std::string(source) + ": this CPU cannot run " + name + "; it can run " +
                                  names(true));
    }
  throw std::invalid_argument(std::string(source) + ": expected one of " + names(false) + ", got '" + name + "'");
}

const KernelTable* choose() {
  const char* const forced = std::getenv("SEQKERNELS_CPU_ISA");
  if (forced && *forced) return find(forced, "SEQKERNELS_CPU_ISA");
  const KernelTable* best = nullptr;
  for (const Isa& isa : isas())
    if (isa.available) best = &isa.table;
  return best;
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{choose()};
  return table;
}

}  // namespace

const KernelTable& cpu_kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> compiled_cpu_isas() {
  std::vector<std::string> list;
  for (const Isa& isa : isas()) list.emplace_back(isa.table.isa);
  return list;
}

std::vector<std::string> available_cpu_isas() {
  std::vector<std::string> list;
  for (const Isa& isa : isas())
    if (isa.available) list.emplace_back(isa.table.isa);
  return list;
}

std::vector<std::string> emulated_cpu_isas() {
  std::vector<std::string> list;
  for (const KernelTable& table : emulated_isas()) list.emplace_back(table.isa);
  return list;
}

void set_cpu_isa(const std::string& isa) { current() = find(isa, "set_cpu_isa"); }

}  // namespace seqkernels
