// Checks of the ops' arguments, used by every binding: one message that names the argument, what was expected and
// what came.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "extent.h"

namespace seqkernels {

using torch::stable::Tensor;

// Throws what reaches Python as a RuntimeError with this message.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Sizes of a tensor: printed only where a check fails, compared without an allocation.
using Sizes = std::vector<int64_t>;

template <class List>
std::string to_string(const List& sizes) {
  std::ostringstream out;
  out << '[';
  const char* comma = "";
  for (const int64_t size : sizes) out << comma << size, comma = ", ";
  out << ']';
  return out.str();
}

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// `name` is anything that prints, in one or several parts.
template <class List, class... Name>
void check_sizes(const Tensor& tensor, const List& expected, const Name&... name) {
  const auto sizes = tensor.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()))
    fail(name..., " must have size ", to_string(expected), ", got ", to_string(sizes));
}

template <class... Name>
void check_dtype(const Tensor& tensor, torch::headeronly::ScalarType expected, const Name&... name) {
  if (tensor.scalar_type() != expected)
    fail(name..., " must have dtype ", torch::headeronly::toString(expected), ", got ",
         torch::headeronly::toString(tensor.scalar_type()));
}

template <class... Name>
void check_device(const Tensor& tensor, const Tensor& x, const Name&... name) {
  if (tensor.device() != x.device()) fail(name..., " must have the device of x");
}

// A program may free or shorten the storage of a tensor, whose sizes then say more than there is.
template <class... Name>
void check_memory(const Tensor& tensor, const Name&... name) {
  const int64_t elements = extent(tensor.sizes(), tensor.strides(), tensor.dim());
  if (elements == 0) return;
  const int64_t needed = (tensor.storage_offset() + elements) * static_cast<int64_t>(tensor.element_size());
  int64_t available;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &available));
  if (available < needed)
    fail(name..., " must have a storage of at least ", needed, " bytes, got ", available,
         " (it was freed, or made smaller)");
}

template <class... Name>
void check_like(const Tensor& tensor, const Tensor& x, const Name&... name) {
  check_dtype(tensor, x.scalar_type(), name...);
  check_device(tensor, x, name...);
  check_memory(tensor, name...);
}

}  // namespace seqkernels
