#include "rows.cuh"

#include "kernels.h"

namespace seqkernels::cuda {

SEQKERNELS_KERNEL copy_offsets_kernel(const OffsetsPart part, int64_t* offsets) {
  for (int i = thread_index(); i < part.count; i += block_threads()) offsets[part.first + i] = part.values[i];
}

template <class T>
RowKernels kernels_of_rows() {
  return {reinterpret_cast<const void*>(&copy_previous_states_kernel<T>),
          reinterpret_cast<const void*>(&copy_rows_of_steps_kernel<T>)};
}

RowKernels row_kernels(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return kernels_of_rows<float>();
    case DType::kFloat64:
      return kernels_of_rows<double>();
    case DType::kBFloat16:
      return kernels_of_rows<BFloat16>();
    default:
      return kernels_of_rows<Float16>();
  }
}

const void* write_offsets_kernel() { return reinterpret_cast<const void*>(&copy_offsets_kernel); }

}  // namespace seqkernels::cuda
