// Frozen modules on the host: how weights are packed and unpacked, and one call, layer after layer, by one thread or a team.
#include "frozen.h"

#include <algorithm>

#include "dispatch.h"
#include "run.h"

namespace seqkernels {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Frozen::Frozen(CellKind cell, DType weights, const StackSizes& sizes, const std::vector<const void*>& parameters)
    : kernels_(cpu_kernels()), cell_(cell), weights_(weights), sizes_(sizes) {
  const int64_t pack = weights == DType::kBFloat16 ? 2 : 1, panels = ceil_div(sizes.hidden_size, kernels_.lanes);
  for (int64_t i = 0; i < sizes.layers * sizes.directions; ++i) {
    const int64_t input_size = i < sizes.directions ? sizes.input_size : sizes.directions * sizes.hidden_size;
    directions_.push_back({input_size, packs_});
    packs_ += panels * (2 + ceil_div(input_size, pack) + ceil_div(sizes.hidden_size, pack)) * cell_info(cell).gates *
              kernels_.lanes;
  }
  packed_ = new_memory(packs_ * int64_t(sizeof(float)));
  std::fill_n(packed(), packs_, 0.0f);
  each(const_cast<void* const*>(parameters.data()), [](auto& packed, auto& plain) { packed = plain; });
}

void Frozen::unpack(const std::vector<void*>& parameters) const {
  each(parameters.data(), [](auto& packed, auto& plain) { plain = packed; });
}

// move(packed, plain) for every parameter that is not null.
template <class Move>
void Frozen::each(void* const* parameters, const Move& move) const {
  for (const PackedDirection& direction : directions_) {
    if (weights_ == DType::kBFloat16)
      each_weight<Bf16>(direction, parameters, move);
    else
      each_weight<float>(direction, parameters, move);
    parameters += 4;
  }
}

template <class W, class Move>
void Frozen::each_weight(const PackedDirection& direction, void* const* parameters, const Move& move) const {
  constexpr int64_t kPack = sizeof(float) / sizeof(W);
  const CellInfo& cell = cell_info(cell_);
  const int64_t lanes = kernels_.lanes, hidden = sizes_.hidden_size;
  const int64_t input_packs = ceil_div(direction.input_size, kPack), packs = input_packs + ceil_div(hidden, kPack);
  float* panels = packed() + direction.begin;  // of a stage
  int64_t first_row = 0;                       // of its gates
  for (int stage = 0; stage < cell.stages; ++stage) {
    const int64_t gates = cell.stage_gates[stage];
    const int64_t stride = gates * lanes;  // packs of all gates of the stage, from one along K to the next
    for (int64_t u = 0; u < hidden; ++u)
      for (int64_t g = 0; g < gates; ++g) {
        float* const biases = panels + u / lanes * (2 + packs) * stride + g * lanes + u % lanes;
        const int64_t row = first_row + g * hidden + u;
        const auto move_row = [&](void* weight, int64_t size, int64_t first) {
          W* const plain = static_cast<W*>(weight) + row * size;
          W* const packed = reinterpret_cast<W*>(biases + (2 + first) * stride);
          for (int64_t k = 0; k < size; ++k) move(packed[k / kPack * stride * kPack + k % kPack], plain[k]);
        };
        move_row(parameters[0], direction.input_size, 0);
        move_row(parameters[1], hidden, input_packs);
        for (int side = 0; side < 2; ++side)
          if (void* const bias = parameters[2 + side]) move(biases[side * stride], static_cast<float*>(bias)[row]);
      }
    panels += ceil_div(hidden, lanes) * (2 + packs) * stride;
    first_row += gates * hidden;
  }
}

double Frozen::work(int64_t rows) const {
  return static_cast<double>(rows) * static_cast<double>(packs_) * (weights_ == DType::kBFloat16 ? 2 : 1);
}

void Frozen::run(const StackCall& call) const {
  const FrozenKernels& kernels = kernels_.frozen[int(cell_)];
  const auto kernel = weights_ == DType::kBFloat16 ? kernels.bfloat16 : kernels.float32;
  const auto floats = [](char* data) { return reinterpret_cast<float*>(data); };
  const Stack stack(call);
  const CellInfo& cell = cell_info(cell_);
  const int64_t handed_on = (cell.stages - 1 + cell.carried) * sizes_.directions * call.batch * sizes_.hidden_size;
  const Scratch scratch(handed_on * int64_t(sizeof(float)));
  run_team(team_threads(work(call.seq_len * call.batch)), 1, [&](Team* team, Member member) {
    stack.for_layers([&](const LayerCall& layer) {
      FrozenArguments p{};
      p.seq_len = call.seq_len, p.batch = call.batch;
      p.input_size = layer.input_size, p.hidden_size = sizes_.hidden_size, p.directions = sizes_.directions;
      for (int64_t d = 0; d < sizes_.directions; ++d)
        p.packed[d] = packed() + directions_[static_cast<size_t>(layer.index * sizes_.directions + d)].begin;
      p.x = layer.x, p.output = layer.output;
      p.h0 = floats(layer.h0), p.c0 = floats(layer.c0), p.h_n = floats(layer.h_n), p.c_n = floats(layer.c_n);
      p.scratch = floats(scratch.get());
      p.team = team;
      kernel(p, member);
    });
  });
}

}  // namespace seqkernels
