#pragma once
#include <pybind11/pybind11.h>

namespace seqkernels {

// `set_tf32_query` and `cuda_plans`, in a build with CUDA kernels.
void define_cuda_plans(pybind11::module_& m);

}  // namespace seqkernels
