// The plans for a layer on any device, as `seqkernels.explain` shows them.
#pragma once
#include <variant>
#include <vector>

#include "plan.h"

namespace seqkernels::cuda {

// One pass of a layer, in what chooses its kernels.
struct LayerPass {
  CellKind cell;
  DType dtype;
  bool tf32;            // whether float32 may be multiplied so
  bool has_transition;  // whether something happens to states between steps
  bool is_backward;
};

// Candidates of all kinds: on a device that is there, by its index, those that a call would choose from; or on one with such limits.
SEQKERNELS_API std::vector<Candidate> candidates_for(const LayerPass& pass, const PlanRequest& request,
                                                     const std::variant<int, DeviceLimits>& device);

}  // namespace seqkernels::cuda
