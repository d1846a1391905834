// A layer on CUDA: the matrix products before and after the time loop, and what the kernels need to know.
//
// Going forward, the input gates are made for as many steps as kGatesBytes hold, then these steps are run. Going back, the
// time loop leaves the gradients of all gates, and products over all rows make those of x, the weights and the biases.
#include "../layer.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>

#include "matrix.h"
#include "time_loop.h"

namespace seqkernels {
namespace {

using cuda::Device;
using cuda::window;

#if !defined(SEQKERNELS_GATES_BYTES)
#define SEQKERNELS_GATES_BYTES (int64_t{256} << 20)
#endif
constexpr int64_t kGatesBytes = SEQKERNELS_GATES_BYTES;

// A layer whose rows are those of x, and whose steps kernels can count.
Layer layer_of(const LayerInputs& inputs) {
  constexpr int64_t kMostSteps = std::numeric_limits<int>::max();
  const Tensor& of_steps = inputs.spec.batch_sizes ? *inputs.spec.batch_sizes : inputs.x;
  if (of_steps.dim() > 0 && of_steps.size(0) > kMostSteps)
    fail("x must have at most ", kMostSteps, " steps on CUDA, got ", of_steps.size(0));
  return Layer(inputs, false);
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(as_contiguous(*tensor)) : std::nullopt;
}

// What happens to states between steps, and the memory that it lies in.
struct LayerTransition {
  explicit LayerTransition(const LayerSpec& spec)
      : resets(contiguous(spec.reset_mask)),
        zoneout_h(contiguous(spec.zoneout_h)),
        zoneout_c(contiguous(spec.zoneout_c)),
        pointers{reinterpret_cast<const uint8_t*>(data(resets)),
                 reinterpret_cast<const int64_t*>(data(spec.lengths)),
                 data(spec.recurrent_mask),
                 reinterpret_cast<const uint8_t*>(data(zoneout_h)),
                 reinterpret_cast<const uint8_t*>(data(zoneout_c)),
                 spec.zoneout_h_rate,
                 spec.zoneout_c_rate} {}

  const std::optional<Tensor> resets, zoneout_h, zoneout_c;
  const cuda::Transition pointers;
};

// Rows that belong to no sequence are zero, where a layer has such rows.
void clear_padding(const Device& device, const Layer& layer, const std::optional<Tensor>& rows) {
  if (layer.spec().lengths && rows && rows->numel() > 0) device.fill(*rows, 0);
}

// The first row of each time of a packed sequence, [T + 1], on the device.
std::optional<Tensor> device_offsets(const Device& device, const Layer& layer) {
  if (!layer.packed()) return std::nullopt;
  const std::vector<int64_t>& offsets = layer.offsets();
  const auto size = static_cast<int64_t>(offsets.size());
  const Tensor on_device = new_tensor({size}, ScalarType::Long, layer.x());
  auto* to = static_cast<int64_t*>(on_device.data_ptr());
  for (int64_t first = 0; first < size; first += cuda::OffsetsPart::kSize) {
    cuda::OffsetsPart part{first, std::min<int64_t>(cuda::OffsetsPart::kSize, size - first), {}};
    std::copy_n(offsets.begin() + first, part.count, part.values);
    void* arguments[] = {&part, &to};
    device.launch(cuda::write_offsets_kernel(), {1, 256}, arguments);
  }
  return on_device;
}

cuda::Shape shape_of(const Layer& layer, const std::optional<Tensor>& offsets) {
  return {static_cast<int>(layer.directions()),
          static_cast<int>(layer.batch()),
          static_cast<int>(layer.hidden_size()),
          static_cast<int>(layer.padded_hidden()),
          layer.seq_len(),
          layer.rows(),
          offsets ? static_cast<const int64_t*>(offsets->data_ptr()) : nullptr,
          layer.spec().reverse ? 0 : 1};
}

template <class Problem>
cuda::Projected<Problem> problem_of(const Layer& layer, const std::optional<Tensor>& offsets) {
  cuda::Projected<Problem> problem{};
  problem.shape = shape_of(layer, offsets);
  problem.projection.outputs = static_cast<int>(layer.output_size());
  problem.row_bytes = cuda::row_bytes_of(problem.shape, layer.info(), problem.projection.outputs, layer.dtype());
  problem.h0 = data(layer.h0());
  problem.c0 = data(layer.c0());
  return problem;
}

Tensor as_rows(const Layer& layer, const Tensor& tensor, int64_t features) {
  return window(as_contiguous(tensor), {layer.rows(), features});
}

// Of a normalised cell; other kernels read none of it.
cuda::Norms norms_of(const Layer& layer) {
  cuda::Norms norms{};
  if (!layer.info().is_normalized()) return norms;
  norms.eps = layer.spec().norm_eps;
  for (int kind = 0; kind < cuda::kNormKinds; ++kind)
    for (int64_t d = 0; d < layer.directions(); ++d) {
      norms.weights[kind][d] = layer.weight(d, cuda::kNormWeights[kind][0]);
      norms.biases[kind][d] = layer.weight(d, cuda::kNormWeights[kind][1]);
    }
  return norms;
}

void run_forward(const Device& device, const Layer& layer, cuda::Projected<cuda::ForwardProblem>& problem,
                 const cuda::Norms& norms) {
  const int64_t wide = layer.info().gates * layer.hidden_size(), steps = layer.seq_len();
  const Tensor x = as_rows(layer, layer.x(), layer.input_size());
  const int64_t element = layer.dtype() == DType::kFloat64 ? 8 : 4;
  const int64_t rows_at_once = kGatesBytes / (element * layer.directions() * wide);
  const int64_t steps_at_once = std::clamp<int64_t>(rows_at_once / layer.batch(), 1, std::max<int64_t>(steps, 1));
  const int64_t most_rows = std::min(steps_at_once * layer.batch(), layer.rows());
  const Tensor gates = new_tensor({layer.directions(), most_rows, wide}, layer.compute_type(), layer.x());
  const cuda::TimeLoop loop(device, layer, true);
  do {
    problem.steps = std::min(steps_at_once, steps - problem.first_step);
    for (int64_t d = 0; d < layer.directions(); ++d) {
      const int64_t last = problem.first_step + problem.steps;
      const int64_t begin = problem.shape.is_reverse(static_cast<int>(d)) ? steps - last : problem.first_step;
      const int64_t first_row = layer.offsets()[size_t(begin)];
      const int64_t rows = layer.offsets()[size_t(begin + problem.steps)] - first_row;
      const Tensor input_gates = window(gates, {rows, wide}, d * most_rows * wide);
      problem.input_gates[d] = data(input_gates);
      cuda::multiply(window(x, {rows, layer.input_size()}, first_row * layer.input_size()),
                     cuda::transposed(layer.weight_tensor(d, kInputWeight)), input_gates);
    }
    loop.run(problem, norms);
    problem.first_step += problem.steps;
  } while (problem.first_step < steps);
}

// Gradients of the gates, [R, D, G H]; of some gates of one direction [R, gates H].
Tensor of_direction(const Layer& layer, const Tensor& dgates, int64_t direction, int64_t first_gate, int64_t gates) {
  const int64_t hidden = layer.hidden_size(), wide = layer.info().gates * hidden;
  return window(dgates, {layer.rows(), gates * hidden}, {layer.directions() * wide, 1},
                direction * wide + first_gate * hidden);
}
Tensor of_direction(const Layer& layer, const Tensor& dgates, int64_t direction) {
  return of_direction(layer, dgates, direction, 0, layer.info().gates);
}

// How many blocks share so many units of rows, of `seq_len` times.
int blocks_of_rows(const Layer& layer, int64_t units) {
  constexpr int64_t kUnitsOfBlock = 1024;
  return static_cast<int>(std::clamp<int64_t>(std::max(layer.seq_len(), units / kUnitsOfBlock), 1, 1 << 16));
}

// x as rows; where sequences have lengths, with zeros beyond.
Tensor rows_of_steps(const Device& device, const Layer& layer, cuda::Shape shape, cuda::Transition transition) {
  const Tensor x = as_rows(layer, layer.x(), layer.input_size());
  if (!transition.lengths || x.numel() == 0) return x;
  const Tensor copy = new_tensor({layer.rows(), layer.input_size()}, layer.scalar_type(), layer.x());
  shape.directions = 1, shape.hidden = static_cast<int>(layer.input_size());
  void *from = data(x), *to = data(copy);
  void* arguments[] = {&shape, &from, &to, &transition};
  device.launch(cuda::row_kernels(layer.dtype()).rows_of_steps, {blocks_of_rows(layer, x.numel()), 256}, arguments);
  return copy;
}

// The state that each row's step began with, [D, R, P].
Tensor previous_states(const Device& device, const Layer& layer, cuda::Shape shape, const Tensor& output,
                       cuda::Transition transition) {
  const Tensor previous =
      new_tensor({layer.directions(), layer.rows(), layer.output_size()}, layer.scalar_type(), output);
  shape.hidden = static_cast<int>(layer.output_size());
  void *from = data(output), *h0 = data(layer.h0()), *to = data(previous);
  void* arguments[] = {&shape, &from, &h0, &to, &transition};
  const int blocks = blocks_of_rows(layer, previous.numel());
  device.launch(cuda::row_kernels(layer.dtype()).previous_states, {blocks, 256}, arguments);
  return previous;
}

// What each stage multiplies with its rows of W_hh or with W_hr: the first one the state that each row's step began with,
// [D, R, P], each later one what the stage before it has made, [D, R, H].
std::vector<Tensor> operands_of(const Device& device, const Layer& layer, cuda::Shape& shape, const Tensor& output,
                                const LayerSaved& saved, cuda::Transition transition) {
  std::vector<Tensor> operands{previous_states(device, layer, shape, output, transition)};
  const cuda::PassKernels& kernels = cuda::kernels_of(layer.cell(), layer.dtype(), false).backward;
  for (int stage = 1; stage < kernels.stages; ++stage) {
    operands.push_back(
        new_tensor({layer.directions(), layer.rows(), layer.hidden_size()}, layer.scalar_type(), output));
    void *gates = data(saved.gates), *states = data(output), *h0 = data(layer.h0()), *cells = data(saved.cells);
    void *c0 = data(layer.c0()), *to = data(operands.back());
    void* arguments[] = {&shape, &gates, &states, &h0, &cells, &c0, &to, &transition};
    device.launch(kernels.stage[stage].operands, {blocks_of_rows(layer, operands.back().numel()), 256}, arguments);
  }
  return operands;
}

// dW_hh of one direction, stage by stage, but for a projection's.
void hidden_weight_gradients(const Layer& layer, const Tensor& dgates, const std::vector<Tensor>& operands,
                             int64_t direction, const Tensor& grad_w) {
  const int64_t rows = layer.rows(), hidden = layer.hidden_size(), columns = layer.output_size();
  int64_t first_gate = 0;
  for (size_t stage = 0; stage < operands.size() - layer.info().is_projected(); ++stage) {
    const int64_t gates = layer.info().stage_gates[stage];
    cuda::multiply(cuda::transposed(of_direction(layer, dgates, direction, first_gate, gates)),
                   window(operands[stage], {rows, columns}, direction * rows * columns),
                   window(grad_w, {gates * hidden, columns}, first_gate * hidden * columns));
    first_gate += gates;
  }
}

// dW_hr of one direction; `dgates` are the gradients of h, [R, D, P].
void projection_gradient(const Layer& layer, const Tensor& dgates, const Tensor& operands, int64_t direction,
                         const Tensor& grad_w) {
  const int64_t rows = layer.rows(), hidden = layer.hidden_size(), outputs = layer.output_size();
  const Tensor own = window(dgates, {rows, outputs}, {layer.directions() * outputs, 1}, direction * outputs);
  cuda::multiply(cuda::transposed(own), window(operands, {rows, hidden}, direction * rows * hidden), grad_w);
}

void input_gradients(const Layer& layer, const Tensor& dgates, const Tensor& grad_x) {
  const int64_t wide = layer.directions() * layer.info().gates * layer.hidden_size(), input = layer.input_size();
  // One product over the gates of both directions, so that their sum is rounded once.
  cuda::multiply(window(dgates, {layer.rows(), wide}),
                 window(cuda::stacked_weights(layer, kInputWeight), {wide, input}),
                 window(grad_x, {layer.rows(), input}));
}

// The gradients of the factors and biases of one direction's norms.
void norm_gradients(const Device& device, const Layer& layer, cuda::Shape& shape, const cuda::Norms& norms,
                    const LayerBackwardTensors& tensors, int64_t direction) {
  constexpr int kRowThreads = 512, kFewestRows = 128;  // of a part
  const cuda::PassKernels& kernels = cuda::kernels_of(layer.cell(), layer.dtype(), false).backward;
  const int64_t element = layer.dtype() == DType::kFloat64 ? 8 : 4;
  for (int kind = 0; kind < cuda::kNormKinds; ++kind) {
    const int64_t numbers =
        layer.info()
            .size_of(cuda::kNormWeights[kind][1], layer.input_size(), layer.hidden_size(), layer.output_size())
            .rows;
    const int64_t blocks = std::clamp<int64_t>((numbers + 31) / 32, 1, 1 << 16);
    // As many as keep every multiprocessor busy.
    const int64_t parts = std::clamp<int64_t>(2 * device.limits().multiprocessors / blocks, 1,
                                              std::max<int64_t>(layer.rows() / kFewestRows, 1));
    std::optional<Tensor> sums[2];  // of weight and bias
    for (int i = 0; i < 2; ++i)
      if (tensors.weight(layer, direction, cuda::kNormWeights[kind][i]))
        sums[i] = new_tensor({parts, numbers}, layer.compute_type(), layer.x());
    if (!sums[0] && !sums[1]) continue;
    cuda::NormGradients gradients{cuda::NormKind(kind),
                                  static_cast<int>(direction),
                                  norms.dgates,
                                  data(tensors.saved.gates),
                                  static_cast<int>(parts),
                                  data(sums[0]),
                                  data(sums[1])};
    void* arguments[] = {&shape, &gradients};
    device.launch(kernels.norm_gradients, {static_cast<int>(blocks * parts), kRowThreads, 2 * kRowThreads * element},
                  arguments);
    for (int i = 0; i < 2; ++i)
      if (sums[i]) {
        const Tensor sum = new_tensor({numbers}, layer.compute_type(), layer.x());
        cuda::sum_rows(*sums[i], sum);
        Tensor result = tensors.weight_tensor(layer, direction, cuda::kNormWeights[kind][i]);
        torch::stable::copy_(result, sum);
      }
  }
}

}  // namespace

LayerOutputs layer_forward_cuda(const LayerInputs& inputs, bool save_for_backward) {
  const Layer layer = layer_of(inputs);
  const Device device(layer.x());
  LayerOutputs out = layer.new_outputs(save_for_backward);
  if (layer.batch() == 0) return out;
  const std::optional<Tensor> offsets = device_offsets(device, layer);
  std::optional<Tensor> c_carry;
  if (layer.info().has_cell_state) c_carry = new_tensor(layer.c_sizes(), layer.compute_type(), layer.x());

  auto problem = problem_of<cuda::ForwardProblem>(layer, offsets);
  for (int64_t d = 0; d < layer.directions(); ++d) {
    problem.b_ih[d] = layer.weight(d, kInputBias);
    problem.b_hh[d] = layer.weight(d, kHiddenBias);
  }
  const LayerTransition transition(layer.spec());
  problem.transition = transition.pointers;
  clear_padding(device, layer, out.output);
  clear_padding(device, layer, out.cell_states);
  if (save_for_backward && layer.info().is_normalized())  // sums over all rows multiply these
    clear_padding(device, layer, out.saved.gates);
  if (layer.spec().return_cell_states) problem.cell_states = data(out.cell_states);
  problem.output = data(out.output);
  problem.h_n = data(out.h_n);
  problem.c_n = data(out.c_n);
  problem.c_carry = data(c_carry);
  if (save_for_backward) {
    problem.gates = data(out.saved.gates);
    problem.cells = data(out.saved.cells);
  }
  cuda::Norms norms = norms_of(layer);
  if (save_for_backward) norms.scales = data(out.saved.norms);
  run_forward(device, layer, problem, norms);
  return out;
}

InputGradients layer_backward_cuda(const LayerInputs& inputs, const LayerGradients& grads, const Tensor& output,
                                   const LayerSaved& saved, const std::vector<bool>& needs_grad) {
  const Layer layer = layer_of(inputs);
  const Device device(layer.x());
  LayerBackwardTensors tensors(layer, grads, output, saved, needs_grad);
  const std::optional<Tensor> offsets = device_offsets(device, layer);
  const Tensor states = as_contiguous(tensors.output);
  std::optional<Tensor> grad_output;
  if (tensors.grad_output) grad_output = as_contiguous(*tensors.grad_output);
  const std::optional<Tensor> grad_cells = contiguous(tensors.grad_cells);
  const Sizes dgates_sizes{layer.rows(), layer.directions(), layer.info().gates * layer.hidden_size()};
  const Tensor input_dgates = new_tensor(dgates_sizes, layer.scalar_type(), layer.x());
  const bool differ = layer.info().has_hidden_dgates;
  const Tensor hidden_dgates = differ ? new_tensor(dgates_sizes, layer.scalar_type(), layer.x()) : input_dgates;

  std::optional<Tensor> output_dgates;  // of a projection
  if (layer.info().is_projected())
    output_dgates = new_tensor({layer.rows(), layer.directions(), layer.output_size()}, layer.scalar_type(), layer.x());
  std::optional<Tensor> normalized_dgates;  // what a normalised cell's backward pass writes
  cuda::Norms norms = norms_of(layer);
  if (layer.info().is_normalized()) {
    const Sizes sizes{layer.rows(), layer.directions(), layer.info().dgates * layer.hidden_size()};
    normalized_dgates = new_tensor(sizes, layer.scalar_type(), layer.x());
    norms.dgates = data(normalized_dgates);
    norms.scales = data(tensors.saved.norms);
  }

  auto problem = problem_of<cuda::BackwardProblem>(layer, offsets);
  const LayerTransition transition(layer.spec());
  problem.transition = transition.pointers;
  clear_padding(device, layer, input_dgates);
  if (differ) clear_padding(device, layer, hidden_dgates);
  clear_padding(device, layer, output_dgates);
  clear_padding(device, layer, normalized_dgates);
  problem.grad_output = data(grad_output);
  problem.grad_cells = data(grad_cells);
  problem.grad_h_n = data(tensors.grad_h_n);
  problem.grad_c_n = data(tensors.grad_c_n);
  problem.output = data(states);
  problem.gates = data(tensors.saved.gates);
  problem.cells = data(tensors.saved.cells);
  problem.input_dgates = data(input_dgates);
  problem.hidden_dgates = differ ? data(hidden_dgates) : nullptr;
  problem.projection.dgates = data(output_dgates);
  problem.grad_h0 = result_data(tensors.results.h0);
  if (tensors.results.c0) problem.grad_c0 = result_data(*tensors.results.c0);
  if (layer.batch() > 0) cuda::TimeLoop(device, layer, false).run(problem, norms);

  if (result_data(tensors.results.x)) input_gradients(layer, input_dgates, tensors.results.x);
  std::optional<Tensor> x;
  std::vector<Tensor> operands;
  for (int64_t d = 0; d < layer.directions(); ++d) {
    const auto wants = [&](WeightKind kind) { return tensors.weight(layer, d, kind) != nullptr; };
    const auto result = [&](WeightKind kind) -> const Tensor& { return tensors.weight_tensor(layer, d, kind); };
    const Tensor to_input = of_direction(layer, input_dgates, d), to_hidden = of_direction(layer, hidden_dgates, d);
    if (wants(kInputWeight)) {
      if (!x) x = rows_of_steps(device, layer, problem.shape, problem.transition);
      cuda::multiply(cuda::transposed(to_input), *x, result(kInputWeight));
    }
    if (operands.empty() && (wants(kHiddenWeight) || wants(kProjection)))
      operands = operands_of(device, layer, problem.shape, states, tensors.saved, problem.transition);
    if (wants(kHiddenWeight)) hidden_weight_gradients(layer, hidden_dgates, operands, d, result(kHiddenWeight));
    if (wants(kProjection)) projection_gradient(layer, *output_dgates, operands.back(), d, result(kProjection));
    if (layer.info().is_normalized()) {  // biases come after the norms
      norm_gradients(device, layer, problem.shape, norms, tensors, d);
      continue;
    }
    if (wants(kInputBias)) cuda::sum_rows(to_input, result(kInputBias));
    if (wants(kHiddenBias) && wants(kInputBias) && !differ) {  // the same sums
      Tensor of_hidden = result(kHiddenBias);
      torch::stable::copy_(of_hidden, result(kInputBias));
    } else if (wants(kHiddenBias)) {
      cuda::sum_rows(to_hidden, result(kHiddenBias));
    }
  }
  return tensors.results;
}

}  // namespace seqkernels
