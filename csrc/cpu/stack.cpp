#include "stack.h"

#include "dispatch.h"
#include "run.h"

namespace seqkernels {

double work_of(CellKind cell, const StackSizes& sizes) {
  const CellInfo& info = cell_info(cell);
  const int64_t above = sizes.directions * sizes.output_size;
  const int64_t columns = sizes.input_size + (sizes.layers - 1) * above + sizes.layers * sizes.output_size;
  const int64_t of_projections = info.is_projected() ? sizes.layers * sizes.output_size : 0;
  return static_cast<double>(sizes.directions * sizes.hidden_size) *
         static_cast<double>(info.gates * columns + of_projections);
}

Stack::Stack(const StackCall& call)
    : call_(call),
      width_(call.sizes.directions * call.sizes.output_size),
      buffer_bytes_(call.seq_len * call.batch * width_ * bytes_of(call.dtype)),
      h_bytes_(call.batch * width_ * bytes_of(call.dtype)),
      c_bytes_(call.batch * call.sizes.directions * call.sizes.hidden_size * bytes_of(call.dtype)),
      between_(call.sizes.layers > 1 ? new_memory(2 * buffer_bytes_) : Memory()) {}

LayerCall Stack::layer_call(int64_t layer) const {
  const auto rows = [&](char* first) { return RowTensor{first, call_.batch * width_, width_}; };
  const auto buffer = [&](int64_t n) { return rows(between_.get() + n % 2 * buffer_bytes_); };
  const auto state = [&](char* first, int64_t bytes) { return first ? first + layer * bytes : nullptr; };
  const bool is_last = layer == call_.sizes.layers - 1;
  const int64_t cell_width = call_.sizes.directions * call_.sizes.hidden_size;
  return {layer,
          layer == 0 ? call_.sizes.input_size : width_,
          layer == 0 ? call_.x : buffer(layer - 1),
          is_last ? rows(call_.output) : buffer(layer),
          is_last ? RowTensor{call_.cell_states, call_.batch * cell_width, cell_width} : RowTensor{},
          state(call_.h0, h_bytes_),
          state(call_.c0, c_bytes_),
          state(call_.h_n, h_bytes_),
          state(call_.c_n, c_bytes_)};
}

void run_stack(CellKind cell, const StackCall& call, const std::vector<Weights>& weights) {
  const int64_t hidden = call.sizes.hidden_size, outputs = call.sizes.output_size, directions = call.sizes.directions;
  std::vector<int64_t> offsets(static_cast<size_t>(call.seq_len) + 1);
  for (size_t t = 0; t < offsets.size(); ++t) offsets[t] = static_cast<int64_t>(t) * call.batch;
  const LayerKernels& kernels = cpu_kernels().cells[int(cell)][int(call.dtype)];
  for (const auto& [result, units] : {std::pair(call.output, outputs), std::pair(call.cell_states, hidden)})
    if (result) want_huge_pages(result, call.seq_len * call.batch * directions * units * bytes_of(call.dtype));
  Stack(call).for_layers([&](const LayerCall& layer) {
    ForwardArguments p{};
    p.shape = {call.seq_len, call.batch, layer.input_size, hidden, outputs, directions, offsets.data(), false};
    p.x = layer.x, p.output = layer.output, p.cell_states = layer.cell_states, p.norm_eps = call.norm_eps;
    p.transition.resets = call.resets;
    p.transition.zoneout_h.rate = call.zoneout_h_rate, p.transition.zoneout_c.rate = call.zoneout_c_rate;
    p.h0 = layer.h0, p.c0 = layer.c0, p.h_n = layer.h_n, p.c_n = layer.c_n;
    for (int64_t d = 0; d < directions; ++d) p.weights[d] = weights[static_cast<size_t>(layer.index * directions + d)];
    const double work = work_of(cell, {layer.input_size, hidden, outputs, 1, directions});
    run_kernel(p, static_cast<double>(call.seq_len * call.batch) * work, kernels.forward_workspace, kernels.forward);
  });
}

}  // namespace seqkernels
