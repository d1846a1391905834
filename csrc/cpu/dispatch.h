// Which ISA's kernels run: the best one the CPU has, unless SEQKERNELS_CPU_ISA or set_cpu_isa() names another.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace seqkernels {

const KernelTable& cpu_kernels();

std::vector<std::string> compiled_cpu_isas();
std::vector<std::string> available_cpu_isas();

// Those that every CPU runs, for tests alone: never chosen by themselves, and not among those above.
std::vector<std::string> emulated_cpu_isas();

// Throws std::invalid_argument where `isa` is unknown or this CPU does not have it.
void set_cpu_isa(const std::string& isa);

}  // namespace seqkernels
