#include "rows.cuh"

#include "kernels.h"

namespace seqkernels::cuda {

SEQKERNELS_KERNEL copy_offsets_kernel(const OffsetsPart part, int64_t* offsets) {
  for (int i = thread_index(); i < part.count; i += block_threads()) offsets[part.first + i] = part.values[i];
}

const void* previous_states_kernel(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return reinterpret_cast<const void*>(&copy_previous_states_kernel<float>);
    case DType::kFloat64:
      return reinterpret_cast<const void*>(&copy_previous_states_kernel<double>);
    case DType::kBFloat16:
      return reinterpret_cast<const void*>(&copy_previous_states_kernel<BFloat16>);
    default:
      return reinterpret_cast<const void*>(&copy_previous_states_kernel<Float16>);
  }
}

const void* write_offsets_kernel() { return reinterpret_cast<const void*>(&copy_offsets_kernel); }

}  // namespace seqkernels::cuda
