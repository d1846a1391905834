// Layer normalisation in the backward time loop. Compiled once per ISA.
//
// With unit values v = (a - mean a) / sqrt(var a + eps) of n numbers a, and their gradients g = w dy:
//
//   da = (g - mean g - v mean(g v)) / sqrt(var a + eps)        dw = sum over rows of dy v
//
// Members sum up g and g v of their units, wait for each other, and make da of these.
//
// Members of BackwardLoop, which names the types.
#pragma once
#include "backward_cell-inl.h"
#include "backward_ends-inl.h"
#include "backward_products-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

using cells::is_norm_of_cell, cells::norm_dgate, cells::norm_gates, cells::norm_group, cells::norm_groups;

// The weights of a norm, by its index.
template <class Cell>
constexpr WeightKind norm_weight(int norm) {
  if (is_norm_of_cell<Cell>(norm)) return kCellNorm;
  return norm == cells::kNormSides<Cell> - 1 ? kHiddenNorm : kInputNorm;
}

template <class Cell>
constexpr WeightKind norm_bias(int norm) {
  if (is_norm_of_cell<Cell>(norm)) return kCellNormBias;
  return norm == cells::kNormSides<Cell> - 1 ? kHiddenBias : kInputBias;
}

template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::take_norms(Arena& arena, int direction) {
  Buffers& buffers = buffers_[direction];
  const auto gradient = [&](WeightKind kind, int64_t n) {
    char* const grad = p_.grads[direction][kind];
    return kMixedPrecision ? arena.take<T>(grad ? n : 0) : reinterpret_cast<T*>(grad);
  };
  for (int norm = 0; norm < kNorms; ++norm) {
    const int gates = norm_gates<Cell>(norm);
    buffers.norms[norm] = arena.take<T>(gates * size_.padded);
    buffers.norm_biases[norm] = arena.take<T>(gates * size_.padded);
    buffers.grad_norms[norm] = gradient(norm_weight<Cell>(norm), gates * size_.hidden);
    buffers.norm_sums[norm] = arena.take<NormSums<T>>(p_.threads * shape_.batch * kGroups);
  }
  if (Cell::kNorm == cells::Norm::kSum) buffers.input_biases = arena.take<T>(kGates * size_.padded);
  if (Cell::kNormalizesCell) buffers.grad_norm_bias = gradient(kCellNormBias, size_.hidden);
}

template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::pack_norms(const ThreadSlice& slice) const {
  if (slice.rank > 0) return;
  const Buffers& buffers = buffers_[slice.direction];
  const auto pack = [&](WeightKind kind, int gates, T* packed) {
    const S* const weight = reinterpret_cast<const S*>(p_.weights[slice.direction][kind]);
    for (int g = 0; g < gates; ++g)
      for (int64_t u = 0; u < size_.padded; u += kLanes)
        store(packed + g * size_.padded + u, weight ? load(weight + g * size_.hidden + u, size_.hidden - u) : V(0));
  };
  for (int norm = 0; norm < kNorms; ++norm) {
    pack(norm_weight<Cell>(norm), norm_gates<Cell>(norm), buffers.norms[norm]);
    pack(norm_bias<Cell>(norm), norm_gates<Cell>(norm), buffers.norm_biases[norm]);
  }
  if (Cell::kNorm == cells::Norm::kSum) pack(kInputBias, kGates, buffers.input_biases);
}

// Makes what the cell had saved of some units once more, from their normalised gates.
template <class Cell, class S, class F>
template <class Vectors, class Read>
SEQKERNELS_INLINE void BackwardLoop<Cell, S, F>::remake_saved(const CellRow& row, const cells::State<Vectors>& prev,
                                                              const Read& read, Vectors* saved) const {
  const Buffers& buffers = *row.buffers;
  Vectors input_gates[kGates + 1], hidden_gates[kGates + 1];
  const auto gate = [&](int norm, int g) {
    return read(buffers.norms[norm] + g * size_.padded) * read(row.saved + (norm * kGates + g) * size_.padded) +
           read(buffers.norm_biases[norm] + g * size_.padded);
  };
  for (int g = 0; g < kGates; ++g) {
    hidden_gates[g] = gate(kHiddenNormSide, g);
    if constexpr (Cell::kNorm == cells::Norm::kSum)
      input_gates[g] = read(buffers.input_biases + g * size_.padded);
    else
      input_gates[g] = gate(0, g);
  }
  Cell::forward(cells::Stage<0>(), input_gates, hidden_gates, prev, saved);
  if constexpr (Cell::kNormalizesCell) {
    hidden_gates[kGates] = gate(kNormSides, 0);
    Cell::forward(cells::Stage<1>(), input_gates, hidden_gates, prev, saved);
  }
}

// Calls f(sums, gradient, numbers) for the gradients of norms that are asked for.
template <class Cell, class S, class F>
template <class Visit>
inline void BackwardLoop<Cell, S, F>::for_norm_gradients(int direction, const Visit& f) const {
  const WeightGrads& grads = p_.grads[direction];
  for (int norm = 0; norm < kNorms; ++norm)
    if (char* const grad = grads[norm_weight<Cell>(norm)])
      f(buffers_[direction].grad_norms[norm], grad, norm_gates<Cell>(norm) * size_.hidden);
  if (Cell::kNormalizesCell && grads[kCellNormBias])
    f(buffers_[direction].grad_norm_bias, grads[kCellNormBias], size_.hidden);
}

// What belongs to a norm in one row of the layer.
template <class Cell, class S, class F>
struct BackwardLoop<Cell, S, F>::NormRow {
  const T* weight;  // [gates][padded]
  const S* values;  // [gates][padded]
  const T* scales;  // [groups], 1 / sqrt(var + eps)
  E* dgates;
};

template <class Cell, class S, class F>
template <int norm>
inline auto BackwardLoop<Cell, S, F>::norm_row(int direction, const Chunk& chunk, int64_t row) const -> NormRow {
  const int64_t reserved = direction * rows_ + row;
  return {buffers_[direction].norms[norm],
          reinterpret_cast<const S*>(p_.gates) + (reserved * kReserved + norm * kGates) * size_.padded,
          reinterpret_cast<const T*>(p_.norms) + reserved * cells::kNormsOfRow<Cell> + norm * kGroups,
          buffers_[direction].dgates + (row - chunk.first_row) * dgates_stride_};
}

// Sums up the units of the vectors [range).
template <class Cell, class S, class F>
template <int norm>
inline void BackwardLoop<Cell, S, F>::sum_units(const NormRow& row, Range vectors, NormSums<T>* sums) const {
  // Of each gate by itself, as the moments.
  constexpr int kOwnGates = norm_gates<Cell>(norm);
  V grads[kOwnGates], products[kOwnGates];
  for (int g = 0; g < kOwnGates; ++g) grads[g] = products[g] = V(0);
  for_unit_values<norm>(row, vectors, [&](int g, int64_t, int64_t, V grad, V value) {
    grads[g] = grads[g] + grad;
    products[g] = products[g] + grad * value;
  });
  for (int i = 0; i < norm_groups<Cell>(norm); ++i) {
    V grad(0), product(0);
    for (int g = 0; g < kOwnGates; ++g)
      if (norm_group<Cell>(norm, g) == i) grad = grad + grads[g], product = product + products[g];
    sums[i] = {sum_lanes(grad), sum_lanes(product)};
  }
}

// Makes the gradients of what was normalised: of c in `out`, of gates in blocks of `out` that lie as dgates do. The sums of parts
// of the units are `stride` apart.
template <class Cell, class S, class F>
template <int norm, class P>
inline void BackwardLoop<Cell, S, F>::unit_gradients(const NormRow& row, Range vectors, const NormSums<T>* sums,
                                                     int parts, int64_t stride, P* out) const {
  constexpr int kOwnGroups = norm_groups<Cell>(norm);
  V mean_grad[kOwnGroups], mean_product[kOwnGroups];
  for (int i = 0; i < kOwnGroups; ++i) {
    NormSums<T> all{0, 0};
    for (int part = 0; part < parts; ++part) {
      all.grads += sums[part * stride + i].grads;
      all.products += sums[part * stride + i].products;
    }
    int64_t numbers = 0;
    for (int g = 0; g < norm_gates<Cell>(norm); ++g) numbers += norm_group<Cell>(norm, g) == i ? size_.hidden : 0;
    mean_grad[i] = V(all.grads / T(numbers)), mean_product[i] = V(all.products / T(numbers));
  }
  for_unit_values<norm>(row, vectors, [&](int g, int64_t u, int64_t valid, V grad, V value) {
    const int group = norm_group<Cell>(norm, g);
    store(out + g * block_ + u, V(row.scales[group]) * (grad - mean_grad[group] - value * mean_product[group]), valid);
  });
}

// Calls f(gate, unit, units left, gradient of the unit values, unit values) for the vectors [range) of a row.
template <class Cell, class S, class F>
template <int norm, class Visit>
SEQKERNELS_INLINE void BackwardLoop<Cell, S, F>::for_unit_values(const NormRow& row, Range vectors,
                                                                 const Visit& f) const {
  const auto visit = [&](int64_t u, int64_t valid) {
    for (int g = 0; g < norm_gates<Cell>(norm); ++g) {
      const int64_t at = g * size_.padded + u;
      const V dgates = load(row.dgates + norm_dgate<Cell>(norm, g) * block_ + u, valid);
      f(g, u, valid, dgates * load(row.weight + at), load(row.values + at, valid));
    }
  };
  const int64_t whole = min(vectors.end, size_.hidden / kLanes);
  for (int64_t v = vectors.begin; v < whole; ++v) visit(v * kLanes, kLanes);
  if (whole < vectors.end) visit(whole * kLanes, size_.hidden - whole * kLanes);
}

// A stage of the cell at step t, and with it the gradients of what it normalises, for the units and sequences of this thread:
// those of its products, or that of c. Rows are in the caches nearest to the core then, if no other member has part in them.
template <class Cell, class S, class F>
template <int stage, class Wait>
inline void BackwardLoop<Cell, S, F>::normalized_step(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk,
                                                      int64_t t, const Wait& wait) const {
  constexpr bool kOfCell = cells::is_norm<Cell>(stage);
  constexpr int kFirst = kOfCell ? kNormSides : 0, kCount = kOfCell ? 1 : kNormSides;
  const Buffers& buffers = buffers_[slice.direction];
  const Range vectors = own_vectors<stage>(slice);
  const int64_t count = slice.sequences(steps.active(t)), numbers = shape_.batch * kGroups;
  const auto for_norms = [&](int64_t b, const auto& f) {
    for_indices<kCount>([&](auto index) {
      constexpr int norm = kFirst + index.value;
      f(Index<norm>{}, norm_row<norm>(slice.direction, chunk, steps.first_row(t) + b),
        buffers.norm_sums[norm] + b * kGroups);
    });
  };
  const auto finish = [&](int64_t b) {
    for_norms(b, [&](auto norm, const NormRow& row, const NormSums<T>* sums) {
      const int parts = slice.split.unit_parts;
      if constexpr (kOfCell)
        unit_gradients<norm.value>(row, vectors, sums, parts, numbers, buffers.grad_operand + b * size_.padded);
      else
        unit_gradients<norm.value>(row, vectors, sums, parts, numbers,
                                   row.dgates + (kDgates + norm.value * kGates) * block_);
    });
  };
  const bool alone = slice.split.unit_parts == 1;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t b = slice.sequence(r);
    pointwise_vectors<stage>(cell_row(slice.direction, steps, chunk, t, b), vectors);
    for_norms(b, [&](auto norm, const NormRow& row, NormSums<T>* sums) {
      sum_units<norm.value>(row, vectors, sums + slice.part * numbers);
    });
    if (alone) finish(b);
  }
  if (alone) return;
  wait();
  for (int64_t r = 0; r < count; ++r) finish(slice.sequence(r));
}

// Adds what the chunk gives to the gradients of norms and biases: the sums over rows of each block of dgates that the cell has
// written, and of its products with the unit values.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::norm_weight_gradients(const ThreadSlice& slice, const Chunk& chunk) const {
  const Buffers& buffers = buffers_[slice.direction];
  const WeightGrads& grads = p_.grads[slice.direction];
  constexpr int kVectors = 2;  // of units, side by side
  using Vectors = VecN<T, kVectors>;
  const int64_t parts = ceil_div(size_.hidden, kVectors * kLanes), stride = kReserved * size_.padded;
  for_items(share(kDgates * parts, slice.rank, slice.size), parts, [&](int64_t block, int64_t part) {
    const int64_t u = part * kVectors * kLanes;
    const auto each = [&](const auto& make) {
      return Vectors::each([&](int i) {
        const int64_t valid = size_.hidden - u - i * kLanes;
        return valid > 0 ? make(i * kLanes, valid) : V(0);
      });
    };
    const auto read = [&](const auto* p) { return each([&](int64_t i, int64_t valid) { return load(p + i, valid); }); };
    const auto add = [&](T* grad, const Vectors& sum) {
      const Vectors before = chunk.begin == 0 ? Vectors(0) : read(grad);
      for (int i = 0; i < kVectors; ++i)
        store(grad + i * kLanes, before.part[i] + sum.part[i], size_.hidden - u - i * kLanes);
    };
    // The gates that this is the block of, of each norm; -1: none.
    int gates[kNorms];
    const S* values[kNorms];
    for_indices<kNorms>([&](auto norm) {
      gates[norm.value] = -1;
      for (int g = 0; g < norm_gates<Cell>(norm.value); ++g)
        if (norm_dgate<Cell>(norm.value, g) == block) gates[norm.value] = g;
      values[norm.value] = norm_row<norm.value>(slice.direction, chunk, chunk.first_row).values +
                           max(gates[norm.value], 0) * size_.padded + u;
    });
    Vectors sum(0), products[kNorms];
    for (Vectors& product : products) product = Vectors(0);
    const E* const dgates = buffers.dgates + block * block_ + u;
    for (int64_t row = 0; row < chunk.rows; ++row) {
      const Vectors dgate = read(dgates + row * dgates_stride_);
      sum = sum + dgate;
#pragma GCC unroll 4
      for (int norm = 0; norm < kNorms; ++norm)
        if (gates[norm] >= 0) products[norm] = products[norm] + dgate * read(values[norm] + row * stride);
    }
    for (int norm = 0; norm < kNorms; ++norm) {
      const int64_t at = gates[norm] * size_.hidden + u;
      if (gates[norm] >= 0 && grads[norm_weight<Cell>(norm)]) add(buffers.grad_norms[norm] + at, products[norm]);
      if (gates[norm] >= 0 && is_norm_of_cell<Cell>(norm) && grads[kCellNormBias]) add(buffers.grad_norm_bias + u, sum);
    }
    for (int s = 0; s < kSides; ++s)
      for (int g = 0; g < kGates; ++g)
        if (sides_[slice.direction][s].biases[g] == block && sides_[slice.direction][s].bias_grad)
          add(buffers.grad_b[s] + g * size_.hidden + u, sum);
  });
}

}  // namespace seqkernels::SEQKERNELS_ISA
