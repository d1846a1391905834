// The persistent kernels of a pass, and which of them a launch needs.
#pragma once
#include "persistent.cuh"

namespace seqkernels::cuda {

template <class Pass, class Operand, Scope kScope, int kTiles, int kTeams>
SEQKERNELS_KERNEL SEQKERNELS_LAUNCH_BOUNDS(kTeams* kThreads, 1)
    persistent_kernel(const typename Pass::Problem problem, const Partition part, const SharedLayout layout) {
  PersistentTeam<Pass, Operand, kScope, kTiles, kTeams>(problem, part, layout).run();
}

template <class Pass, class Operand, Scope kScope, int kTiles, int kTeams = 1>
const void* persistent_kernel_pointer() {
  return reinterpret_cast<const void*>(&persistent_kernel<Pass, Operand, kScope, kTiles, kTeams>);
}

// The kernel for a launch that is cut so, or null. Blocks that exchange through shared memory have none for several quarters a
// warp, nor for two teams: whatever needs them runs faster as a grid. With what happens between steps, there are no two teams,
// for the registers of one do not hold it.
template <class Pass, class Operand, Scope kScope>
const void* persistent_kernel_of(const Partition& part) {
  constexpr bool kMayHaveTwo = max_column_tiles<Pass, Operand, Form::kOneQuarter>(StagesOf<Pass>()) > 1;
  constexpr bool kHasTeams = kScope == Scope::kDevice && Pass::kStages == 1 && !Pass::kHasTransition &&
                             PersistentProduct<Pass, Operand, Form::kOneQuarter, 0>::Product::kOnTensorCores;
  if (part.teams > 1) {
    if constexpr (kHasTeams)
      if (has_one_quarter(part))
        return part.column_tiles == 2 ? persistent_kernel_pointer<Pass, Operand, kScope, 2, kMaxTeams>()
                                      : persistent_kernel_pointer<Pass, Operand, kScope, 1, kMaxTeams>();
    return nullptr;
  }
  if (!has_one_quarter(part)) {
    if constexpr (kScope == Scope::kDevice) return persistent_kernel_pointer<Pass, Operand, kScope, 0>();
    return nullptr;
  }
  if constexpr (kMayHaveTwo)
    if (part.column_tiles == 2) return persistent_kernel_pointer<Pass, Operand, kScope, 2>();
  return persistent_kernel_pointer<Pass, Operand, kScope, 1>();
}

template <class Pass, class Operand>
const void* persistent_kernel_for(const Partition& part) {
  return part.ring ? persistent_kernel_of<Pass, Operand, Scope::kDevice>(part)
                   : persistent_kernel_of<Pass, Operand, Scope::kCluster>(part);
}

}  // namespace seqkernels::cuda
