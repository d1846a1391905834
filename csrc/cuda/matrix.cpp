#include "matrix.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <utility>

namespace seqkernels::cuda {
namespace {

template <class... Arguments>
void call(const char* op, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // another handle of `out`
}

}  // namespace

Tensor window(const Tensor& base, const Sizes& sizes, const Sizes& strides, int64_t offset) {
  AtenTensorHandle handle;
  // Whatever its parameter is called, torch adds the offset to that of the base.
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(base.get(), static_cast<int64_t>(sizes.size()), sizes.data(),
                                                        strides.data(), offset, &handle));
  return Tensor(handle);
}

Tensor window(const Tensor& base, const Sizes& sizes, int64_t offset) {
  Sizes strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return window(base, sizes, strides, offset);
}

Tensor transposed(const Tensor& matrix) {
  Sizes sizes = sizes_of(matrix);
  const auto given = matrix.strides();
  Sizes strides(given.begin(), given.end());
  const size_t last = sizes.size() - 1;
  std::swap(sizes[last], sizes[last - 1]);
  std::swap(strides[last], strides[last - 1]);
  return window(matrix, sizes, strides);
}

Tensor stacked_weights(const Layer& layer, WeightKind kind) {
  const Tensor& first = layer.weight_tensor(0, kind);
  const int64_t rows = first.size(0), columns = first.size(1);
  if (layer.directions() == 1) return window(first, {1, rows, columns});
  const Tensor stacked = new_tensor({layer.directions(), rows, columns}, layer.scalar_type(), layer.x());
  for (int64_t d = 0; d < layer.directions(); ++d) {
    Tensor part = window(stacked, {rows, columns}, d * rows * columns);
    torch::stable::copy_(part, layer.weight_tensor(d, kind));
  }
  return stacked;
}

void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  const char* const op = a.dim() == 3 ? "aten::bmm" : "aten::mm";
  if (out.scalar_type() == a.scalar_type())
    call(op, "out", a, b, out);
  else
    call(op, "dtype_out", a, b, out.scalar_type(), out);
}

void sum_rows(const Tensor& matrix, const Tensor& out) {
  const std::array<int64_t, 1> rows{0};
  call("aten::sum", "IntList_out", matrix, std::optional(torch::headeronly::IntHeaderOnlyArrayRef(rows.data(), 1)),
       false, std::optional<torch::headeronly::ScalarType>(), out);
}

}  // namespace seqkernels::cuda
