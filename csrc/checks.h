// Checks of the ops' arguments, used by every binding: one message that names the argument, what was expected and
// what came.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <string>
#include <vector>

namespace seqkernels {

using torch::stable::Tensor;

inline std::string to_string(const std::vector<int64_t>& sizes) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  out << ']';
  return out.str();
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

inline void check_sizes(const Tensor& tensor, const std::string& name, const std::vector<int64_t>& expected) {
  STD_TORCH_CHECK(sizes_of(tensor) == expected, name, " must have size ", to_string(expected), ", got ",
                  to_string(sizes_of(tensor)));
}

inline void check_like(const Tensor& tensor, const std::string& name, const Tensor& x) {
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, " must have the dtype of x");
  STD_TORCH_CHECK(tensor.device() == x.device(), name, " must be on the device of x");
}

}  // namespace seqkernels
