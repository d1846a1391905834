// Whole numbers: rounding, ranges, and who gets which part of them. Compiled once per ISA.
//
// min and max are not those of the C++ library, which stays out of the kernels (vec-inl.h says why).
#pragma once
#include <stdint.h>

#include "../cells/cell.h"

namespace seqkernels::SEQKERNELS_ISA {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// The whole numbers [begin, end).
struct Range {
  int64_t begin, end;
  SEQKERNELS_INLINE int64_t size() const { return end - begin; }
};

// The range of n things that is for member `rank` of `size`.
SEQKERNELS_INLINE Range share(int64_t n, int rank, int size) { return {n * rank / size, n * (rank + 1) / size}; }

// Calls f(made, row, column) for the items [own) of a grid with that many columns, row by row, where `made` is what
// make(row) returns, once for each row.
template <class Make, class Visit>
SEQKERNELS_INLINE void for_items(Range own, int64_t columns, const Make& make, const Visit& f) {
  for (int64_t item = own.begin; item < own.end;) {
    const int64_t row = item / columns, end = min((row + 1) * columns, own.end);
    const auto made = make(row);
    for (; item < end; ++item) f(made, row, item - row * columns);
  }
}

// Calls f(row, column) for the items [own) of a grid with that many columns, row by row.
template <class Visit>
SEQKERNELS_INLINE void for_items(Range own, int64_t columns, const Visit& f) {
  for_items(
      own, columns, [](int64_t row) { return row; }, [&](int64_t row, int64_t, int64_t column) { f(row, column); });
}

// A number that templates can take.
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

}  // namespace seqkernels::SEQKERNELS_ISA
