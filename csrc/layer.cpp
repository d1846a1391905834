#include "layer.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string>

namespace seqkernels {
namespace {

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

}  // namespace

Tensor new_tensor(const Sizes& sizes, ScalarType dtype, const Tensor& like) {
  Sizes strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  int32_t device_type;
  int32_t device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type, device_index, &handle));
  return Tensor(handle);
}

Tensor alias_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), static_cast<int64_t>(sizes.size()), sizes.data(),
                                                        strides.data(), 0, &handle));
  return Tensor(handle);
}

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);  // the check is the cheaper call
}

Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : as_contiguous(tensor);
}

Layer::Layer(const LayerInputs& inputs, bool by_length)
    : spec_(inputs.spec),
      cell_(inputs.spec.cell),
      info_(cell_info(cell_)),
      packed_(inputs.spec.batch_sizes.has_value()) {
  const int64_t x_dim = packed_ ? 2 : 3;
  if (inputs.x.dim() != x_dim) fail("x must have ", x_dim, " dimensions, got ", inputs.x.dim());
  if (inputs.h0.dim() != 3) fail("h0 must have 3 dimensions, got ", inputs.h0.dim());
  if (inputs.h0.size(0) != 1 && inputs.h0.size(0) != 2)
    fail("h0 must have 1 or 2 directions in its first dimension, got ", inputs.h0.size(0));
  dtype_ = dtype_of(inputs.x);
  x_ = alias_of(inputs.x);
  check_memory(x_, "x");
  x_ = with_contiguous_rows(x_);

  directions_ = inputs.h0.size(0);
  if (spec_.reverse && directions_ != 1) fail("reverse needs one direction in h0, got ", directions_);
  batch_ = inputs.h0.size(1);
  output_size_ = inputs.h0.size(2);
  if (output_size_ == 0) fail("h0 must have at least one hidden unit in its last dimension, got 0");
  hidden_size_ = output_size_;
  if (info_.is_projected()) {  // then c0 has the hidden units
    if (inputs.c0->dim() != 3) fail("c0 must have 3 dimensions, got ", inputs.c0->dim());
    hidden_size_ = inputs.c0->size(2);
    if (hidden_size_ == 0) fail("c0 must have at least one hidden unit in its last dimension, got 0");
  }
  input_size_ = x_.size(x_dim - 1);
  if (packed_ && spec_.lengths) fail("lengths are those of padded sequences; packed ones have batch_sizes");
  if (spec_.lengths) take_lengths(by_length);
  if (packed_)
    offsets_of(*inputs.spec.batch_sizes);
  else if (spec_.lengths && by_length)
    offsets_of_lengths(*spec_.lengths);
  else
    offsets_of(x_.size(0), x_.size(1));

  if (!packed_) check_sizes(inputs.h0, Sizes{directions_, x_.size(1), output_size_}, "h0");
  h0_ = alias_of(inputs.h0);
  check_like(h0_, x_, "h0");
  h0_ = as_contiguous(h0_);
  if (inputs.c0) {
    c0_ = alias_of(*inputs.c0);
    check_sizes(*c0_, c_sizes(), "c0");
    check_like(*c0_, x_, "c0");
    c0_ = as_contiguous(*c0_);
  }
  take_weights(inputs.weights);
  take_transition();
  if (!(spec_.norm_eps >= 0)) fail("norm_eps must be at least 0, got ", spec_.norm_eps);
}

void Layer::offsets_of(const Tensor& batch_sizes) {
  if (!batch_sizes.is_cpu() || batch_sizes.scalar_type() != ScalarType::Long || batch_sizes.dim() != 1)
    fail("batch_sizes must be a one-dimensional int64 tensor on the CPU");
  check_memory(batch_sizes, "batch_sizes");
  const Tensor sizes = as_contiguous(batch_sizes);
  const int64_t* const active = static_cast<const int64_t*>(sizes.data_ptr());
  const int64_t steps = sizes.numel();
  offsets_.assign(1, 0);
  offsets_.reserve(static_cast<size_t>(steps) + 1);
  for (int64_t t = 0; t < steps; ++t) {
    const int64_t limit = t == 0 ? batch_ : active[t - 1];
    if (active[t] <= 0 || active[t] > limit || (t == 0 && active[t] != limit))
      fail("batch_sizes must be positive, not increasing, and begin with the batch of h0 (", batch_, "); got ",
           active[t], " at step ", t);
    offsets_.push_back(offsets_.back() + active[t]);
  }
  if (offsets_.back() != x_.size(0))
    fail("x must have as many rows as batch_sizes add up to (", offsets_.back(), "), got ", x_.size(0));
}

void Layer::offsets_of(int64_t seq_len, int64_t batch) {
  offsets_.resize(static_cast<size_t>(seq_len) + 1);
  for (int64_t t = 0; t <= seq_len; ++t) offsets_[static_cast<size_t>(t)] = t * batch;
}

void Layer::take_lengths(bool are_read) {
  const Tensor lengths = alias_of(*spec_.lengths);
  if (are_read && (!lengths.is_cpu() || lengths.scalar_type() != ScalarType::Long))
    fail("lengths must be an int64 tensor on the CPU");
  check_sizes(lengths, Sizes{x_.size(1)}, "lengths");
  check_dtype(lengths, ScalarType::Long, "lengths");
  check_device(lengths, x_, "lengths");
  check_memory(lengths, "lengths");
  spec_.lengths = as_contiguous(lengths);
}

void Layer::offsets_of_lengths(const Tensor& taken) {
  const auto* const data = static_cast<const int64_t*>(taken.data_ptr());
  const std::vector<int64_t> lengths(data, data + taken.numel());
  for (size_t b = 0; b < lengths.size(); ++b)
    if (lengths[b] < 0 || lengths[b] > x_.size(0))
      fail("lengths must be between 0 and the steps of x (", x_.size(0), "), got ", lengths[b], " of sequence ", b);
  order_.resize(lengths.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int64_t a, int64_t b) { return lengths[size_t(a)] > lengths[size_t(b)]; });
  offsets_.assign(1, 0);
  auto active = static_cast<int64_t>(lengths.size());
  for (int64_t t = 0;; ++t) {
    while (active > 0 && lengths[size_t(order_[size_t(active - 1)])] <= t) --active;
    if (active == 0) return;
    offsets_.push_back(offsets_.back() + active);
  }
}

// Takes what happens to states between steps.
void Layer::take_transition() {
  for (const double rate : {spec_.zoneout_h_rate, spec_.zoneout_c_rate})
    if (!(rate >= 0 && rate <= 1)) fail("rates of zoneout must be between 0 and 1, got ", rate);
  if (!spec_.reset_mask && !spec_.recurrent_mask && !spec_.zoneout_h && !spec_.zoneout_c) return;
  const auto take = [&](std::optional<Tensor>& tensor, const char* name, const Sizes& sizes, ScalarType dtype) {
    if (!tensor) return;
    tensor = alias_of(*tensor);
    check_sizes(*tensor, sizes, name);
    check_dtype(*tensor, dtype, name);
    check_device(*tensor, x_, name);
    check_memory(*tensor, name);
  };
  Sizes rows = sizes_of(x_);
  rows.pop_back();
  take(spec_.reset_mask, "reset_mask", rows, ScalarType::Bool);
  take(spec_.recurrent_mask, "recurrent_mask", h_sizes(), scalar_type());
  if (spec_.recurrent_mask) spec_.recurrent_mask = as_contiguous(*spec_.recurrent_mask);
  take(spec_.zoneout_h, "zoneout_h", output_sizes(), ScalarType::Bool);
  take(spec_.zoneout_c, "zoneout_c", cell_states_sizes(), ScalarType::Bool);
  for (std::optional<Tensor>* const keeps : {&spec_.zoneout_h, &spec_.zoneout_c})
    if (*keeps) *keeps = with_contiguous_rows(**keeps);
}

void Layer::take_weights(const std::vector<Tensor>& weights) {
  const auto count = static_cast<int64_t>(weights.size());
  weights_per_direction_ = count / directions_;
  const bool biases = has_biases();
  if (count % directions_ != 0 || weights_per_direction_ != info_.weights(biases)) {
    std::string extra;
    for (int kind = kProjection; kind < kWeightKinds; ++kind)
      if (info_.has_weight[kind]) extra += (extra.empty() ? ", then " : ", ") + std::string(kWeightNames[kind]);
    fail("weights must be w_ih, w_hh and optionally b_ih, b_hh", extra, extra.empty() ? "" : ",", " for each of ",
         directions_, " directions, got ", count, " tensors");
  }
  weights_.reserve(weights.size());
  for (int64_t i = 0; i < count; ++i) {
    const WeightKind kind = info_.kind_of_weight(static_cast<int>(i % weights_per_direction_), biases);
    const Tensor weight = alias_of(weights[static_cast<size_t>(i)]);
    const WeightSize size = info_.size_of(kind, input_size_, hidden_size_, output_size_);
    const auto check = [&](auto... sizes) {
      check_sizes(weight, std::array<int64_t, sizeof...(sizes)>{sizes...}, "weights[", i, "] (", kWeightNames[kind],
                  ")");
      check_like(weight, x_, "weights[", i, "] (", kWeightNames[kind], ")");
    };
    size.is_vector() ? check(size.rows) : check(size.rows, size.columns);
    weights_.push_back(as_contiguous(weight));
  }
}

LayerOutputs Layer::new_outputs(bool save_for_backward) const {
  LayerOutputs out;
  out.output = new_tensor(output_sizes(), scalar_type(), x_);
  out.h_n = new_tensor(h_sizes(), scalar_type(), x_);
  if (info_.has_cell_state) {
    out.c_n = new_tensor(c_sizes(), scalar_type(), x_);
    out.cell_states = new_tensor(spec_.return_cell_states ? cell_states_sizes() : Sizes{0}, scalar_type(), x_);
  }
  const auto new_saved = [&](const Sizes& sizes, ScalarType dtype) {
    return new_tensor(save_for_backward ? sizes : Sizes{0}, dtype, x_);
  };
  if (info_.saved > 0) out.saved.gates = new_saved(gates_sizes(), scalar_type());
  if (info_.has_cell_state) out.saved.cells = new_saved(cells_sizes(), compute_type());
  if (info_.is_normalized()) out.saved.norms = new_saved(norms_sizes(), compute_type());
  return out;
}

LayerBackwardTensors::LayerBackwardTensors(const Layer& layer, const LayerGradients& grads, const Tensor& output_given,
                                           const LayerSaved& saved_given, const std::vector<bool>& needs_grad) {
  if (layer.info().saved == 0 && layer.spec().zoneout_h_rate > 0)
    fail("zoneout_h_rate must be 0 where gradients are needed of a cell that saves nothing, got ",
         layer.spec().zoneout_h_rate);
  const size_t states = layer.info().has_cell_state ? 2 : 1;
  if (needs_grad.size() != 1 + states + layer.weights().size())
    fail("needs_grad must have ", 1 + states + layer.weights().size(), " entries, got ", needs_grad.size());

  check_sizes(output_given, layer.output_sizes(), "output");
  check_like(output_given, layer.x(), "output");
  output = with_contiguous_rows(output_given);
  const auto take_rows = [&](const std::optional<Tensor>& tensor, const char* name,
                             const Sizes& expected) -> std::optional<Tensor> {
    if (!tensor) return std::nullopt;
    check_sizes(*tensor, expected, name);
    check_like(*tensor, layer.x(), name);
    return with_contiguous_rows(*tensor);
  };
  grad_output = take_rows(grads.output, "grad_output", layer.output_sizes());
  // Of cell states that nobody has asked for, a gradient is as empty as they are.
  if (grads.cell_states && (layer.spec().return_cell_states || grads.cell_states->numel() > 0))
    grad_cells = take_rows(grads.cell_states, "grad_cell_states", layer.cell_states_sizes());
  const auto take = [&](const std::optional<Tensor>& tensor, const char* name, const Sizes& expected,
                        ScalarType dtype) -> std::optional<Tensor> {
    if (!tensor) return std::nullopt;
    check_sizes(*tensor, expected, name);
    check_dtype(*tensor, dtype, name);
    check_device(*tensor, layer.x(), name);
    check_memory(*tensor, name);
    return as_contiguous(*tensor);
  };
  grad_h_n = take(grads.h_n, "grad_h_n", layer.h_sizes(), layer.scalar_type());
  grad_c_n = take(grads.c_n, "grad_c_n", layer.c_sizes(), layer.scalar_type());
  const auto take_saved = [&](const std::optional<Tensor>& tensor, const std::string& name, const Sizes& expected,
                              ScalarType dtype) {
    return take(tensor, (name + " (of a forward pass with save_for_backward=True)").c_str(), expected, dtype);
  };
  saved.gates = take_saved(saved_given.gates, "gates", layer.gates_sizes(), layer.scalar_type());
  saved.cells = take_saved(saved_given.cells, "cells", layer.cells_sizes(), layer.compute_type());
  saved.norms = take_saved(saved_given.norms, "norms", layer.norms_sizes(), layer.compute_type());

  const auto result = [&](bool needed, const Sizes& like) {
    return new_tensor(needed ? like : Sizes{0}, layer.scalar_type(), layer.x());
  };
  results.x = result(needs_grad[0], sizes_of(layer.x()));
  results.h0 = result(needs_grad[1], layer.h_sizes());
  if (layer.info().has_cell_state) results.c0 = result(needs_grad[2], layer.c_sizes());
  for (size_t i = 0; i < layer.weights().size(); ++i)
    results.weights.push_back(result(needs_grad[1 + states + i], sizes_of(layer.weights()[i])));
}

}  // namespace seqkernels
