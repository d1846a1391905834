// The products of the backward pass over a chunk of steps: gradients of weights, biases and inputs. Compiled once per ISA.
#pragma once
#include "backward-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// x and h_prev of the chunk's rows into panels.
template <class Cell, class S, class F>
inline void Backward<Cell, S, F>::pack_operands(const Place& place, const Steps& steps, const Chunk& chunk) const {
  const int d = place.direction;
  const Range own = share_of_words<F>(chunk.rows, place.rank, place.size);
  for (int s = 0; s < 2; ++s) {
    const Side& side = sides_[d][s];
    if (!side.grad) continue;
    for_rows(shape_, steps, chunk, own, true, [&](int64_t t, int64_t b, int64_t row) {
      const S* source = row_of<const S>(p_.x, shape_, t, b);
      if (s == 1) source = b >= steps.starting(t) ? initial(p_.h0, d, b) : output_row(steps.previous(t), b, d);
      pack_row<S, F>(source, row, side.panels(), words<F>(chunk.rows), buffers_[d].operand[s]);
    });
    if (place.rank == 0)
      pack_zeros({ceil_div(chunk.rows, F::kPerWord), words<F>(chunk.rows)}, side.panels(), words<F>(chunk.rows),
                 buffers_[d].operand[s]);
  }
}

// dW += dgates^T [x | h_prev], shared out by rows of dW.
template <class Cell, class S, class F>
inline void Backward<Cell, S, F>::weight_gradients(const Place& place, const Chunk& chunk) const {
  const Side* const sides = sides_[place.direction];
  if (!sides[0].grad && !sides[1].grad) return;
  const RowTiles tiles = row_tiles<F>(size_.hidden, kPanelVectors);
  alignas(64) T block[kTileRows * words<F>(kMaxDepth) + kSlack];
  for_items(share(kGates * tiles.count(), place.rank, place.size), tiles.count(), [&](int64_t g, int64_t j) {
    const Range rows = tiles[j];
    for (int64_t k0 = 0; k0 < chunk.rows; k0 += kMaxDepth) {
      const int64_t depth = smaller(kMaxDepth, chunk.rows - k0);
      int packed = -1;  // which gate's dgates are in the block
      for (int s = 0; s < 2; ++s) {
        if (!sides[s].grad) continue;
        const int dgate = sides[s].dgates[g];
        if (dgate != packed)
          pack_dgates(buffers_[place.direction].dgates + k0 * dgates_stride_ + dgate * block_ + rows.begin, depth,
                      rows.size(), block);
        packed = dgate;
        weight_gradient(place, chunk, s, g * size_.hidden + rows.begin, rows.size(), k0, depth, block);
      }
    }
  });
}

// dgates[depth][columns] of some units as dW's left operand, which pack_dgates leaves in a block.
template <class Cell, class S, class F>
inline auto Backward<Cell, S, F>::left_operand(const T* block, [[maybe_unused]] int64_t depth) {
  if constexpr (F::kInTiles)
    return EvenRows<E>{reinterpret_cast<const E*>(block), words<F>(depth) * F::kPerWord};
  else
    return PackedColumns<T>{block};
}
template <class Cell, class S, class F>
inline void Backward<Cell, S, F>::pack_dgates(const E* dgates, int64_t depth, int64_t columns, T* block) const {
  if constexpr (F::kInTiles)
    pack_rows(dgates, depth, columns, block);
  else
    pack_columns(dgates, depth, columns, block);
}

// [words of depth][columns], eight columns at a time: what is too much is overwritten by the next step, or lies in the slack
// at the end.
template <class Cell, class S, class F>
inline void Backward<Cell, S, F>::pack_columns(const E* dgates, int64_t depth, int64_t columns, T* out) const {
  constexpr int64_t kAhead = 16;  // every row is on a page of its own, where the hardware does not prefetch
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(dgates + (k + kAhead) * dgates_stride_);
    F::template store_columns<kSlack>(out + k / F::kPerWord * columns, int(k % F::kPerWord),
                                      dgates + k * dgates_stride_);
  }
}

// [columns][words of depth] of pairs, a square of words at a time.
template <class Cell, class S, class F>
inline void Backward<Cell, S, F>::pack_rows(const E* dgates, int64_t depth, int64_t columns, T* out) const {
  static_assert(!F::kInTiles || F::kPerWord == 2);
  for (int64_t k = 0; k < words<F>(depth); k += kLanes)
    for (int64_t column = 0; column < columns; column += kLanes) {
      const auto row = [&](int64_t r) { return r < depth ? load(dgates + r * dgates_stride_ + column) : V(0); };
      typename V::Raw square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = F::join(row(2 * (k + i)), row(2 * (k + i) + 1)).raw;
      transpose<T>(square);
      const int64_t count = smaller(kLanes, columns - column);
      for (int64_t i = 0; i < count; ++i) store(out + (column + i) * words<F>(depth) + k, V(square[i]));
    }
}

// Rows [first, first + rows) of dW of one side, with `depth` rows of the chunk from k0 on.
template <class Cell, class S, class F>
inline void Backward<Cell, S, F>::weight_gradient(const Place& place, const Chunk& chunk, int s, int64_t first,
                                                  int64_t rows, int64_t k0, int64_t depth, const T* block) const {
  const Side& side = sides_[place.direction][s];
  const Buffers& buffers = buffers_[place.direction];
  const Panels<T> panels = side.panels();
  const bool starts = chunk.begin == 0 && k0 == 0;
  const auto left = left_operand(block, depth);
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int vectors = panels.vectors(panel);
    const int64_t valid = panels.valid(panel), at = first * side.columns + panel * Panels<T>::kWidth;
    const T* const b =
        panels.at(buffers.operand[s], panel, words<F>(chunk.rows)) + k0 / F::kPerWord * panels.width(panel);
    if (kWide && !adds_up()) {
      product_narrowed(rows, vectors, valid, reinterpret_cast<S*>(side.grad) + at, side.columns,
                       [&](const Tile<T>& tile) { gemm<F>(rows, vectors, left, b, words<F>(depth), tile); });
    } else {
      T* const out = buffers.grad_w[s] + at;
      gemm_edge<F>(rows, vectors, valid, left, b, words<F>(depth),
                   starts ? Tile<T>::from_zero(out, side.columns) : Tile<T>::accumulate(out, side.columns));
    }
  }
}

// What `multiply` leaves in a tile, into a matrix of storage type.
template <class Cell, class S, class F>
template <class Multiply>
SEQKERNELS_INLINE void Backward<Cell, S, F>::product_narrowed(int64_t rows, int vectors, int64_t columns, S* out,
                                                              int64_t stride, const Multiply& multiply) {
  constexpr int64_t kWidth = Panels<T>::kWidth;
  alignas(64) T tile[kTileRows * kWidth];
  multiply(Tile<T>::from_zero(tile, kWidth));
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v)
      store(out + r * stride + v * kLanes, load(tile + r * kWidth + v * kLanes), columns - v * kLanes);
}

// db += sum over rows of dgates.
template <class Cell, class S, class F>
inline void Backward<Cell, S, F>::bias_gradient(const Place& place, const Chunk& chunk, int s) const {
  const Side& side = sides_[place.direction][s];
  if (!side.bias_grad) return;
  const Buffers& buffers = buffers_[place.direction];
  constexpr int kBlocks = 4;  // vectors of units side by side: one would wait for the latency of its sum
  using B = Bundle<T, kBlocks>;
  const int64_t blocks = ceil_div(size_.hidden, kBlocks * kLanes);
  for_items(share(kGates * blocks, place.rank, place.size), blocks, [&](int64_t g, int64_t block) {
    const int64_t u = block * kBlocks * kLanes;
    const E* const dgates = buffers.dgates + side.dgates[g] * block_ + u;
    T* const grad = buffers.grad_b[s] + g * size_.hidden + u;
    const auto read = [&](const auto* p) {
      return B::each([&](int i) {
        const int64_t valid = size_.hidden - u - i * kLanes;
        return valid > 0 ? load(p + i * kLanes, valid) : V(0);
      });
    };
    B sum = chunk.begin == 0 ? B(0) : read(grad);
    for (int64_t row = 0; row < chunk.rows; ++row) sum = sum + read(dgates + row * dgates_stride_);
    for (int i = 0; i < kBlocks; ++i) store(grad + i * kLanes, sum.part[i], size_.hidden - u - i * kLanes);
  });
}

// A panel of W_ih, packed now if it is not kept; null where it is read in place.
template <class Cell, class S, class F>
inline const Compute<S>* Backward<Cell, S, F>::input_panel(const Place& place, int64_t panel) const {
  const Side& side = sides_[place.direction][0];
  T* const kept = buffers_[place.direction].w[0];
  if (side.in_place(rows_)) return nullptr;
  if (!packs_when_needed(0)) return side.panels().at(kept, panel, side_words_);
  T* const own = side.panels().at(kept, place.rank, side_words_);
  constexpr int64_t kAhead = 32;  // rows, between which the hardware does not prefetch
  for (int g = 0; g < kGates; ++g) {
    for (int64_t u = 0; u < size_.hidden; ++u) {
      const S* const part = weight_row(side, g, u) + panel * Panels<T>::kWidth;
      const S* const ahead = part + kAhead * side.columns;
      for (int64_t i = 0; i < Panels<T>::kWidth; i += 64 / int64_t(sizeof(S))) __builtin_prefetch(ahead + i);
      __builtin_prefetch(ahead + Panels<T>::kWidth - 1);  // rows begin anywhere in a line
      pack_row<S, F>(part, depth_of(side, g, u), side.panels().valid(panel), side.panels().vectors(panel), own);
    }
    pack_zeros(depth_padding(side, g), side.panels().width(panel), own);
  }
  return own;
}

// dx = dgates W_ih.
template <class Cell, class S, class F>
inline void Backward<Cell, S, F>::input_gradient(const Place& place, const Chunk& chunk) const {
  if (!p_.grad_x) return;
  const Side& side = sides_[place.direction][0];
  const Buffers& buffers = buffers_[place.direction];
  const Panels<T> panels = side.panels();
  const RowTiles tiles = row_tiles<F>(chunk.rows, kPanelVectors);
  const Range own = share(panels.count() * tiles.count(), place.rank, place.size);
  const auto pack = [&](int64_t panel) { return input_panel(place, panel); };
  for_items(own, tiles.count(), pack, [&](const T* w, int64_t panel, int64_t j) {
    const int64_t columns = panels.valid(panel);
    const Range rows = tiles[j];
    const EvenRows<E> dgates{buffers.dgates + rows.begin * dgates_stride_, dgates_stride_};
    const int64_t out = (chunk.first_row + rows.begin) * size_.inputs + panel * Panels<T>::kWidth;
    if (kWide && place.direction == 0) {
      product_narrowed(
          rows.size(), panels.vectors(panel), columns, reinterpret_cast<S*>(p_.grad_x) + out, size_.inputs,
          [&](const Tile<T>& tile) { multiply(side, w, rows.size(), panel, Panels<T>::kWidth, dgates, tile); });
    } else {
      T* const grad = place.direction > 0 ? buffers.grad_x : reinterpret_cast<T*>(p_.grad_x);
      multiply(side, w, rows.size(), panel, columns, dgates, Tile<T>::from_zero(grad + out, size_.inputs));
    }
  });
}

}  // namespace seqkernels::SEQKERNELS_ISA
