// What the forward pass does for a chunk of steps: its rows of x, and their input gates. Compiled once per ISA.
//
// Members of ForwardLoop, which names the types.
#pragma once
#include "forward-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// Finds or copies the chunk's rows of x.
template <class Cell, class S, class F>
inline void ForwardLoop<Cell, S, F>::gather_inputs(const ThreadSlice& slice, const Steps& steps,
                                                   const Chunk& chunk) const {
  const Buffers& buffers = buffers_[slice.direction];
  for_rows(shape_, steps, chunk, share(chunk.rows, slice.rank, slice.size), false,
           [&](int64_t t, int64_t b, int64_t row) {
             const S* const x = row_of<const S>(p_.x, shape_, t, b);
             if constexpr (sizeof(S) == sizeof(E))
               if (reads_x_in_place()) {
                 buffers.x_rows[row] = x;
                 return;
               }
             E* const copy = buffers.x_copy + row * x_stride();
             for (int64_t i = 0; i < input_packs_ * F::kPack; i += kLanes)
               store(copy + i, load(x + i, size_.inputs - i));
             buffers.x_rows[row] = copy;
           });
}

// The chunk's rows of x from `row` on.
template <class Cell, class S, class F>
inline auto ForwardLoop<Cell, S, F>::input_rows(const Buffers& buffers, int64_t row) const {
  if constexpr (F::kInTiles)
    return EvenRows<E>{buffers.x_copy + row * x_stride(), x_stride()};
  else
    return RowPointers<E>{buffers.x_rows + row};
}

// The chunk's rows of x as columns.
template <class Cell, class S, class F>
inline void ForwardLoop<Cell, S, F>::pack_inputs(const ThreadSlice& slice, const Chunk& chunk) const {
  const Buffers& buffers = buffers_[slice.direction];
  const Range own = share(ceil_div(chunk.rows, kLanes), slice.rank, slice.size);
  pack_columns<F>(chunk.rows, own, input_rows(buffers, 0), size_.inputs, buffers.x_columns);
}

// A panel of W_ih, packed now if it is not kept; null where it is read where it lies.
template <class Cell, class S, class F>
template <int stage>
inline const Compute<S>* ForwardLoop<Cell, S, F>::input_panel(const ThreadSlice& slice, int64_t panel) const {
  const auto product = input_product<stage>(slice.direction);
  if (small_m_) return nullptr;
  if (!packs_when_needed<stage>()) return product.packed(panel);
  T* const own = product.packed(slice.rank);
  product.pack(panel, own);
  return own;
}

// Makes a stage's input gates of the chunk's rows, x W_ih^T + b_ih, without the bias if they are to be normalised.
template <class Cell, class S, class F>
template <int stage>
inline void ForwardLoop<Cell, S, F>::project_inputs(const ThreadSlice& slice, const Chunk& chunk) const {
  const Buffers& buffers = buffers_[slice.direction];
  const auto product = input_product<stage>(slice.direction);
  const RowTiles tiles = tiles_of<stage>(chunk.rows);
  const T* const columns = as_columns(chunk.rows) ? buffers.x_columns : nullptr;
  // Panel by panel, so that a split by units makes what it will use; by rows where it splits the batch.
  for_items(
      share(product.panels() * tiles.count(), slice.rank, slice.size), tiles.count(),
      [&](int64_t panel) { return input_panel<stage>(slice, panel); },
      [&](const T* w, int64_t panel, int64_t j) {
        const Range rows = tiles[j];
        product.template multiply<!kNormalizes>(input_rows(buffers, rows.begin), columns, rows.size(), panel, w,
                                                input_gates<stage>(slice.direction, chunk, panel, rows.begin));
      });
}

}  // namespace seqkernels::SEQKERNELS_ISA
