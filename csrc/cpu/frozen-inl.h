// A layer whose weights were packed once, for many calls of few rows. Compiled once per ISA.
//
// Nothing but the weights is large then, so all is arranged for reading them: a panel holds all gates of one vector of
// units (those of one stage), and a step reads it from end to end, as one stream. h is read where the step before wrote it, in
// the output, and c is kept in c_n, so cells of a single stage need no scratch memory.
//
// Type parameters: Cell is one of cells/*.h, W the type of the packed weights; sums and states are float32. A pack is
// 32 bits of weights: kPack numbers that follow each other in K.
#pragma once
#include "activations-inl.h"
#include "gemm/gemm-inl.h"
#include "team.h"

namespace seqkernels::SEQKERNELS_ISA {

// The weights in one vector of packs (FrozenArguments says how they lie).
template <class W>
struct PackedWeights;
template <>
struct PackedWeights<float> {
  static constexpr int kPack = 1;
  SEQKERNELS_INLINE static void unpack(const float* packs, VecF::Raw* w) { w[0] = load(packs).raw; }
};
template <>
struct PackedWeights<Bf16> {
  static constexpr int kPack = 2;
  SEQKERNELS_INLINE static void unpack(const float* packs, VecF::Raw* w) {
    const VecF::Raw pairs = load(packs).raw;
    w[0] = Bf16VnniFormat::first(pairs), w[1] = Bf16VnniFormat::second(pairs);
  }
};

template <class Cell, class W>
class FrozenForward {
 protected:
  using V = VecF;
  using Raw = V::Raw;
  static constexpr int kLanes = V::kLanes, kPack = PackedWeights<W>::kPack, kStages = Cell::kStages;
  static constexpr int kAllGates = cells::first_gate<Cell>(kStages);  // with that of a projection
  static constexpr int64_t kPrefetch = 2048 / sizeof(float);          // packs ahead
  template <int stage>
  static constexpr int kMaxRows = int(min(4, max_rows(Cell::kStageGates[stage])));

 public:
  explicit FrozenForward(const FrozenArguments& arguments)
      : p_(arguments),
        outputs_(Cell::kIsProjected ? p_.output_size : p_.hidden_size),
        input_packs_(ceil_div(p_.input_size, kPack)),
        states_(p_.directions * p_.batch * p_.hidden_size) {}

  // Numbers of scratch memory: operands [stages - 1, D, B, H], then carried values [carried, D, B, H].
  int64_t scratch() const { return (kStages - 1 + Cell::kCarried) * states_; }

  void run(Member member) const {
    const FlushDenormals flush;
    for (int64_t i = 0; i < p_.seq_len; ++i)
      for_indices<kStages>([&](auto stage) {
        const int64_t panels = ceil_div(units<stage.value>(), kLanes);
        const Range own = share(p_.directions * panels, member.rank, member.size);
        const RowTiles tiles(p_.batch, kMaxRows<stage.value>);
        for (int64_t n = 0; n < own.size(); ++n) {
          // Alternating (serpentine) traversal: what the last step read last is what the cache still holds.
          const int64_t item = i % 2 ? own.end - 1 - n : own.begin + n;
          for (int64_t j = 0; j < tiles.count(); ++j) rows<stage.value>(item / panels, item % panels, i, tiles[j]);
        }
        barrier_wait(p_.team, 0, member.size);
      });
  }

 protected:
  // The step that a direction takes as its i-th.
  int64_t time(int64_t direction, int64_t i) const { return direction == 0 ? i : p_.seq_len - 1 - i; }
  // h before that step, of sequences from b on; null for zeros.
  EvenRows<float> previous(int64_t direction, int64_t i, int64_t b) const {
    if (i == 0) return {p_.h0 ? p_.h0 + (direction * p_.batch + b) * outputs_ : nullptr, outputs_};
    return {row(p_.output, time(direction, i - 1), b) + direction * outputs_, p_.output.batch_stride};
  }

  // Units that a stage makes, those of what it multiplies, and packs of one gate in its panels.
  template <int stage>
  int64_t units() const {
    return cells::is_projection<Cell>(stage) ? outputs_ : p_.hidden_size;
  }
  template <int stage>
  int64_t operands() const {
    return stage == 0 ? outputs_ : p_.hidden_size;
  }
  template <int stage>
  int64_t panel_packs() const {
    return ceil_div(operands<stage>(), kPack) + (cells::is_projection<Cell>(stage) ? 0 : 2 + input_packs_);
  }
  // The first panel of a stage.
  template <int stage>
  const float* first_panel(int64_t direction) const {
    if constexpr (stage == 0)
      return p_.packed[direction];
    else
      return first_panel<stage - 1>(direction) +
             ceil_div(units<stage - 1>(), kLanes) * panel_packs<stage - 1>() * Cell::kStageGates[stage - 1] * kLanes;
  }

  // A stage of step i for one panel and a tile of rows whose number is known at run time.
  template <int stage, int kRows = kMaxRows<stage>>
  SEQKERNELS_INLINE void rows(int64_t direction, int64_t panel, int64_t i, Range range) const {
    if constexpr (kRows > 0) {
      if (range.size() == kRows) return step<stage, kRows>(direction, panel, i, range.begin);
      rows<stage, kRows - 1>(direction, panel, i, range);
    }
  }

  template <int stage, int kRows>
  __attribute__((noinline)) void step(int64_t direction, int64_t panel, int64_t i, int64_t b) const {
    constexpr int kFirst = cells::first_gate<Cell>(stage), kGates = Cell::kStageGates[stage];
    constexpr int64_t kPackStride = kGates * kLanes;  // packs of all gates of the stage, from one k to the next
    const int64_t t = time(direction, i), sequence = direction * p_.batch + b;
    const RowTensor &in = p_.x, &out = p_.output;
    const EvenRows<float> x{row(in, t, b), in.batch_stride}, h_prev = previous(direction, i, b);
    float* const h = row(out, t, b) + direction * outputs_;
    const float* const c_prev = i == 0 ? p_.c0 : p_.c_n;

    const float* packs = first_panel<stage>(direction) + panel * panel_packs<stage>() * kPackStride;
    V input_gates[kRows][kAllGates], hidden_gates[kRows][kAllGates];
    if constexpr (cells::is_projection<Cell>(stage)) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) hidden_gates[r][kFirst] = V(0);
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) {
          input_gates[r][kFirst + g] = load(packs + g * kLanes);
          hidden_gates[r][kFirst + g] = load(packs + kPackStride + g * kLanes);
        }
      packs += 2 * kPackStride;
      multiply_add<stage, kRows>(input_gates, x.template make<kRows>(), packs, p_.input_size);
      packs += input_packs_ * kPackStride;
    }
    EvenRows<float> operand = h_prev;
    const int64_t state = sequence * p_.hidden_size;  // of one with the hidden units
    if constexpr (stage > 0) operand = {p_.scratch + (stage - 1) * states_ + state, p_.hidden_size};
    if (operand.data)
      multiply_add<stage, kRows>(hidden_gates, operand.template make<kRows>(), packs, operands<stage>());

    const int64_t u = panel * kLanes, valid = units<stage>() - u;
    float* const handed_on = p_.scratch + state + u;
    float* const carried = handed_on + (kStages - 1) * states_;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = r * p_.hidden_size, unit = state + row + u;
      V saved[Cell::kSaved + 1];
      if constexpr (stage > 0)
        for (int s = 0; s < Cell::kCarried; ++s) saved[s] = load(carried + s * states_ + row, valid);
      cells::State<V> prev{V(0), V(0)};
      if (cells::has_h<Cell>(stage) && h_prev.data) prev.h = load(h_prev.data + r * h_prev.stride + u, valid);
      if (cells::has_c<Cell>(stage) && c_prev) prev.c = load(c_prev + unit, valid);
      const cells::State<V> made = Cell::forward(cells::Stage<stage>(), input_gates[r], hidden_gates[r], prev, saved);
      if constexpr (stage < kStages - 1) {
        store(handed_on + stage * states_ + row, made.h, valid);
        constexpr int kSavedFrom = cells::first_saved<Cell>(stage), kSavedTo = kSavedFrom + Cell::kStageSaved[stage];
        for (int s = kSavedFrom; s < min(kSavedTo, Cell::kCarried); ++s)
          store(carried + s * states_ + row, saved[s], valid);
      } else {
        store(h + r * out.batch_stride + u, made.h, valid);
        if (i == p_.seq_len - 1) store(p_.h_n + (sequence + r) * outputs_ + u, made.h, valid);
      }
      if constexpr (Cell::kHasCellState && stage == kStages - 1 - Cell::kIsProjected)
        store(p_.c_n + unit, made.c, valid);
    }
  }

  static float* row(const RowTensor& tensor, int64_t t, int64_t b) {
    return reinterpret_cast<float*>(tensor.data) + t * tensor.step_stride + b * tensor.batch_stride;
  }

  // Adds row r times the weights of the stage's gate g, over all of K, to the totals of r and that gate.
  template <int stage, int kRows>
  SEQKERNELS_INLINE static void multiply_add(V (&total)[kRows][kAllGates], const RowsOperand<float, kRows>& v,
                                             const float* packs, int64_t k_size) {
    constexpr int kFirst = cells::first_gate<Cell>(stage), kGates = Cell::kStageGates[stage];
    constexpr int64_t kPackStride = kGates * kLanes;
    // Few sums would wait for the latency of the multiply-add: then several sets take turns.
    constexpr int kSets = kRows * kGates >= 8 ? 1 : kRows * kGates >= 4 ? 2 : kRows * kGates >= 2 ? 4 : 8;
    constexpr int kTurn = int(max(kSets, kPack));  // numbers along K from one turn of the sets to the next
    Raw sum[kSets][kRows][kGates] = {};
    int64_t k = 0;
    for (; k + kTurn <= k_size; k += kTurn)
#pragma GCC unroll 8
      for (int set = 0; set < kTurn; set += kPack, packs += kPackStride) {
#pragma GCC unroll 4
        for (int line = 0; line < kPackStride; line += 16) __builtin_prefetch(packs + kPrefetch + line);
        multiply_add_pack<kGates, kRows, kSets>(sum, set, v, k + set, packs, kPack);
      }
    for (; k < k_size; k += kPack, packs += kPackStride)
      multiply_add_pack<kGates, kRows, kSets>(sum, 0, v, k, packs, int(min(kPack, k_size - k)));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        Raw all = sum[0][r][g];
#pragma GCC unroll 8
        for (int set = 1; set < kSets; ++set) all += sum[set][r][g];
        total[r][kFirst + g] = total[r][kFirst + g] + V(all);
      }
  }

  // One pack of every gate: `count` weights from k on, each into the next set.
  template <int kGates, int kRows, int kSets>
  SEQKERNELS_INLINE static void multiply_add_pack(Raw (&sum)[kSets][kRows][kGates], int set,
                                                  const RowsOperand<float, kRows>& v, int64_t k, const float* packs,
                                                  int count) {
    Raw x[kPack][kRows];
#pragma GCC unroll 2
    for (int j = 0; j < kPack; ++j)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) x[j][r] = j < count ? v.template spread<ScalarFormat<float>>(r, k + j) : Raw{};
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) {
      Raw w[kPack];
      PackedWeights<W>::unpack(packs + g * kLanes, w);
#pragma GCC unroll 2
      for (int j = 0; j < kPack; ++j)
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[(set + j) % kSets][r][g] += x[j][r] * w[j];
    }
  }

  const FrozenArguments& p_;
  const int64_t outputs_;  // units of h
  const int64_t input_packs_;
  const int64_t states_;  // numbers of a state with the hidden units
};

}  // namespace seqkernels::SEQKERNELS_ISA
