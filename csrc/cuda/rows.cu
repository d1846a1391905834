#include "rows.cuh"

#include "kernels.h"

namespace seqkernels::cuda {

SEQKERNELS_KERNEL copy_offsets_kernel(const OffsetsPart part, int64_t* offsets) {
  for (int i = thread_index(); i < part.count; i += block_threads()) offsets[part.first + i] = part.values[i];
}

// A copy: all that counts is the size of an element.
const void* previous_states_kernel(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return reinterpret_cast<const void*>(&copy_previous_states_kernel<float>);
    case DType::kFloat64:
      return reinterpret_cast<const void*>(&copy_previous_states_kernel<double>);
    default:
      return reinterpret_cast<const void*>(&copy_previous_states_kernel<BFloat16>);
  }
}

const void* write_offsets_kernel() { return reinterpret_cast<const void*>(&copy_offsets_kernel); }

}  // namespace seqkernels::cuda
