#include "layer.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <utility>

#include "../checks.h"
#include "dispatch.h"
#include "team.h"

namespace seqkernels {
namespace {

using torch::headeronly::ScalarType;

struct CellSizes {
  int64_t gates, saved;
  bool has_cell_state;
};

CellSizes cell_sizes(CellKind cell) {
  switch (cell) {
    case CellKind::kLstm:
      return {4, 4, true};
    case CellKind::kGru:
      return {3, 4, false};
    default:
      return {1, 0, false};
  }
}

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      fail("x must be float32, float64, bfloat16 or float16");
  }
}

// An uninitialised contiguous tensor on the CPU, without the dispatcher's detour.
Tensor new_tensor(const Sizes& sizes, ScalarType dtype) {
  Sizes strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

char* data(const Tensor& tensor) { return static_cast<char*>(tensor.data_ptr()); }
char* data(const std::optional<Tensor>& tensor) { return tensor ? data(*tensor) : nullptr; }

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);  // the check is the cheaper call
}

// A tensor as the kernels read rows of it: only the feature stride must be 1.
Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : as_contiguous(tensor);
}

RowTensor rows_of(const Tensor& tensor, bool packed) {
  return packed ? RowTensor{data(tensor), 0, tensor.stride(0)}
                : RowTensor{data(tensor), tensor.stride(0), tensor.stride(1)};
}

// The inputs, checked and as contiguous as the kernels need them, and the sizes read off them.
class Layer {
 public:
  explicit Layer(const LayerInputs& inputs)
      : cell_(inputs.cell), sizes_(cell_sizes(cell_)), packed_(inputs.batch_sizes.has_value()) {
    const int64_t x_dim = packed_ ? 2 : 3;
    if (inputs.x.dim() != x_dim) fail("x must have ", x_dim, " dimensions, got ", inputs.x.dim());
    if (inputs.h0.dim() != 3) fail("h0 must have 3 dimensions, got ", inputs.h0.dim());
    if (inputs.h0.size(0) != 1 && inputs.h0.size(0) != 2)
      fail("h0 must have 1 or 2 directions in its first dimension, got ", inputs.h0.size(0));
    x_ = with_contiguous_rows(inputs.x);
    h0_ = as_contiguous(inputs.h0);
    if (inputs.c0) c0_ = as_contiguous(*inputs.c0);
    dtype_ = dtype_of(x_);

    Shape& shape = shape_;
    shape.packed = packed_;
    shape.directions = h0_.size(0);
    shape.batch = h0_.size(1);
    shape.hidden_size = h0_.size(2);
    if (shape.hidden_size == 0) fail("h0 must have at least one hidden unit in its last dimension, got 0");
    shape.input_size = x_.size(x_dim - 1);
    if (packed_)
      offsets_of(*inputs.batch_sizes);
    else
      offsets_of(x_.size(0), x_.size(1));
    shape.offsets = offsets_.data();
    shape.seq_len = static_cast<int64_t>(offsets_.size()) - 1;

    if (!packed_) check_sizes(h0_, Sizes{shape.directions, x_.size(1), shape.hidden_size}, "h0");
    check_like(h0_, x_, "h0");
    if (c0_) {
      check_sizes(*c0_, state_sizes(), "c0");
      check_like(*c0_, x_, "c0");
    }
    take_weights(inputs.weights);
  }

  template <class Problem>
  void describe(Problem& problem) const {
    problem.shape = shape_;
    problem.x = rows_of(x_, packed_);
    problem.h0 = data(h0_);
    problem.c0 = data(c0_);
    for (int64_t d = 0; d < shape_.directions; ++d) {
      const Tensor* const w = &weights_[static_cast<size_t>(d * weights_per_direction_)];
      const bool bias = weights_per_direction_ == 4;
      problem.weights[d] = {data(w[0]), data(w[1]), bias ? data(w[2]) : nullptr, bias ? data(w[3]) : nullptr};
    }
  }

  int64_t rows() const { return offsets_.back(); }
  int64_t padded_hidden() const { return (shape_.hidden_size + kUnitPadding - 1) / kUnitPadding * kUnitPadding; }
  // Multiply-adds of a forward pass.
  double work() const {
    return static_cast<double>(rows()) * static_cast<double>(shape_.directions * sizes_.gates * shape_.hidden_size) *
           static_cast<double>(shape_.input_size + shape_.hidden_size);
  }
  Sizes state_sizes() const { return {shape_.directions, shape_.batch, shape_.hidden_size}; }
  Sizes gates_sizes() const { return {shape_.directions, rows(), sizes_.saved, padded_hidden()}; }
  Sizes cells_sizes() const { return {shape_.directions, rows(), padded_hidden()}; }
  Sizes output_sizes() const {
    const int64_t features = shape_.directions * shape_.hidden_size;
    if (packed_) return {rows(), features};
    return {shape_.seq_len, shape_.batch, features};
  }

  const CellKernels& kernels() const { return cpu_kernels().cells[int(cell_)][int(dtype_)]; }
  const CellSizes& sizes() const { return sizes_; }
  const Tensor& x() const { return x_; }
  const Tensor& h0() const { return h0_; }
  const std::vector<Tensor>& weights() const { return weights_; }
  int64_t weights_per_direction() const { return weights_per_direction_; }
  bool packed() const { return packed_; }
  ScalarType dtype() const { return x_.scalar_type(); }
  ScalarType compute_type() const { return dtype_ == DType::kFloat64 ? ScalarType::Double : ScalarType::Float; }

 private:
  void offsets_of(const Tensor& batch_sizes) {
    if (!batch_sizes.is_cpu() || batch_sizes.scalar_type() != ScalarType::Long || batch_sizes.dim() != 1)
      fail("batch_sizes must be a one-dimensional int64 tensor on the CPU");
    const Tensor sizes = as_contiguous(batch_sizes);
    const int64_t* const active = static_cast<const int64_t*>(sizes.data_ptr());
    const int64_t steps = sizes.numel();
    offsets_.assign(1, 0);
    offsets_.reserve(static_cast<size_t>(steps) + 1);
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t limit = t == 0 ? shape_.batch : active[t - 1];
      if (active[t] <= 0 || active[t] > limit || (t == 0 && active[t] != limit))
        fail("batch_sizes must be positive, not increasing, and begin with the batch of h0 (", shape_.batch, "); got ",
             active[t], " at step ", t);
      offsets_.push_back(offsets_.back() + active[t]);
    }
    if (offsets_.back() != x_.size(0))
      fail("x must have as many rows as batch_sizes add up to (", offsets_.back(), "), got ", x_.size(0));
  }

  void offsets_of(int64_t seq_len, int64_t batch) {
    offsets_.resize(static_cast<size_t>(seq_len) + 1);
    for (int64_t t = 0; t <= seq_len; ++t) offsets_[static_cast<size_t>(t)] = t * batch;
  }

  void take_weights(const std::vector<Tensor>& weights) {
    const auto count = static_cast<int64_t>(weights.size());
    weights_per_direction_ = count / shape_.directions;
    if (count % shape_.directions != 0 || (weights_per_direction_ != 2 && weights_per_direction_ != 4))
      fail("weights must be w_ih, w_hh and optionally b_ih, b_hh for each of ", shape_.directions, " directions, got ",
           count, " tensors");
    const int64_t gate_rows = sizes_.gates * shape_.hidden_size;
    static const char* const names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
    weights_.reserve(weights.size());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t kind = i % weights_per_direction_;
      const Tensor& weight = weights[static_cast<size_t>(i)];
      const std::array<int64_t, 2> expected{gate_rows, kind == 0 ? shape_.input_size : shape_.hidden_size};
      const auto check = [&](auto... name) {
        kind < 2 ? check_sizes(weight, expected, name...)
                 : check_sizes(weight, std::array<int64_t, 1>{gate_rows}, name...);
        check_like(weight, x_, name...);
      };
      check("weights[", i, "] (", names[kind], ")");
      weights_.push_back(as_contiguous(weight));
    }
  }

  const CellKind cell_;
  const CellSizes sizes_;
  const bool packed_;
  DType dtype_;
  Tensor x_, h0_;
  std::optional<Tensor> c0_;
  std::vector<Tensor> weights_;
  int64_t weights_per_direction_;
  std::vector<int64_t> offsets_;
  Shape shape_;
};

template <class Problem>
void run(Problem& problem, double work, int64_t (*workspace)(const Problem&), void (*kernel)(const Problem&, Member)) {
  const Tensor scratch = new_tensor({workspace(problem)}, ScalarType::Byte);
  problem.workspace = data(scratch);
  const int threads = team_threads(work);
  struct Context {
    Problem& problem;
    void (*kernel)(const Problem&, Member);
  } context{problem, kernel};
  const int barriers = 1 + 2 + 2 * threads;
  run_team(
      threads, barriers,
      [](void* opaque, Team* team, Member member) {
        const Context& run = *static_cast<Context*>(opaque);
        Problem own = run.problem;
        own.team = team;
        run.kernel(own, member);
      },
      &context);
}

}  // namespace

LayerOutputs layer_forward_cpu(const LayerInputs& inputs, bool save_for_backward) {
  const Layer layer(inputs);
  const Sizes state = layer.state_sizes();
  const CellSizes& sizes = layer.sizes();
  ForwardProblem problem{};
  layer.describe(problem);

  LayerOutputs out;
  out.output = new_tensor(layer.output_sizes(), layer.dtype());
  out.h_n = new_tensor(state, layer.dtype());
  problem.output = rows_of(out.output, layer.packed());
  problem.h_n = data(out.h_n);
  if (sizes.has_cell_state) {
    out.c_n = new_tensor(state, layer.dtype());
    problem.c_n = data(out.c_n);
  }
  if (sizes.saved > 0) {
    out.gates = new_tensor(save_for_backward ? layer.gates_sizes() : Sizes{0}, layer.dtype());
    if (save_for_backward) problem.gates = data(out.gates);
  }
  if (sizes.has_cell_state) {
    out.cells = new_tensor(save_for_backward ? layer.cells_sizes() : Sizes{0}, layer.compute_type());
    if (save_for_backward) problem.cells = data(out.cells);
  }
  run(problem, layer.work(), layer.kernels().forward_workspace, layer.kernels().forward);
  return out;
}

InputGradients layer_backward_cpu(const LayerInputs& inputs, const LayerGradients& grads, const Tensor& output,
                                  const std::optional<Tensor>& gates, const std::optional<Tensor>& cells,
                                  const std::vector<bool>& needs_grad) {
  const Layer layer(inputs);
  const CellSizes& sizes = layer.sizes();
  const Sizes state = layer.state_sizes();
  const size_t states = sizes.has_cell_state ? 2 : 1;
  if (needs_grad.size() != 1 + states + layer.weights().size())
    fail("needs_grad must have ", 1 + states + layer.weights().size(), " entries, got ", needs_grad.size());
  BackwardProblem problem{};
  layer.describe(problem);

  // Kept alive for as long as the kernels read them.
  check_sizes(output, layer.output_sizes(), "output");
  check_like(output, layer.x(), "output");
  const Tensor output_rows = with_contiguous_rows(output);
  problem.output = rows_of(output_rows, layer.packed());
  std::optional<Tensor> grad_output, grad_h_n, grad_c_n, saved_gates, saved_cells;
  if (grads.output) {
    check_sizes(*grads.output, layer.output_sizes(), "grad_output");
    check_like(*grads.output, layer.x(), "grad_output");
    grad_output = with_contiguous_rows(*grads.output);
    problem.grad_output = rows_of(*grad_output, layer.packed());
  }
  const auto take = [&](const std::optional<Tensor>& tensor, const char* name, const Sizes& expected, ScalarType dtype,
                        std::optional<Tensor>& keep) -> char* {
    if (!tensor) return nullptr;
    check_sizes(*tensor, expected, name);
    check_dtype(*tensor, dtype, name);
    check_device(*tensor, layer.x(), name);
    keep = as_contiguous(*tensor);
    return data(*keep);
  };
  problem.grad_h_n = take(grads.h_n, "grad_h_n", state, layer.dtype(), grad_h_n);
  problem.grad_c_n = take(grads.c_n, "grad_c_n", state, layer.dtype(), grad_c_n);
  problem.gates = take(gates, "gates (of a forward pass with save_for_backward=True)", layer.gates_sizes(),
                       layer.dtype(), saved_gates);
  problem.cells = take(cells, "cells (of a forward pass with save_for_backward=True)", layer.cells_sizes(),
                       layer.compute_type(), saved_cells);

  InputGradients out;
  const auto grad_of = [&](bool needed, const Sizes& like, char*& pointer) {
    Tensor grad = new_tensor(needed ? like : Sizes{0}, layer.dtype());
    pointer = needed ? data(grad) : nullptr;
    return grad;
  };
  out.x = grad_of(needs_grad[0], sizes_of(layer.x()), problem.grad_x);
  out.h0 = grad_of(needs_grad[1], state, problem.grad_h0);
  if (sizes.has_cell_state) out.c0 = grad_of(needs_grad[2], state, problem.grad_c0);
  const auto per_direction = static_cast<size_t>(layer.weights_per_direction());
  for (size_t i = 0; i < layer.weights().size(); ++i) {
    WeightGrads& weight_grads = problem.grads[i / per_direction];
    char** const slots[] = {&weight_grads.w_ih, &weight_grads.w_hh, &weight_grads.b_ih, &weight_grads.b_hh};
    out.weights.push_back(grad_of(needs_grad[1 + states + i], sizes_of(layer.weights()[i]), *slots[i % per_direction]));
  }
  run(problem, 2 * layer.work(), layer.kernels().backward_workspace, layer.kernels().backward);
  return out;
}

}  // namespace seqkernels
