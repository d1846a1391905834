// Steps of cells with layer normalisation (cells/cell.h), in the stepwise plan: one launch a step, with all of its stages,
// after the product with W_hh. A block has a row, a step of one sequence in one direction, for each unit of it needs the mean
// and variance of all. Input gates are normalised here too, so that both sides wait for the same sums.
//
// With unit values v = (a - mean a) / sqrt(var a + eps) of n numbers a, y = w v + b, and the gradients g = w dy of v:
//
//   da = (g - mean g - v mean(g v)) / sqrt(var a + eps)        dw = sum over rows of dy v        db = sum over rows of dy
//
// A thread has the same units in all parts of a step and in all steps, so what it leaves in memory it finds there again.
//
// T is the element type, R what its arithmetic is done in (numbers.cuh); `norm` is the index of a norm, as in cells/cell.h.
#pragma once
#include "transition.cuh"

namespace seqkernels::cuda {

// The kind of a norm by its index, and the other way; where the sum is normalised, that is the input side's norm too.
template <class Cell>
SEQKERNELS_DEVICE constexpr NormKind norm_kind(int norm) {
  return NormKind(norm + kNormOfHidden + 1 - cells::kNormSides<Cell>);
}
template <class Cell>
SEQKERNELS_DEVICE constexpr int norm_of(NormKind kind) {
  return kind == kNormOfInput ? 0 : kind - (kNormOfHidden + 1 - cells::kNormSides<Cell>);
}

// Adds up numbers of all threads of a block of kStepThreads. The sums are the same in every thread, and in every run.
template <class R>
class BlockSums {
 public:
  template <int kCount>
  SEQKERNELS_DEVICE void add_up(R (&numbers)[kCount]) {
    static_assert(kCount <= kMostSums);
    R* const partials = static_cast<R*>(static_cast<void*>(shared_memory())) + (is_odd_ ? kMostSums * kWarps : 0);
    is_odd_ = !is_odd_;  // the others may still read the sums before
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      SEQKERNELS_UNROLL
      for (int mask = kWarpSize / 2; mask > 0; mask /= 2) numbers[i] += shuffle_xor(numbers[i], mask);
      if (thread_index() % kWarpSize == 0) partials[i * kWarps + thread_index() / kWarpSize] = numbers[i];
    }
    block_barrier();
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      numbers[i] = partials[i * kWarps];
      SEQKERNELS_UNROLL
      for (int warp = 1; warp < kWarps; ++warp) numbers[i] += partials[i * kWarps + warp];
    }
  }

 private:
  static constexpr int kWarps = kStepThreads / kWarpSize;
  bool is_odd_ = false;
};

// What both passes need of a row: where its numbers are, and its gates from unit values.
template <class CellType, class T, int kTiles, int kPublished>
class NormalizedRow {
 public:
  using Cell = CellType;
  using Element = T;
  using R = Real<T>;
  using V = Value<R, is_short<T>>;
  static constexpr int kGates = Cell::kGates, kAllGates = kGates + Cell::kNormalizesCell;
  static constexpr int kReserved = cells::kReserved<Cell>;
  // A norm's groups are numbered from norm * kGroups on.
  static constexpr int kSides = cells::kNormSides<Cell>, kGroups = Cell::kNormGroups,
                       kAllGroups = cells::kNormsOfRow<Cell>;

 protected:
  SEQKERNELS_DEVICE NormalizedRow(const Shape& shape, const StepBuffers& buffers, const Norms& norms,
                                  BlockSums<R>& sums, int64_t sequence)
      : shape_(shape),
        norms_(norms),
        sums_(sums),
        sequence_{static_cast<int>(sequence / shape.batch), static_cast<int>(sequence % shape.batch), 0},
        h_(static_cast<R*>(buffers.h) + sequence * shape.hidden),
        c_(static_cast<R*>(buffers.c) + sequence * shape.hidden),
        carried_(static_cast<R*>(buffers.carried) + sequence * shape.hidden),
        carried_apart_(static_cast<int64_t>(shape.directions) * shape.batch * shape.hidden),
        product_(static_cast<R*>(buffers.product) + sequence * kTiles * shape.hidden),
        published_(static_cast<T*>(buffers.published) + sequence * kPublished * shape.hidden) {
    const bool is_first = sequence_.direction == 0;  // no index, which would have all of `norms` copied to local memory
    SEQKERNELS_UNROLL
    for (int kind = 0; kind < kNormKinds; ++kind) {
      weights_[kind] = static_cast<const T*>(is_first ? norms.weights[kind][0] : norms.weights[kind][1]);
      biases_[kind] = static_cast<const T*>(is_first ? norms.biases[kind][0] : norms.biases[kind][1]);
    }
  }

  template <class Visit>
  SEQKERNELS_DEVICE void for_units(const Visit& visit) const {
    for (int u = thread_index(); u < shape_.hidden; u += block_threads()) visit(u);
  }
  SEQKERNELS_DEVICE UnitCoord at(int unit) const { return {sequence_.direction, sequence_.column, unit}; }
  SEQKERNELS_DEVICE int64_t row_at(int64_t time) const { return shape_.first_row(time) + sequence_.column; }

  // What backward reads of a row: unit values [kReserved, Hp], and the factors that made them [kAllGroups].
  SEQKERNELS_DEVICE int64_t scales_at(int64_t row) const {
    return (static_cast<int64_t>(sequence_.direction) * shape_.rows + row) * kAllGroups;
  }

  SEQKERNELS_DEVICE static constexpr int group(int norm, int gate) {
    return norm * kGroups + cells::norm_group<Cell>(norm, gate);
  }
  // How many numbers of a row a group has.
  SEQKERNELS_DEVICE R size(int norm, int group) const {
    int gates = 0;
    SEQKERNELS_UNROLL
    for (int g = 0; g < cells::norm_gates<Cell>(norm); ++g) gates += NormalizedRow::group(norm, g) == group;
    return static_cast<R>(gates) * static_cast<R>(shape_.hidden);
  }

  SEQKERNELS_DEVICE R weight(int norm, int gate, int unit) const {
    return to_real(weights_[norm_kind<Cell>(norm)][gate * shape_.hidden + unit]);
  }
  SEQKERNELS_DEVICE R bias(NormKind kind, int gate, int unit) const {
    return biases_[kind] ? to_real(biases_[kind][gate * shape_.hidden + unit]) : R(0);
  }
  SEQKERNELS_DEVICE V normalized(int norm, int gate, int unit, R value) const {
    return weight(norm, gate, unit) * value + bias(norm_kind<Cell>(norm), gate, unit);
  }
  // The gates of the first stage from value(norm, gate), the unit values.
  template <class Values>
  SEQKERNELS_DEVICE void make_gates(int unit, const Values& value, V* input_gates, V* hidden_gates) const {
    SEQKERNELS_UNROLL
    for (int g = 0; g < kGates; ++g) {
      if constexpr (Cell::kNorm == cells::Norm::kSum)
        input_gates[g] = bias(kNormOfInput, g, unit);
      else
        input_gates[g] = normalized(0, g, unit, value(0, g));
      hidden_gates[g] = normalized(kSides - 1, g, unit, value(kSides - 1, g));
    }
  }

  const Shape& shape_;
  const Norms& norms_;
  BlockSums<R>& sums_;
  const UnitCoord sequence_;  // its first unit
  R *const h_, *const c_, *const carried_;
  const int64_t carried_apart_;  // from a carried value to the next one of the same unit
  R* const product_;
  T* const published_;

 private:
  const T *weights_[kNormKinds], *biases_[kNormKinds];
};

// What is run of a row in an iteration is NormalizedForward or NormalizedBackward.
template <class Row>
SEQKERNELS_KERNEL SEQKERNELS_LAUNCH_BOUNDS(kStepThreads, 1)
    normalized_kernel(const typename Row::Problem p, const StepBuffers buffers, const int64_t iteration,
                      const Norms norms) {
  BlockSums<Real<typename Row::Element>> sums;
  const int64_t sequences = static_cast<int64_t>(p.shape.directions) * p.shape.batch;
  for (int64_t i = block_index(); i < sequences; i += grid_threads() / block_threads())
    Row(p, buffers, norms, sums, i).run(iteration);
}

// The gradients of a norm's factors and biases, sums over parts of the rows. A block has one part, and 32 of them at a time, one
// a lane; each of its warps has some of the rows.
template <class Cell, class T>
SEQKERNELS_KERNEL norm_gradients_kernel(const Shape shape, const NormGradients n) {
  using R = Real<T>;
  constexpr int kReserved = cells::kReserved<Cell>;
  const int norm = norm_of<Cell>(n.kind), warps = block_threads() / kWarpSize;
  const int warp = thread_index() / kWarpSize, lane = thread_index() % kWarpSize;
  const int numbers = cells::norm_gates<Cell>(norm) * shape.hidden;
  R* const partials = static_cast<R*>(static_cast<void*>(shared_memory()));  // [2, warps, 32]
  const int part = block_index() % n.parts, stride = static_cast<int>(grid_threads() / warps / n.parts);
  for (int first = block_index() / n.parts * kWarpSize; first < numbers; first += stride) {
    const int i = first + lane;
    R of_weight = 0, of_bias = 0;
    if (i < numbers) {
      const int gate = i / shape.hidden, u = i % shape.hidden;
      const int64_t dgate = cells::norm_dgate<Cell>(norm, gate) * int64_t{shape.hidden} + u;
      const int64_t value = (norm * Cell::kGates + gate) * int64_t{shape.padded} + u;
      SEQKERNELS_UNROLL_BY(4)
      for (int64_t row = part * warps + warp; row < shape.rows; row += n.parts * warps) {
        const int64_t of_row = row * shape.directions + n.direction, saved_row = n.direction * shape.rows + row;
        const R dy = read<T>(n.dgates, of_row * Cell::kDgates * shape.hidden + dgate);
        if (n.weight) of_weight += dy * read<T>(n.values, saved_row * kReserved * shape.padded + value);
        of_bias += dy;
      }
    }
    partials[warp * kWarpSize + lane] = of_weight;
    partials[(warps + warp) * kWarpSize + lane] = of_bias;
    block_barrier();
    if (warp == 0 && i < numbers) {
      for (int other = 1; other < warps; ++other) {
        of_weight += partials[other * kWarpSize + lane];
        of_bias += partials[(warps + other) * kWarpSize + lane];
      }
      const int64_t to = int64_t{part} * numbers + i;
      if (n.weight) static_cast<R*>(n.weight)[to] = of_weight;
      if (n.bias) static_cast<R*>(n.bias)[to] = of_bias;
    }
    block_barrier();  // before others' sums come in the place of these
  }
}

}  // namespace seqkernels::cuda
