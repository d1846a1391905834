#include "explain.h"

#include "time_loop.h"

namespace seqkernels::cuda {

std::vector<Candidate> candidates_for(const LayerPass& pass, const PlanRequest& request,
                                      const std::variant<int, DeviceLimits>& device) {
  const CellKernels& of_cell = kernels_of(pass.cell, pass.dtype, pass.tf32, pass.has_transition);
  const PassKernels& kernels = pass.is_backward ? of_cell.backward : of_cell.forward;
  if (const int* const index = std::get_if<int>(&device)) return candidates_on(Device(*index), kernels, request);
  return candidates(kernels, std::get<DeviceLimits>(device), request);
}

}  // namespace seqkernels::cuda
