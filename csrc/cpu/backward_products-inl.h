// The products of the backward pass over a chunk of steps: gradients of weights, biases and inputs. Compiled once per
// ISA.
//
// Members of BackwardLoop, which names the types.
#pragma once
#include "backward_cell-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// What a stage has multiplied with W_hh or W_hr: h_prev, or what is made once more from what was saved.
template <class Cell, class S, class F>
template <int stage>
inline const S* BackwardLoop<Cell, S, F>::operand_row(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk,
                                                      int64_t t, int64_t b) const {
  const int d = slice.direction;
  const bool is_masked = p_.transition.recurrent_mask && !cells::is_projection<Cell>(stage);
  S* const made = buffers_[d].operand_row + slice.rank * max(size_.padded, size_.outputs_padded);
  if constexpr (stage == 0) {
    const S* const h = previous_h(d, steps, t, b);
    if (!is_masked) return h;
    for (int64_t u = 0; u < size_.outputs; u += kLanes)
      store(made + u, load(h + u, size_.outputs - u) * mask_of(d, b, u));
  } else {
    const CellRow row = cell_row(d, steps, chunk, t, b);
    for (int64_t u = 0; u < size_.hidden; u += kLanes) {
      V saved[Cell::kSaved + 1];
      for (int s = 0; s < Cell::kSaved; ++s) saved[s] = load(row.saved + s * size_.padded + u);
      cells::State<V> prev{V(0), V(0)}, state{V(0), V(0)};
      if constexpr (Cell::kBackwardReadsH) prev.h = load(row.h_prev + u, size_.hidden - u);
      if constexpr (Cell::kHasCellState) {
        state.c = load(row.c + u);
        if (zoneout_c_.is_on()) {
          prev.c = row.c0 ? load(row.c0 + u, size_.hidden - u) : load(row.c_prev + u);
          state.c = Cell::next_c(saved, prev.c);
        }
      }
      const V operand = Cell::operand(cells::Stage<stage>(), saved, prev, state);
      store(made + u, is_masked ? operand * mask_of(d, b, u) : operand);
    }
  }
  return made;
}

// Packs x, h_prev and the other stages' operands of the chunk's rows into panels.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::pack_operands(const ThreadSlice& slice, const Steps& steps,
                                                    const Chunk& chunk) const {
  const int d = slice.direction;
  const Range own = share_of_packs<F>(chunk.rows, slice.rank, slice.size);
  for_indices<kSides>([&](auto index) {
    constexpr int s = index.value;
    const Side& side = sides_[d][s];
    if (!side.grad) return;
    for_rows(shape_, steps, chunk, own, true, [&](int64_t t, int64_t b, int64_t row) {
      const S* source = row_of<const S>(p_.x, shape_, t, b);
      if constexpr (s > 0) source = operand_row<s - 1>(slice, steps, chunk, t, b);
      pack_row<S, F>(source, row, side.panels(), packs<F>(chunk.rows), buffers_[d].operand[s]);
    });
    if (slice.rank == 0)
      pack_zeros({ceil_div(chunk.rows, F::kPack), packs<F>(chunk.rows)}, side.panels(), packs<F>(chunk.rows),
                 buffers_[d].operand[s]);
  });
  if (d == 0 && p_.grad_x && shape_.order)
    for_rows(shape_, steps, chunk, own, true,
             [&](int64_t t, int64_t b, int64_t row) { buffers_[0].grad_x_rows[row] = grad_x_row(t, b); });
}

// Adds dgates^T [x | operand] of a stage's gates to dW, shared out by rows of dW.
template <class Cell, class S, class F>
template <int stage>
inline void BackwardLoop<Cell, S, F>::weight_gradients(const ThreadSlice& slice, const Chunk& chunk) const {
  const Side* const sides = sides_[slice.direction];
  constexpr int kFirstSide = cells::is_projection<Cell>(stage) ? 1 + stage : 0;  // no product with x, or one
  if (!sides[kFirstSide].grad && !sides[1 + stage].grad) return;
  const int64_t units = size_.units(stage);
  const RowTiles tiles = row_tiles<F>(units, kPanelVectors);
  alignas(64) T block[kTileRows * packs<F>(kMaxK) + kSlack];
  const Range own = share(Cell::kStageGates[stage] * tiles.count(), slice.rank, slice.size);
  for_items(own, tiles.count(), [&](int64_t g, int64_t j) {
    const Range rows = tiles[j];
    for (int64_t k0 = 0; k0 < chunk.rows; k0 += kMaxK) {
      const int64_t k_size = min(kMaxK, chunk.rows - k0);
      int packed = -1;  // which gate's dgates are in the block
      for (int s = kFirstSide; s <= 1 + stage; s += 1 + stage) {
        const Side& side = sides[s];
        if (!side.grad) continue;
        const int64_t gate = cells::first_gate<Cell>(stage) + g - side.first_gate;  // of the side
        const int dgate = side.dgates[gate];
        if (dgate != packed)
          pack_dgates(buffers_[slice.direction].dgates + k0 * dgates_stride_ + dgate * block_ + rows.begin, k_size,
                      rows.size(), block);
        packed = dgate;
        weight_gradient(slice, chunk, s, gate * units + rows.begin, rows.size(), k0, k_size, block);
      }
    }
  });
}

// The left operand of dW: dgates[K][columns] of some units, as pack_dgates leaves them in a block.
template <class Cell, class S, class F>
inline auto BackwardLoop<Cell, S, F>::left_operand(const T* block, [[maybe_unused]] int64_t k_size) {
  if constexpr (F::kInTiles)
    return EvenRows<E>{reinterpret_cast<const E*>(block), packs<F>(k_size) * F::kPack};
  else
    return PackedColumns<T>{block};
}

// Packs dgates[K][columns] for left_operand.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::pack_dgates(const E* dgates, int64_t k_size, int64_t columns, T* block) const {
  if constexpr (F::kInTiles)
    pack_rows(dgates, k_size, columns, block);
  else
    pack_columns(dgates, k_size, columns, block);
}

// Packs dgates as [packs of K][columns], eight columns at a time: what is too much is overwritten by the next step, or
// lies in the slack at the end.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::pack_columns(const E* dgates, int64_t k_size, int64_t columns, T* out) const {
  constexpr int64_t kAhead = 16;  // every row is on a page of its own, where the hardware does not prefetch
  for (int64_t k = 0; k < k_size; ++k) {
    __builtin_prefetch(dgates + (k + kAhead) * dgates_stride_);
    F::template store_columns<kSlack>(out + k / F::kPack * columns, int(k % F::kPack), dgates + k * dgates_stride_);
  }
}

// Packs pairs of dgates as [columns][packs of K], a square of packs at a time.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::pack_rows(const E* dgates, int64_t k_size, int64_t columns, T* out) const {
  static_assert(!F::kInTiles || F::kPack == 2);
  for (int64_t k = 0; k < packs<F>(k_size); k += kLanes)
    for (int64_t column = 0; column < columns; column += kLanes) {
      const auto row = [&](int64_t r) { return r < k_size ? load(dgates + r * dgates_stride_ + column) : V(0); };
      typename V::Raw square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = F::join(row(2 * (k + i)), row(2 * (k + i) + 1)).raw;
      transpose<T>(square);
      const int64_t count = min(kLanes, columns - column);
      for (int64_t i = 0; i < count; ++i) store(out + (column + i) * packs<F>(k_size) + k, V(square[i]));
    }
}

// Adds to rows [first, first + rows) of one side's dW what `k_size` rows of the chunk from k0 on give.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::weight_gradient(const ThreadSlice& slice, const Chunk& chunk, int s,
                                                      int64_t first, int64_t rows, int64_t k0, int64_t k_size,
                                                      const T* block) const {
  const Side& side = sides_[slice.direction][s];
  const Buffers& buffers = buffers_[slice.direction];
  const Panels<T> panels = side.panels();
  const bool starts = chunk.begin == 0 && k0 == 0;
  const auto left = left_operand(block, k_size);
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int vectors = panels.vectors(panel);
    const int64_t valid = panels.valid(panel), at = first * side.columns + panel * Panels<T>::kWidth;
    const T* const b = panels.at(buffers.operand[s], panel, packs<F>(chunk.rows)) + k0 / F::kPack * panels.width(panel);
    if (kMixedPrecision && !adds_up()) {
      visit_product(
          rows, vectors, [&](const Tile<T>& tile) { gemm<F>(rows, vectors, left, b, packs<F>(k_size), tile); },
          [&](int64_t r, int64_t column, V v) {
            store(reinterpret_cast<S*>(side.grad) + at + r * side.columns + column, v, valid - column);
          });
    } else {
      T* const out = buffers.grad_w[s] + at;
      gemm_edge<F>(rows, vectors, valid, left, b, packs<F>(k_size),
                   starts ? Tile<T>::from_zero(out, side.columns) : Tile<T>::accumulate(out, side.columns));
    }
  }
}

// Calls visit(row, column, vector) for what `multiply` leaves in a tile.
template <class Cell, class S, class F>
template <class Multiply, class Visit>
SEQKERNELS_INLINE void BackwardLoop<Cell, S, F>::visit_product(int64_t rows, int vectors, const Multiply& multiply,
                                                               const Visit& visit) {
  constexpr int64_t kWidth = Panels<T>::kWidth;
  alignas(64) T tile[kTileRows * kWidth];
  multiply(Tile<T>::from_zero(tile, kWidth));
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) visit(r, v * kLanes, load(tile + r * kWidth + v * kLanes));
}

// Adds the sum of dgates over rows to db.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::bias_gradient(const ThreadSlice& slice, const Chunk& chunk, int s) const {
  const Side& side = sides_[slice.direction][s];
  if (!side.bias_grad) return;
  const Buffers& buffers = buffers_[slice.direction];
  constexpr int kBlocks = 4;  // vectors of units side by side: one would wait for the latency of its sum
  using Vectors = VecN<T, kBlocks>;
  const int64_t blocks = ceil_div(side.units, kBlocks * kLanes);
  for_items(share(side.gates * blocks, slice.rank, slice.size), blocks, [&](int64_t g, int64_t block) {
    const int64_t u = block * kBlocks * kLanes;
    const E* const dgates = buffers.dgates + side.dgates[g] * block_ + u;
    T* const grad = buffers.grad_b[s] + g * side.units + u;
    const auto read = [&](const auto* p) {
      return Vectors::each([&](int i) {
        const int64_t valid = side.units - u - i * kLanes;
        return valid > 0 ? load(p + i * kLanes, valid) : V(0);
      });
    };
    Vectors total = chunk.begin == 0 ? Vectors(0) : read(grad);
    for (int64_t first = 0; first < chunk.rows; first += kMaxK) {  // a sum of sums, as products are
      Vectors sum(0);
      for (int64_t row = first; row < min(first + kMaxK, chunk.rows); ++row)
        sum = sum + read(dgates + row * dgates_stride_);
      total = total + sum;
    }
    for (int i = 0; i < kBlocks; ++i) store(grad + i * kLanes, total.part[i], side.units - u - i * kLanes);
  });
}

// A panel of a side's weight, packed now if it is not kept; null where it is read where it lies.
template <class Cell, class S, class F>
inline const Compute<S>* BackwardLoop<Cell, S, F>::weight_panel(const ThreadSlice& slice, int s, int64_t panel) const {
  const Side& side = sides_[slice.direction][s];
  T* const kept = buffers_[slice.direction].w[s];
  if (side.in_place(rows_)) return nullptr;
  if (!packs_when_needed(s)) return side.panels().at(kept, panel, packs_of(side));
  T* const own = side.panels().at(kept, slice.rank, packs_of(side));
  constexpr int64_t kAhead = 32;  // rows, between which the hardware does not prefetch
  for (int g = 0; g < side.gates; ++g) {
    for (int64_t u = 0; u < side.units; u += F::kPack) {
      const S* const part = weight_row(side, g, u) + panel * Panels<T>::kWidth;
      const int64_t rows = min(F::kPack, side.units - u);
      for (int64_t r = 0; r < rows; ++r) {
        const S* const ahead = part + (kAhead + r) * side.columns;
        for (int64_t i = 0; i < Panels<T>::kWidth; i += 64 / int64_t(sizeof(S))) __builtin_prefetch(ahead + i);
        __builtin_prefetch(ahead + Panels<T>::kWidth - 1);  // rows begin anywhere in a line
      }
      pack_whole_packs<S, F>(part, side.columns, rows, k_of(side, g, u), side.panels().valid(panel),
                             side.panels().vectors(panel), own);
    }
    pack_zeros(k_padding(side, g), side.panels().width(panel), own);
  }
  return own;
}

// Makes dx = dgates W_ih.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::input_gradient(const ThreadSlice& slice, const Chunk& chunk) const {
  if (!p_.grad_x) return;
  const Side& side = sides_[slice.direction][0];
  const Buffers& buffers = buffers_[slice.direction];
  const Panels<T> panels = side.panels();
  const RowTiles tiles = row_tiles<F>(chunk.rows, kPanelVectors);
  const Range own = share(panels.count() * tiles.count(), slice.rank, slice.size);
  const auto pack = [&](int64_t panel) { return weight_panel(slice, 0, panel); };
  for_items(own, tiles.count(), pack, [&](const T* w, int64_t panel, int64_t j) {
    const int64_t columns = panels.valid(panel);
    const Range rows = tiles[j];
    const EvenRows<E> dgates{buffers.dgates + rows.begin * dgates_stride_, dgates_stride_};
    const int64_t first = panel * Panels<T>::kWidth, out = (chunk.first_row + rows.begin) * size_.inputs + first;
    if (slice.direction == 0 && (kMixedPrecision || shape_.order)) {
      S* const whole = reinterpret_cast<S*>(p_.grad_x) + out;
      visit_product(
          rows.size(), panels.vectors(panel),
          [&](const Tile<T>& tile) { multiply(side, w, rows.size(), panel, Panels<T>::kWidth, dgates, tile); },
          [&](int64_t r, int64_t column, V v) {
            S* const row = shape_.order ? buffers.grad_x_rows[rows.begin + r] + first : whole + r * size_.inputs;
            store(row + column, v, columns - column);
          });
    } else {
      T* const grad = slice.direction > 0 ? buffers.grad_x : reinterpret_cast<T*>(p_.grad_x);
      multiply(side, w, rows.size(), panel, columns, dgates, Tile<T>::from_zero(grad + out, size_.inputs));
    }
  });
}

}  // namespace seqkernels::SEQKERNELS_ISA
