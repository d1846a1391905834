// Which ISA's kernels run: the best one the CPU has, unless SEQKERNELS_CPU_ISA or set_cpu_isa() names another.
#pragma once
#include <string>
#include <vector>

#include "../api.h"
#include "kernels.h"

namespace seqkernels {

SEQKERNELS_API const KernelTable& cpu_kernels();

SEQKERNELS_API std::vector<std::string> compiled_cpu_isas();
SEQKERNELS_API std::vector<std::string> available_cpu_isas();

// Adds an ISA that this CPU runs: baseline's kernels, but for bfloat16 these, which live as long as the process. It is never
// chosen by itself, and not among those above. Not while other threads run kernels.
SEQKERNELS_API void add_cpu_isa(const Bf16Kernels& kernels);

// Throws std::invalid_argument where `isa` is unknown or this CPU does not have it.
SEQKERNELS_API void set_cpu_isa(const std::string& isa);

}  // namespace seqkernels
