// Frozen modules on the host: how weights are packed and unpacked, and one call, layer after layer, by one thread or a team.
#include "frozen.h"

#include <algorithm>
#include <array>

#include "dispatch.h"
#include "run.h"

namespace seqkernels {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the panels of a stage hold, of weights with `pack` numbers to a pack.
struct PanelSizes {
  int64_t units, gates;
  std::vector<WeightKind> vectors;     // float32, one number for each row
  int64_t input_packs, operand_packs;  // of a gate

  PanelSizes(const CellInfo& cell, int stage, const StackSizes& sizes, int64_t input_size, int64_t pack) {
    const bool is_last = stage == cell.stages - 1, is_norm = is_last && cell.has_weight[kCellNorm];
    const bool is_projection = is_last && cell.is_projected(), has_input = !is_norm && !is_projection;
    units = is_projection ? sizes.output_size : sizes.hidden_size;
    gates = cell.stage_gates[stage];
    const auto candidates =
        is_norm ? std::vector{kCellNorm, kCellNormBias} : std::vector{kInputBias, kHiddenBias, kInputNorm, kHiddenNorm};
    for (const WeightKind kind : candidates)
      if (!is_projection && cell.has_weight[kind]) vectors.push_back(kind);
    input_packs = has_input ? ceil_div(input_size, pack) : 0;
    operand_packs = is_norm ? 0 : ceil_div(stage == 0 ? sizes.output_size : sizes.hidden_size, pack);
  }
  int64_t packs() const { return int64_t(vectors.size()) + input_packs + operand_packs; }
  int64_t size(int64_t lanes) const { return ceil_div(units, lanes) * packs() * gates * lanes; }
};

}  // namespace

Frozen::Frozen(CellKind cell, DType weights, const StackSizes& sizes, const std::vector<const void*>& parameters)
    : kernels_(cpu_kernels()), cell_(cell), weights_(weights), sizes_(sizes) {
  const int64_t pack = weights == DType::kBFloat16 ? 2 : 1;
  for (int64_t i = 0; i < sizes.layers * sizes.directions; ++i) {
    const int64_t input_size = i < sizes.directions ? sizes.input_size : sizes.directions * sizes.output_size;
    directions_.push_back({input_size, packs_});
    for (int stage = 0; stage < cell_info(cell).stages; ++stage)
      packs_ += PanelSizes(cell_info(cell), stage, sizes, input_size, pack).size(kernels_.lanes);
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
    parameters += frozen_parameters(cell_);
  }
}

template <class W, class Move>
void Frozen::each_weight(const PackedDirection& direction, void* const* parameters, const Move& move) const {
  constexpr int64_t kPack = sizeof(float) / sizeof(W);
  const CellInfo& cell = cell_info(cell_);
  const int64_t lanes = kernels_.lanes;
  const auto parameter = [&](WeightKind kind) { return parameters[cell.place_of(kind, true)]; };
  float* panels = packed() + direction.begin;  // of a stage
  int64_t first_row = 0;                       // of its gates
  for (int stage = 0; stage < cell.stages; ++stage) {
    const PanelSizes sizes(cell, stage, sizes_, direction.input_size, kPack);
    const bool is_projection = cell.is_projected() && stage == cell.stages - 1;
    const int64_t stride = sizes.gates * lanes;  // packs of all gates of the stage, from one along K to the next
    for (int64_t u = 0; u < sizes.units; ++u)
      for (int64_t g = 0; g < sizes.gates; ++g) {
        float* const column = panels + u / lanes * sizes.packs() * stride + g * lanes + u % lanes;
        const bool has_own_rows = is_projection || sizes.operand_packs == 0;  // which are not of all gates
        const int64_t row = (has_own_rows ? 0 : first_row) + g * sizes.units + u;
        const auto move_row = [&](void* weight, int64_t size, int64_t first) {
          W* const plain = static_cast<W*>(weight) + row * size;
          W* const packed = reinterpret_cast<W*>(column + (int64_t(sizes.vectors.size()) + first) * stride);
          for (int64_t k = 0; k < size; ++k) move(packed[k / kPack * stride * kPack + k % kPack], plain[k]);
        };
        for (size_t i = 0; i < sizes.vectors.size(); ++i)
          if (void* const vector = parameter(sizes.vectors[i]))
            move(column[int64_t(i) * stride], static_cast<float*>(vector)[row]);
        if (sizes.input_packs > 0) move_row(parameter(kInputWeight), direction.input_size, 0);
        if (sizes.operand_packs > 0)
          move_row(parameter(is_projection ? kProjection : kHiddenWeight),
                   stage == 0 ? sizes_.output_size : sizes_.hidden_size, sizes.input_packs);
      }
    panels += sizes.size(lanes);
    first_row += sizes.gates * sizes.units;
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
  FrozenArguments sizes{};
  sizes.batch = call.batch, sizes.directions = sizes_.directions;
  sizes.hidden_size = sizes_.hidden_size, sizes.output_size = sizes_.output_size;
  const Scratch scratch(kernels.scratch(sizes) * int64_t(sizeof(float)));
  run_team(team_threads(work(call.seq_len * call.batch)), 1, [&](Team* team, Member member) {
    stack.for_layers([&](const LayerCall& layer) {
      FrozenArguments p = sizes;
      p.seq_len = call.seq_len, p.input_size = layer.input_size, p.norm_eps = call.norm_eps;
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
