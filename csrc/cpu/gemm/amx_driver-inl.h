// The inner loop of a product in tile registers (AMX). Compiled once per ISA.
//
// Type parameters: those of formats-inl.h; Rows is EvenRows. K is counted in packs.
#pragma once
#include "operands-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// A product in kHigh x kVectors tile registers for C; the first `upper` rows are in the upper ones.
template <int kHigh, int kVectors, class F, class Rows>
__attribute__((noinline)) void gemm_tile_registers(int upper, const Rows& operand, const typename F::Sum* b,
                                                   int64_t stride, int64_t k_packs,
                                                   const Tile<typename F::Sum>& tile_of_c) {
  using R = TileRegisters;
  constexpr int64_t kBytes = sizeof(typename F::Sum);
  static_assert(F::kKStep == R::kColumns && (kHigh == 1 ? kVectors <= 4 : kVectors <= 2));
  const Rows a = operand;  // copies, for the compiler to keep in registers
  const Tile<typename F::Sum> tile = tile_of_c;
  const auto for_c = [&](const auto& f) {
    for_indices<kHigh>(
        [&](auto h) { for_indices<kVectors>([&](auto v) { f(h, v, h.value * upper, v.value * R::kColumns); }); });
  };
  for_c([&](auto h, auto v, int64_t row, int64_t column) {
    R::load<R::c(h.value, v.value)>(tile.start + row * tile.start_stride + column, tile.start_stride * kBytes);
  });
  for (int64_t k = 0; k < k_packs; k += R::kColumns) {
    for_indices<kHigh>([&](auto h) {
      R::load<R::a(h.value)>(a.data + h.value * upper * a.stride + k * F::kPack, a.stride * int64_t(sizeof *a.data));
    });
    for_indices<kVectors>([&](auto v) {
      R::load<R::b(v.value)>(b + k * stride + v.value * R::kColumns, stride * kBytes);
      for_indices<kHigh>([&](auto h) { R::multiply_add<R::c(h.value, v.value), R::a(h.value), R::b(v.value)>(); });
    });
  }
  for_c([&](auto h, auto v, int64_t row, int64_t column) {
    R::store<R::c(h.value, v.value)>(tile.data + row * tile.stride + column, tile.stride * kBytes);
  });
}

// The same product for rows and columns that may take several tile registers, at most two by four.
template <int kVectors, class F, class Rows>
SEQKERNELS_INLINE void gemm_in_tiles(int64_t rows, const Rows& a, const typename F::Sum* b, int64_t stride,
                                     int64_t k_packs, const Tile<typename F::Sum>& tile) {
  if (rows <= TileRegisters::kRows) {
    TileRegisters::set_heights(int(rows), int(rows));
    return gemm_tile_registers<1, kVectors, F>(int(rows), a, b, stride, k_packs, tile);
  }
  const int upper = int(ceil_div(rows, 2));
  TileRegisters::set_heights(upper, int(rows) - upper);
  constexpr int kLeft = int(min(kVectors, 2)), kColumns = kLeft * TileRegisters::kColumns;
  gemm_tile_registers<2, kLeft, F>(upper, a, b, stride, k_packs, tile);
  if constexpr (kVectors > kLeft)
    gemm_tile_registers<2, kVectors - kLeft, F>(upper, a, b + kColumns, stride, k_packs, tile.from(kColumns));
}

}  // namespace seqkernels::SEQKERNELS_ISA
