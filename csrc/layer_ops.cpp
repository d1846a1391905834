// The ops of every cell in the registry: their schemas, and what they are in terms of a layer (layer.h).
//
// An op runs one layer in all its directions (D = h0.size(0)). Shapes: x [T, B, I], or packed [R, I] with batch_sizes
// [T]; h0, c0 [D, B, H]; weights per direction w_ih [G H, I], w_hh [G H, H] and, with biases, b_ih, b_hh [G H];
// output [T, B, D H] or [R, D H]. With a projection to P features, h0 is [D, B, P], output [T, B, D P], w_hh [G H, P], and a last
// weight w_hr [P, H] belongs to each direction. `gates` and `cells` are what backward needs, in the layout of the device.
// Backward returns an empty tensor for each gradient that needs_grad (x, the states, each weight) does not ask for.
//
// What may be said of a call beside its tensors is that of LayerSpec; `cell_states` is c of every step, [.., D H], or empty.
//
// Of a cell without cell state, arguments and results of c are left out, and `cells`; `gates` of one that saves none. One that
// is normalised has further weights, norm_ih, norm_hh [G H], norm_c, norm_c_bias [H] as far as it normalises these (kinds.h), and
// an argument norm_eps; it saves `norms`, too.
#include <torch/csrc/stable/library.h>

#include <string>
#include <utility>

#include "layer.h"

namespace seqkernels {
namespace {

// ---- schemas ----

// What may be said of a call beside its tensors: the fields of LayerSpec, in this order.
std::string options(const CellInfo& cell, bool with_defaults) {
  const auto option = [&](const char* declaration, const char* value) {
    return ", " + std::string(declaration) + (with_defaults ? value : "");
  };
  std::string all = option("Tensor? batch_sizes", "=None") + option("bool reverse", "=False") +
                    option("Tensor? lengths", "=None") + option("Tensor? reset_mask", "=None") +
                    option("Tensor? recurrent_mask", "=None") + option("Tensor? zoneout_h", "=None") +
                    option("float zoneout_h_rate", "=0.");
  if (cell.has_cell_state)
    all += option("Tensor? zoneout_c", "=None") + option("float zoneout_c_rate", "=0.") +
           option("bool return_cell_states", "=False");
  return all + (cell.is_normalized() ? option("float norm_eps", "=1e-05") : "");
}

// The names of LayerSaved's tensors.
std::string saved(const CellInfo& cell) {
  return std::string(cell.saved > 0 ? ", Tensor gates" : "") + (cell.has_cell_state ? ", Tensor cells" : "") +
         (cell.is_normalized() ? ", Tensor norms" : "");
}

std::string forward_schema(const CellInfo& cell) {
  const std::string c = cell.has_cell_state ? ", Tensor c0" : "";
  const std::string c_n = cell.has_cell_state ? ", Tensor c_n, Tensor cell_states" : "";
  return std::string(cell.name) + "(Tensor x, Tensor h0" + c + ", Tensor[] weights" + options(cell, true) +
         ", bool save_for_backward=True) -> (Tensor output, Tensor h_n" + c_n + saved(cell) + ")";
}

std::string backward_name(const CellInfo& cell) { return "_" + std::string(cell.name) + "_backward"; }

std::string backward_schema(const CellInfo& cell) {
  const auto c = [&](const char* text) { return std::string(cell.has_cell_state ? text : ""); };
  return backward_name(cell) + "(Tensor? grad_output, Tensor? grad_h_n" +
         c(", Tensor? grad_c_n, Tensor? grad_cell_states") + ", Tensor x, Tensor h0" + c(", Tensor c0") +
         ", Tensor[] weights" + options(cell, false) + ", Tensor output" + saved(cell) +
         ", bool[] needs_grad) -> (Tensor grad_x, Tensor grad_h0" + c(", Tensor grad_c0") + ", Tensor[] grad_weights)";
}

// ---- calls ----

// The arguments of a call, taken off torch's stack in the order of the schema; each is to be taken once.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : stack_(stack) {}
  template <class T>
  T take() {
    return torch::stable::detail::to<T>(stack_[taken_++]);
  }

 private:
  StableIValue* stack_;
  int taken_ = 0;
};

// The results of a call, put where its arguments were.
class Results {
 public:
  explicit Results(StableIValue* stack) : stack_(stack) {}
  template <class T>
  void give(T value) {
    stack_[given_++] = torch::stable::detail::from(std::move(value));
  }

 private:
  StableIValue* stack_;
  int given_ = 0;
};

LayerInputs take_inputs(Arguments& arguments, CellKind cell) {
  LayerInputs inputs;
  inputs.spec.cell = cell;
  inputs.x = arguments.take<Tensor>();
  inputs.h0 = arguments.take<Tensor>();
  if (cell_info(cell).has_cell_state) inputs.c0 = arguments.take<Tensor>();
  inputs.weights = arguments.take<std::vector<Tensor>>();
  LayerSpec& spec = inputs.spec;
  spec.batch_sizes = arguments.take<std::optional<Tensor>>();
  spec.reverse = arguments.take<bool>();
  for (std::optional<Tensor>* tensor : {&spec.lengths, &spec.reset_mask, &spec.recurrent_mask, &spec.zoneout_h})
    *tensor = arguments.take<std::optional<Tensor>>();
  spec.zoneout_h_rate = arguments.take<double>();
  if (cell_info(cell).has_cell_state) {
    spec.zoneout_c = arguments.take<std::optional<Tensor>>();
    spec.zoneout_c_rate = arguments.take<double>();
    spec.return_cell_states = arguments.take<bool>();
  }
  if (cell_info(cell).is_normalized()) spec.norm_eps = arguments.take<double>();
  return inputs;
}

template <int kCell, LayerForward layer_forward>
void forward(StableIValue* stack, uint64_t, uint64_t) {
  constexpr CellInfo cell = cell_info(CellKind(kCell));
  Arguments arguments(stack);
  const LayerInputs inputs = take_inputs(arguments, CellKind(kCell));
  const bool save_for_backward = arguments.take<bool>();
  LayerOutputs out = layer_forward(inputs, save_for_backward);
  Results results(stack);
  results.give(out.output);
  results.give(out.h_n);
  if constexpr (cell.has_cell_state) results.give(*out.c_n), results.give(*out.cell_states);
  if constexpr (cell.saved > 0) results.give(*out.saved.gates);
  if constexpr (cell.has_cell_state) results.give(*out.saved.cells);
  if constexpr (cell.is_normalized()) results.give(*out.saved.norms);
}

template <int kCell, LayerBackward layer_backward>
void backward(StableIValue* stack, uint64_t, uint64_t) {
  constexpr CellInfo cell = cell_info(CellKind(kCell));
  Arguments arguments(stack);
  LayerGradients grads;
  grads.output = arguments.take<std::optional<Tensor>>();
  grads.h_n = arguments.take<std::optional<Tensor>>();
  if constexpr (cell.has_cell_state) {
    grads.c_n = arguments.take<std::optional<Tensor>>();
    grads.cell_states = arguments.take<std::optional<Tensor>>();
  }
  const LayerInputs inputs = take_inputs(arguments, CellKind(kCell));
  const Tensor output = arguments.take<Tensor>();
  LayerSaved saved;
  if constexpr (cell.saved > 0) saved.gates = arguments.take<Tensor>();
  if constexpr (cell.has_cell_state) saved.cells = arguments.take<Tensor>();
  if constexpr (cell.is_normalized()) saved.norms = arguments.take<Tensor>();
  const auto needs_grad = arguments.take<std::vector<bool>>();
  InputGradients found = layer_backward(inputs, grads, output, saved, needs_grad);
  Results results(stack);
  results.give(found.x);
  results.give(found.h0);
  if constexpr (cell.has_cell_state) results.give(*found.c0);
  results.give(found.weights);
}

// ---- registration ----

using Library = torch::stable::detail::StableLibrary;
using AllCells = std::make_integer_sequence<int, kCellKinds>;

template <int kCell, LayerForward layer_forward, LayerBackward layer_backward>
void implement(Library& m) {
  constexpr CellInfo cell = cell_info(CellKind(kCell));
  m.impl(cell.name, &forward<kCell, layer_forward>);
  m.impl(backward_name(cell).c_str(), &backward<kCell, layer_backward>);
}

template <LayerForward layer_forward, LayerBackward layer_backward, int... kCells>
void implement_all(Library& m, std::integer_sequence<int, kCells...>) {
  (implement<kCells, layer_forward, layer_backward>(m), ...);
}

STABLE_TORCH_LIBRARY(seqkernels, m) {
  for (const CellInfo& cell : kCellInfos.of) {
    m.def(forward_schema(cell).c_str());
    m.def(backward_schema(cell).c_str());
  }
}

STABLE_TORCH_LIBRARY_IMPL(seqkernels, CPU, m) { implement_all<layer_forward_cpu, layer_backward_cpu>(m, AllCells()); }

#if defined(SEQKERNELS_CUDA_TARGETS)
STABLE_TORCH_LIBRARY_IMPL(seqkernels, CUDA, m) {
  implement_all<layer_forward_cuda, layer_backward_cuda>(m, AllCells());
}
#endif

}  // namespace
}  // namespace seqkernels
