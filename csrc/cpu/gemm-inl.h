// Matrix products on packed panels. Compiled once per ISA.
//
// C[rows, columns] = start + A[rows, depth] B[depth, columns] with B packed in panels: panel p holds columns
// [p W, p W + w) as [depth][w], where W = kPanelVectors vectors and w < W only in the last panel. A register tile of
// up to max_rows rows stays in registers over the whole depth, so C is touched once. B may also be read where it lies, row
// by row of a matrix of `stride` columns.
//
// The depth is counted in words of a format F (formats-inl.h).
#pragma once
#include "formats-inl.h"
#include "tile_registers-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// With 16 registers a tile of 3 rows and 4 vectors would read B twice as often as one of 6 rows and 2 vectors.
constexpr int kPanelVectors = kVectorRegisters > 16 ? 4 : 2, kPartVectors = 2;

// Vectors of one product: a panel as wide as several of those above lies as that many of them, one after the other.
constexpr int product_vectors(int panel_vectors) {
  return panel_vectors % kPanelVectors == 0 ? kPanelVectors : panel_vectors;
}

// Most rows of a register tile that is `vectors` wide: accumulators, one operand's registers and one spare.
constexpr int max_rows(int vectors) {
  int rows = 1;
  while (rows < 8 && (rows + 1) * vectors + smaller(rows + 1, vectors) + 1 <= kVectorRegisters) ++rows;
  return rows;
}

// ... and of one that may take the columns in two parts, one after the other, half as wide. The parts read A twice, where two
// lower tiles would read B twice, which is further away. In tile registers that is two by two of them.
template <class F>
constexpr int max_rows_in_parts(int vectors) {
  return F::kInTiles ? 2 * TileRegisters::kRows : max_rows(vectors > kPartVectors ? kPartVectors : vectors);
}

// Below this, a product in tile registers waits for their loads longer than one in vector registers takes.
constexpr int kMinTileRegisterRows = 3;

// Tiles of nearly equal height, none above `most`, that cover some rows; the higher ones first. A division takes some
// hundred cycles, so there is one for all of them.
class RowTiles {
 public:
  SEQKERNELS_INLINE RowTiles(int64_t rows, int most)
      : count_(ceil_div(rows, most)), height_(count_ > 0 ? rows / count_ : 0), higher_(rows - count_ * height_) {}

  SEQKERNELS_INLINE int64_t count() const { return count_; }
  SEQKERNELS_INLINE Range operator[](int64_t tile) const {
    const int64_t begin = tile * height_ + smaller(tile, higher_);
    return {begin, begin + height_ + (tile < higher_)};
  }

 private:
  int64_t count_, height_, higher_;
};

// ... and for a product that is `vectors` wide: one in parts, if that is enough.
template <class F>
SEQKERNELS_INLINE RowTiles row_tiles(int64_t rows, int vectors) {
  const int in_parts = max_rows_in_parts<F>(vectors);
  return {rows, rows <= in_parts || F::kInTiles ? in_parts : max_rows(vectors)};
}

// Calls f(made, row, column) for the items [own) of a grid with that many columns, row by row, where `made` is what make(row)
// returns, once for each row.
template <class Make, class Visit>
SEQKERNELS_INLINE void for_items(Range own, int64_t columns, const Make& make, const Visit& f) {
  for (int64_t item = own.begin; item < own.end;) {
    const int64_t row = item / columns, end = smaller((row + 1) * columns, own.end);
    const auto made = make(row);
    for (; item < end; ++item) f(made, row, item - row * columns);
  }
}
// ... f(row, column).
template <class Visit>
SEQKERNELS_INLINE void for_items(Range own, int64_t columns, const Visit& f) {
  for_items(
      own, columns, [](int64_t row) { return row; }, [&](int64_t row, int64_t, int64_t column) { f(row, column); });
}

// The two ways A is read: rows given by pointers (depth contiguous), or columns of a [depth][rows] block of words.
template <class E, int kRows>
struct RowsOperand {
  const E* row[kRows];
  template <class F>
  SEQKERNELS_INLINE typename F::Raw spread(int r, int64_t k) const {
    return F::spread(row[r], k);
  }
};
template <class T, int kRows>
struct ColumnsOperand {
  const T* block;  // [depth][kRows]
  template <class F>
  SEQKERNELS_INLINE typename F::Raw spread(int r, int64_t k) const {
    return F::spread(block, k * kRows + r);
  }
};

// A tile of C and what its sums start from: zero, one row for all (a bias), or C itself.
template <class T>
struct Tile {
  T* data;  // [rows][stride]
  int64_t stride;
  const T* start;  // [rows][start_stride]
  int64_t start_stride;

  static Tile from_zero(T* data, int64_t stride) {
    alignas(64) static constexpr T kZeros[kPanelVectors * Vec<T>::kLanes] = {};
    return {data, stride, kZeros, 0};
  }
  static Tile from_bias(T* data, int64_t stride, const T* bias) { return {data, stride, bias, 0}; }
  static Tile accumulate(T* data, int64_t stride) { return {data, stride, data, stride}; }

  // The columns from `column` on.
  Tile from(int64_t column) const { return {data + column, stride, start + column, start_stride}; }
  Tile from_row(int64_t row) const { return {data + row * stride, stride, start + row * start_stride, start_stride}; }
};

template <int kRows, int kVectors, class F, class Operand>
SEQKERNELS_INLINE void multiply_add(typename F::Raw (&sum)[kRows][kVectors], const Operand& a, int64_t k,
                                    const typename F::Sum* b) {
  using T = typename F::Sum;
  using Raw = typename F::Raw;
  if constexpr (kRows < kVectors) {
    Raw x[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) x[r] = a.template spread<F>(r, k);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Raw w = load(b + v * Vec<T>::kLanes).raw;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) F::multiply_add(sum[r][v], x[r], w);
    }
  } else {
    Raw w[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) w[v] = load(b + v * Vec<T>::kLanes).raw;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Raw x = a.template spread<F>(r, k);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) F::multiply_add(sum[r][v], x, w[v]);
    }
  }
}

template <int kRows, int kVectors, class F, class Operand>
__attribute__((noinline)) void gemm_tile(const Operand& operand, const typename F::Sum* b, int64_t stride,
                                         int64_t depth, const Tile<typename F::Sum>& tile_of_c) {
  using T = typename F::Sum;
  using Raw = typename F::Raw;
  constexpr int kLanes = Vec<T>::kLanes, kWidth = kVectors * kLanes;
  // Few accumulators would wait for the latency of the multiply-add: then several sets take turns.
  constexpr int kSets = kRows * kVectors >= 8 ? 1 : (kRows * kVectors >= 4 ? 2 : 4);
  constexpr int64_t kPrefetch = 4096 / sizeof(T), kLine = 64 / sizeof(T);
  const Operand a = operand;  // copies, for the compiler to keep in registers
  const Tile<T> tile = tile_of_c;

  // Taken out, so that the loop below runs at least once: sums that might pass it by would be spilled on both its sides.
  if (depth <= 0) {
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kWidth; v += kLanes)
        store(tile.data + r * tile.stride + v, load(tile.start + r * tile.start_stride + v));
    return;
  }

  Raw sum[kSets][kRows][kVectors];
#pragma GCC unroll 4
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        sum[s][r][v] = s == 0 ? load(tile.start + r * tile.start_stride + v * kLanes).raw : Raw{};

  int64_t k = 0;
  for (; k + kSets <= depth; k += kSets) {
#pragma GCC unroll 4
    for (int s = 0; s < kSets; ++s, b += stride) {
#pragma GCC unroll 4
      for (int line = 0; line < kWidth; line += kLine) __builtin_prefetch(b + kPrefetch + line);
      multiply_add<kRows, kVectors, F>(sum[s], a, k + s, b);
    }
  }
  if constexpr (kSets > 1)
    for (; k < depth; ++k, b += stride) multiply_add<kRows, kVectors, F>(sum[0], a, k, b);

#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Raw total = sum[0][r][v];
#pragma GCC unroll 4
      for (int s = 1; s < kSets; ++s) total += sum[s][r][v];
      store(tile.data + r * tile.stride + v * kLanes, Vec<T>(total));
    }
}

// gemm_tile for `rows` known at run time, at most kRows.
template <int kVectors, int kRows, class F, class MakeOperand>
SEQKERNELS_INLINE void gemm_whole(int64_t rows, const MakeOperand& operand, const typename F::Sum* b, int64_t stride,
                                  int64_t depth, const Tile<typename F::Sum>& tile) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return gemm_tile<kRows, kVectors, F>(operand.template make<kRows>(), b, stride, depth, tile);
    gemm_whole<kVectors, kRows - 1, F>(rows, operand, b, stride, depth, tile);
  }
}

template <int n>
struct Index {
  static constexpr int value = n;
};
// Calls f(Index<0>) to f(Index<n - 1>).
template <int n, int i = 0, class Visit>
SEQKERNELS_INLINE void for_indices(const Visit& f) {
  if constexpr (i < n) {
    f(Index<i>{});
    for_indices<n, i + 1>(f);
  }
}

// A product in kHigh x kVectors tile registers for C; the first `upper` rows are in the upper ones.
template <int kHigh, int kVectors, class F, class Rows>
__attribute__((noinline)) void gemm_tile_registers(int upper, const Rows& operand, const typename F::Sum* b,
                                                   int64_t stride, int64_t depth,
                                                   const Tile<typename F::Sum>& tile_of_c) {
  using R = TileRegisters;
  constexpr int64_t kBytes = sizeof(typename F::Sum);
  static_assert(F::kDepthStep == R::kWords && (kHigh == 1 ? kVectors <= 4 : kVectors <= 2));
  const Rows a = operand;  // copies, as in gemm_tile
  const Tile<typename F::Sum> tile = tile_of_c;
  const auto for_c = [&](const auto& f) {
    for_indices<kHigh>(
        [&](auto h) { for_indices<kVectors>([&](auto v) { f(h, v, h.value * upper, v.value * R::kWords); }); });
  };
  for_c([&](auto h, auto v, int64_t row, int64_t column) {
    R::load<R::c(h.value, v.value)>(tile.start + row * tile.start_stride + column, tile.start_stride * kBytes);
  });
  for (int64_t k = 0; k < depth; k += R::kWords) {
    for_indices<kHigh>([&](auto h) {
      R::load<R::a(h.value)>(a.data + h.value * upper * a.stride + k * F::kPerWord, a.stride * int64_t(sizeof *a.data));
    });
    for_indices<kVectors>([&](auto v) {
      R::load<R::b(v.value)>(b + k * stride + v.value * R::kWords, stride * kBytes);
      for_indices<kHigh>([&](auto h) { R::multiply_add<R::c(h.value, v.value), R::a(h.value), R::b(v.value)>(); });
    });
  }
  for_c([&](auto h, auto v, int64_t row, int64_t column) {
    R::store<R::c(h.value, v.value)>(tile.data + row * tile.stride + column, tile.stride * kBytes);
  });
}

// ... for rows and columns that may take several of them, at most two by four.
template <int kVectors, class F, class Rows>
SEQKERNELS_INLINE void gemm_in_tiles(int64_t rows, const Rows& a, const typename F::Sum* b, int64_t stride,
                                     int64_t depth, const Tile<typename F::Sum>& tile) {
  if (rows <= TileRegisters::kRows) {
    TileRegisters::set_heights(int(rows), int(rows));
    return gemm_tile_registers<1, kVectors, F>(int(rows), a, b, stride, depth, tile);
  }
  const int upper = int(ceil_div(rows, 2));
  TileRegisters::set_heights(upper, int(rows) - upper);
  constexpr int kLeft = int(smaller(kVectors, 2)), kColumns = kLeft * TileRegisters::kWords;
  gemm_tile_registers<2, kLeft, F>(upper, a, b, stride, depth, tile);
  if constexpr (kVectors > kLeft)
    gemm_tile_registers<2, kVectors - kLeft, F>(upper, a, b + kColumns, stride, depth, tile.from(kColumns));
}

// ... at most max_rows_in_parts<F>(kVectors); `operand.make<n>()` makes the operand of n rows.
template <int kVectors, class F, class MakeOperand>
SEQKERNELS_INLINE void gemm_rows(int64_t rows, const MakeOperand& operand, const typename F::Sum* b, int64_t stride,
                                 int64_t depth, const Tile<typename F::Sum>& tile) {
  if constexpr (F::kInTiles)
    if (rows >= kMinTileRegisterRows) return gemm_in_tiles<kVectors, F>(rows, operand, b, stride, depth, tile);
  constexpr int kWhole = F::kInTiles ? kMinTileRegisterRows - 1 : max_rows(kVectors);
  if (rows <= kWhole) return gemm_whole<kVectors, kWhole, F>(rows, operand, b, stride, depth, tile);
  if constexpr (!F::kInTiles && kVectors > kPartVectors) {
    constexpr int64_t kColumns = kPartVectors * Vec<typename F::Sum>::kLanes;
    gemm_rows<kPartVectors, F>(rows, operand, b, stride, depth, tile);
    gemm_rows<kVectors - kPartVectors, F>(rows, operand, b + kColumns, stride, depth, tile.from(kColumns));
  }
}

// ... and for `vectors` known at run time, at most kPanelVectors.
template <class F, int kVectors = kPanelVectors, class MakeOperand>
SEQKERNELS_INLINE void gemm(int64_t rows, int vectors, const MakeOperand& operand, const typename F::Sum* b,
                            int64_t stride, int64_t depth, const Tile<typename F::Sum>& tile) {
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return gemm<F, kVectors - 1>(rows, vectors, operand, b, stride, depth, tile);
  gemm_rows<kVectors, F>(rows, operand, b, stride, depth, tile);
}

// ... and with B in a packed panel.
template <class F, class MakeOperand>
SEQKERNELS_INLINE void gemm(int64_t rows, int vectors, const MakeOperand& operand, const typename F::Sum* b,
                            int64_t depth, const Tile<typename F::Sum>& tile) {
  gemm<F>(rows, vectors, operand, b, int64_t(vectors) * Vec<typename F::Sum>::kLanes, depth, tile);
}

// ... and for a tile of a matrix of which only `columns` columns are there to write.
template <class F, class MakeOperand>
SEQKERNELS_INLINE void gemm_edge(int64_t rows, int vectors, int64_t columns, const MakeOperand& operand,
                                 const typename F::Sum* b, int64_t depth, const Tile<typename F::Sum>& tile) {
  using T = typename F::Sum;
  constexpr int kLanes = Vec<T>::kLanes, kWidth = kPanelVectors * kLanes;
  if (columns >= vectors * kLanes) return gemm<F>(rows, vectors, operand, b, depth, tile);
  alignas(64) T whole[max_rows_in_parts<F>(kPanelVectors) * kWidth];
  const bool accumulates = tile.start == tile.data;
  for (int64_t r = 0; accumulates && r < rows; ++r) copy(tile.data + r * tile.stride, columns, whole + r * kWidth);
  gemm<F>(rows, vectors, operand, b, depth,
          accumulates ? Tile<T>::accumulate(whole, kWidth) : Tile<T>{whole, kWidth, tile.start, tile.start_stride});
  for (int64_t r = 0; r < rows; ++r) copy(whole + r * kWidth, columns, tile.data + r * tile.stride);
}

template <class E>
struct RowPointers {
  const E* const* rows;
  RowPointers from(int64_t row) const { return {rows + row}; }
  template <int kRows>
  SEQKERNELS_INLINE RowsOperand<E, kRows> make() const {
    RowsOperand<E, kRows> a;
    for (int r = 0; r < kRows; ++r) a.row[r] = rows[r];
    return a;
  }
};
template <class E>
struct EvenRows {
  const E* data;
  int64_t stride;
  EvenRows from(int64_t row) const { return {data + row * stride, stride}; }
  template <int kRows>
  SEQKERNELS_INLINE RowsOperand<E, kRows> make() const {
    RowsOperand<E, kRows> a;
    for (int r = 0; r < kRows; ++r) a.row[r] = data + r * stride;
    return a;
  }
};
template <class T>
struct PackedColumns {
  const T* block;
  template <int kRows>
  SEQKERNELS_INLINE ColumnsOperand<T, kRows> make() const {
    return {block};
  }
};

// ---- packing -----------------------------------------------------------------------------------------------------

// One panel column block of `lanes` columns from rows of a row-major matrix of `depth` elements: out[k * width + j] is word k
// of row(j), which is null for padding.
template <class S, class F, class Row>
SEQKERNELS_INLINE void pack_transposed(const Row& row, int64_t depth, typename F::Sum* out, int64_t width) {
  using T = typename F::Sum;
  constexpr int n = Vec<T>::kLanes;
  for (int64_t k = 0; k < words<F>(depth); k += n) {
    typename Vec<T>::Raw square[n];
#pragma GCC unroll 16
    for (int j = 0; j < n; ++j) {
      const S* source = row(j);
      square[j] = source ? F::load_words(source + k * F::kPerWord, depth - k * F::kPerWord) : typename F::Raw{};
    }
    transpose<T>(square);
    const int64_t steps = smaller(n, words<F>(depth) - k);
    for (int64_t i = 0; i < steps; ++i) store(out + (k + i) * width, Vec<T>(square[i]));
  }
}

// Columns of row k of a matrix, padded with zeros to `vectors` vectors, into its words of packed[depth][vectors]. The rows
// that share words are packed in order; where the last one is alone, the rest is zero.
template <class S, class F>
SEQKERNELS_INLINE void pack_row(const S* row, int64_t k, int64_t columns, int vectors, typename F::Sum* packed) {
  constexpr int n = Vec<typename F::Sum>::kLanes;
  typename F::Sum* const out = packed + k / F::kPerWord * vectors * n;
  for (int v = 0; v < vectors; ++v)
    F::store_part_of_words(out + v * n, int(k % F::kPerWord), row + v * n, columns - v * n);
}

// Words [begin, end) of a packed depth whose rows are not there.
template <class T>
SEQKERNELS_INLINE void pack_zeros(Range words, int64_t width, T* packed) {
  for (int64_t i = words.begin * width; i < words.end * width; ++i) packed[i] = 0;
}

// Panels over `columns` columns: how many, and each one's width and place.
template <class T>
struct Panels {
  static constexpr int64_t kWidth = kPanelVectors * Vec<T>::kLanes;
  int64_t columns;

  int64_t count() const { return ceil_div(columns, kWidth); }
  int vectors(int64_t panel) const {
    return int(smaller(kPanelVectors, ceil_div(columns - panel * kWidth, Vec<T>::kLanes)));
  }
  int64_t width(int64_t panel) const { return vectors(panel) * Vec<T>::kLanes; }
  int64_t valid(int64_t panel) const { return smaller(kWidth, columns - panel * kWidth); }
  int64_t size(int64_t depth) const { return count() * kWidth * depth; }
  template <class P>
  P* at(P* packed, int64_t panel, int64_t depth) const {
    return packed + panel * kWidth * depth;
  }
};

// Row k of a matrix into all its panels of `depth` words.
template <class S, class F, class T = typename F::Sum>
SEQKERNELS_INLINE void pack_row(const S* row, int64_t k, const Panels<T>& panels, int64_t depth, T* packed) {
  constexpr int n = Vec<T>::kLanes;
  constexpr int64_t kWidth = Panels<T>::kWidth;
  const int64_t whole = panels.columns / kWidth;
  T* out = packed + k / F::kPerWord * kWidth;
  for (int64_t panel = 0; panel < whole; ++panel, row += kWidth, out += kWidth * depth)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) F::store_part_of_words(out + v * n, int(k % F::kPerWord), row + v * n, n);
  if (whole < panels.count())
    pack_row<S, F>(row, k, panels.valid(whole), panels.vectors(whole), panels.at(packed, whole, depth));
}
template <class T>
SEQKERNELS_INLINE void pack_zeros(Range words, const Panels<T>& panels, int64_t depth, T* packed) {
  for (int64_t panel = 0; panel < panels.count(); ++panel)
    pack_zeros(words, panels.width(panel), panels.at(packed, panel, depth));
}

// ---- few rows ----------------------------------------------------------------------------------------------------

// Rows of x that share the weights they are multiplied with.
constexpr int kDotRows = 2;

// Rows of a weight where they lie; beyond the last one, that again.
template <class S>
struct WeightRows {
  const S* first;
  int64_t stride, last;
  SEQKERNELS_INLINE const S* operator[](int64_t row) const { return first + smaller(row, last) * stride; }
};

// A vector of C, one number for each weight row: start + x w, for as few rows of x that packing would cost more than the
// product. Eight weight rows at a time are as many streams as the hardware prefetches well; eight sums hide the latency of the
// multiply-add.
template <class S, class F, int kRows>
SEQKERNELS_INLINE void dot_rows(const RowsOperand<typename F::Element, kRows>& x, const WeightRows<S>& weights,
                                int64_t depth, const Tile<typename F::Sum>& tile) {
  using T = typename F::Sum;
  using Raw = typename F::Raw;
  using Depth = AlongDepth<S, F>;
  constexpr int n = Vec<T>::kLanes, kGroup = int(smaller(n, kVectorRegisters > 16 ? 8 : 8 / kRows));
  Raw sum[kRows][n];
#pragma GCC unroll 16
  for (int first = 0; first < n; first += kGroup) {
    Raw part[kRows][kGroup];
    const S* w[kGroup];
#pragma GCC unroll 8
    for (int j = 0; j < kGroup; ++j) {
      w[j] = weights[first + j];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) part[r][j] = Raw{};
    }
    int64_t k = 0;
    const auto add = [&](int64_t count) {
      typename Depth::Elements xk[kRows];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) xk[r] = Depth::load_elements(x.row[r] + k, count);
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) {
        const auto wk = Depth::load_weights(w[j] + k, count);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) Depth::multiply_add(part[r][j], xk[r], wk);
      }
    };
    for (; k + Depth::kElements <= depth; k += Depth::kElements) add(Depth::kElements);
    if (k < depth) add(depth - k);
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) sum[r][first + j] = part[r][j];
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    transpose<T>(sum[r]);
    Raw total = load(tile.start + r * tile.start_stride).raw;
#pragma GCC unroll 16
    for (int j = 0; j < n; ++j) total += sum[r][j];
    store(tile.data + r * tile.stride, Vec<T>(total));
  }
}

// ... for `rows` known at run time, kRows of them side by side while there are.
template <class S, class F, int kRows = kDotRows, class Rows>
SEQKERNELS_INLINE void dot(int64_t rows, const Rows& operand, const WeightRows<S>& weights, int64_t depth,
                           const Tile<typename F::Sum>& tile, int64_t row = 0) {
  for (; row + kRows <= rows; row += kRows)
    dot_rows<S, F, kRows>(operand.from(row).template make<kRows>(), weights, depth, tile.from_row(row));
  if constexpr (kRows > 1) dot<S, F, kRows - 1>(rows, operand, weights, depth, tile, row);
}

}  // namespace seqkernels::SEQKERNELS_ISA
