#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace seqkernels {
namespace {

struct Isa {
  const KernelTable& table;
  bool available;
};

// An ISA's kernels with those that another one has for bfloat16.
KernelTable extended(KernelTable table, const Bf16Kernels& bf16) {
  table.isa = bf16.isa;
  for (int cell = 0; cell < int(CellKind::kCount); ++cell) table.cells[cell][int(DType::kBFloat16)] = bf16.cells[cell];
  return table;
}

// Runs everywhere, and is for tests alone.
const KernelTable& emulated_bf16() {
  static const KernelTable table = extended(baseline_kernels(), emulated_bf16_kernels());
  return table;
}

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
    list.push_back({avx2_kernels(), avx2});
    list.push_back({avx512_kernels(), avx512});
    static const KernelTable avx512bf16 = extended(avx512_kernels(), avx512bf16_kernels());
    list.push_back({avx512bf16, avx512 && __builtin_cpu_supports("avx512bf16")});
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
  if (name == emulated_bf16().isa) return &emulated_bf16();
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

std::string emulated_cpu_isa() { return emulated_bf16().isa; }

void set_cpu_isa(const std::string& isa) { current() = find(isa, "set_cpu_isa"); }

}  // namespace seqkernels
