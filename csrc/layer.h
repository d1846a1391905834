// One layer in all its directions, as the ops get it: arguments checked, sizes read off them, results allocated. What a
// device adds is in cpu/layer.cpp and cuda/layer.cpp.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "kinds.h"

namespace seqkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What a call is, beside its inputs. What is added here reaches every device's kernels; seqkernels/spec.py is its twin.
struct LayerSpec {
  CellKind cell;
  std::optional<Tensor> batch_sizes;  // [T] of a packed sequence
  bool reverse = false;               // the only direction is the one from the last step to the first
  std::optional<Tensor> lengths;      // [B] of padded sequences; what x has beyond reaches no result
  // Bool, a value for each row of x: the state before it is zero, in reverse that before the row before it.
  std::optional<Tensor> reset_mask;
  std::optional<Tensor> recurrent_mask;  // [D, B, P] factors of h where it meets W_hh
  // Zoneout: bool, like output, whether a unit of h keeps the value before the step; without, so much of it is kept.
  std::optional<Tensor> zoneout_h;
  double zoneout_h_rate = 0;
  // The same of c, [.., D H], and whether to return c of every step; of a cell with cell state.
  std::optional<Tensor> zoneout_c;
  double zoneout_c_rate = 0;
  bool return_cell_states = false;
  double norm_eps = 0;  // of a normalised cell
};

struct LayerInputs {
  LayerSpec spec;
  Tensor x;                  // [T, B, I] or packed [R, I]
  Tensor h0;                 // [D, B, P]; P is H, but with a projection
  std::optional<Tensor> c0;  // [D, B, H]
  std::vector<Tensor>
      weights;  // per direction w_ih, w_hh and, with biases, b_ih, b_hh, then what the cell has beside them
};

// What forward saves for backward; tensors of size [0] where it does not.
struct LayerSaved {
  std::optional<Tensor> gates;  // [D, R, saved, Hp], of a cell that saves some
  std::optional<Tensor> cells;  // [D, R, Hp], of a cell with cell state
  std::optional<Tensor> norms;  // [D, R, norms], of a normalised cell
};

struct LayerOutputs {
  Tensor output;              // [T, B, D P] or packed [R, D P]
  Tensor h_n;                 // [D, B, P]
  std::optional<Tensor> c_n;  // [D, B, H], of a cell with cell state
  // c of every step, like output but [.., D H], of a cell with cell state; [0] where not asked for.
  std::optional<Tensor> cell_states;
  LayerSaved saved;
};

struct LayerGradients {
  std::optional<Tensor> output, h_n, c_n, cell_states;  // null: not used in the loss
};

struct InputGradients {  // [0] where not asked for
  Tensor x, h0;
  std::optional<Tensor> c0;  // of a cell with cell state
  std::vector<Tensor> weights;
};

// What a device implements. `needs_grad`: x, h0, c0 (if the cell has one), then each weight.
using LayerForward = LayerOutputs(const LayerInputs& inputs, bool save_for_backward);
using LayerBackward = InputGradients(const LayerInputs& inputs, const LayerGradients& grads, const Tensor& output,
                                     const LayerSaved& saved, const std::vector<bool>& needs_grad);
LayerForward layer_forward_cpu, layer_forward_cuda;
LayerBackward layer_backward_cpu, layer_backward_cuda;

// An uninitialised contiguous tensor on the device of `like`, without the dispatcher's detour.
Tensor new_tensor(const Sizes& sizes, ScalarType dtype, const Tensor& like);

inline char* data(const Tensor& tensor) { return static_cast<char*>(tensor.data_ptr()); }
inline char* data(const std::optional<Tensor>& tensor) { return tensor ? data(*tensor) : nullptr; }

// Where to write a result; null where it has no elements, as one that nobody asked for.
inline char* result_data(const Tensor& tensor) { return tensor.numel() > 0 ? data(tensor) : nullptr; }

// The same values, under a tensor of our own: what another thread then makes of the memory, sizes or strides of `tensor` itself
// no longer reaches a call.
Tensor alias_of(const Tensor& tensor);

Tensor as_contiguous(const Tensor& tensor);
// A tensor as kernels on the CPU read rows of it: only the feature stride must be 1.
Tensor with_contiguous_rows(const Tensor& tensor);

// The inputs, checked, and the sizes read off them.
class Layer {
 public:
  // `by_length`: whether sequences with lengths are sorted; if not, rows are those of x, and lengths stay where they are.
  explicit Layer(const LayerInputs& inputs, bool by_length = true);

  int64_t seq_len() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t batch() const { return batch_; }
  int64_t input_size() const { return input_size_; }
  int64_t hidden_size() const { return hidden_size_; }
  int64_t output_size() const { return output_size_; }  // P
  int64_t directions() const { return directions_; }
  int64_t rows() const { return offsets_.back(); }
  int64_t x_rows() const { return packed_ ? x_.size(0) : x_.size(0) * x_.size(1); }
  int64_t padded_hidden() const { return (hidden_size_ + kUnitPadding - 1) / kUnitPadding * kUnitPadding; }
  // Multiply-adds of a forward pass.
  double work() const {
    const int64_t columns = info_.gates * (input_size_ + output_size_) + (info_.is_projected() ? output_size_ : 0);
    return static_cast<double>(rows()) * static_cast<double>(directions_ * hidden_size_) * static_cast<double>(columns);
  }
  Sizes h_sizes() const { return {directions_, batch_, output_size_}; }
  Sizes c_sizes() const { return {directions_, batch_, hidden_size_}; }
  // What is saved has room for all rows of x, though no sequence may have some of them.
  Sizes gates_sizes() const { return {directions_, x_rows(), info_.saved, padded_hidden()}; }
  Sizes cells_sizes() const { return {directions_, x_rows(), padded_hidden()}; }
  Sizes norms_sizes() const { return {directions_, x_rows(), info_.norms}; }
  Sizes output_sizes() const { return rows_sizes(output_size_); }
  Sizes cell_states_sizes() const { return rows_sizes(hidden_size_); }

  CellKind cell() const { return cell_; }
  const CellInfo& info() const { return info_; }
  DType dtype() const { return dtype_; }
  ScalarType scalar_type() const { return x_.scalar_type(); }
  ScalarType compute_type() const { return dtype_ == DType::kFloat64 ? ScalarType::Double : ScalarType::Float; }
  bool packed() const { return packed_; }
  const std::vector<int64_t>& offsets() const { return offsets_; }  // [T + 1] first row of every step
  // Of sequences that are sorted by their lengths: them, the longest first, so that those of a step are the first ones; T is
  // the length of the first one then, or 0. Else empty.
  const std::vector<int64_t>& order() const { return order_; }
  const LayerSpec& spec() const { return spec_; }  // checked, tensors of our own, contiguous in units
  const Tensor& x() const { return x_; }           // rows contiguous
  const Tensor& h0() const { return h0_; }         // contiguous, as all below
  const std::optional<Tensor>& c0() const { return c0_; }
  const std::vector<Tensor>& weights() const { return weights_; }
  int64_t weights_per_direction() const { return weights_per_direction_; }
  // A weight of a direction; a null pointer for one that is not there.
  char* weight(int64_t direction, WeightKind kind) const {
    return has_weight(kind) ? data(weight_tensor(direction, kind)) : nullptr;
  }
  const Tensor& weight_tensor(int64_t direction, WeightKind kind) const { return weights_[place_of(direction, kind)]; }
  bool has_weight(WeightKind kind) const { return info_.has(kind, has_biases()); }
  bool has_biases() const { return weights_per_direction_ == info_.weights(true); }
  // Where it is among the weights.
  size_t place_of(int64_t direction, WeightKind kind) const {
    return static_cast<size_t>(direction * weights_per_direction_ + info_.place_of(kind, has_biases()));
  }

  LayerOutputs new_outputs(bool save_for_backward) const;

 private:
  // Of a tensor with so many units of each direction in every row.
  Sizes rows_sizes(int64_t units) const {
    if (packed_) return {x_.size(0), directions_ * units};
    return {x_.size(0), batch_, directions_ * units};
  }
  void offsets_of(const Tensor& batch_sizes);
  void offsets_of(int64_t seq_len, int64_t batch);
  void take_lengths(bool are_read);
  void offsets_of_lengths(const Tensor& lengths);
  void take_transition();
  void take_weights(const std::vector<Tensor>& weights);

  LayerSpec spec_;
  const CellKind cell_;
  const CellInfo& info_;
  const bool packed_;
  DType dtype_;
  int64_t batch_, input_size_, hidden_size_, output_size_, directions_;
  Tensor x_, h0_;
  std::optional<Tensor> c0_;
  std::vector<Tensor> weights_;
  int64_t weights_per_direction_;
  std::vector<int64_t> offsets_, order_;
};

// What backward reads, checked and with contiguous rows (states and what forward saved: contiguous), and its results.
struct LayerBackwardTensors {
  Tensor output;
  std::optional<Tensor> grad_output, grad_h_n, grad_c_n, grad_cells;
  LayerSaved saved;
  InputGradients results;

  LayerBackwardTensors(const Layer& layer, const LayerGradients& grads, const Tensor& output, const LayerSaved& saved,
                       const std::vector<bool>& needs_grad);

  const Tensor& weight_tensor(const Layer& layer, int64_t direction, WeightKind kind) const {
    return results.weights[layer.place_of(direction, kind)];
  }
  // The gradient of a weight of a direction; null where there is nothing to compute.
  char* weight(const Layer& layer, int64_t direction, WeightKind kind) const {
    return layer.has_weight(kind) ? result_data(weight_tensor(layer, direction, kind)) : nullptr;
  }
};

}  // namespace seqkernels
