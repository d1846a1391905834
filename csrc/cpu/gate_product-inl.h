// The products that make gates: v W^T + b for the gates of one stage of a cell, a panel of units at a time. Compiled once per
// ISA.
//
// A panel holds all gates of some vectors of units: [vectors of units][gates][lanes] columns. W is packed in panels, or read
// where it lies where there are few rows (small M).
//
// Type parameters: those of gemm/formats-inl.h; T = Compute<S> is the type of sums, E that of operands where they lie.
#pragma once
#include "gemm/columns-inl.h"
#include "sequence-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// One side's weights of one stage, and where they lie packed.
template <class S>
struct GateWeights {
  const S* weight;  // [gates H, K]
  const S* bias;    // [gates H] or null
  int64_t k_size;
  Compute<S>* packed;       // [panels][packs of K][panel width]; not with small M
  Compute<S>* packed_bias;  // [panels][panel width]
  const S* norm;            // [gates H], the factor of what is normalised, or null
  Compute<S>* packed_norm;  // as packed_bias
};

template <int kGates, class S, class F>
class GateProduct {
  using T = Compute<S>;
  using E = typename F::Element;
  using V = Vec<T>;
  static constexpr int kLanes = V::kLanes;

 public:
  // Vectors of units in a panel: several where all their gates are as wide as a panel may be.
  static constexpr int kUnitVectors = kPanelVectors % kGates == 0 ? kPanelVectors / kGates : 1;
  static constexpr int kVectors = kGates * kUnitVectors, kPanelWidth = kVectors * kLanes;
  static constexpr int kProductVectors = product_vectors(kVectors);

  GateProduct(const GateWeights<S>& weights, int64_t units, bool small_m)
      : weights_(weights), units_(units), small_m_(small_m) {}

  static int64_t unit_vectors(int64_t units) { return ceil_div(units, kLanes); }
  static int64_t panels(int64_t units) { return ceil_div(unit_vectors(units), kUnitVectors); }
  int64_t panels() const { return panels(units_); }
  static int panel_unit_vectors(int64_t panel, int64_t units) {
    return int(min(kUnitVectors, unit_vectors(units) - panel * kUnitVectors));
  }
  int panel_unit_vectors(int64_t panel) const { return panel_unit_vectors(panel, units_); }
  int panel_vectors(int64_t panel) const { return kGates * panel_unit_vectors(panel); }
  int64_t panel_width(int64_t panel) const { return panel_vectors(panel) * kLanes; }

  // Where a panel lies packed.
  T* packed(int64_t panel) const { return weights_.packed + panel * kPanelWidth * packs<F>(weights_.k_size); }

  // Packs one panel of the weight: [gates H, K] -> [products][packs of K][product width].
  void pack(int64_t panel, T* packed) const {
    constexpr int64_t kWidth = kProductVectors * kLanes;
    const int64_t k_size = weights_.k_size, width = min(kWidth, panel_width(panel));
    for_columns(panel, [&](int g, int64_t unit, int64_t column) {
      T* const product = packed + column / kWidth * kWidth * packs<F>(k_size);
      pack_transposed<S, F>([&](int j) { return row(g, unit + j); }, k_size, product + column % kWidth, width);
    });
  }

  // Packs one panel of the bias, and of the norm if there is one.
  void pack_bias(int64_t panel) const {
    const auto pack = [&](const S* from, T* to) {
      for_columns(panel, [&](int g, int64_t unit, int64_t column) {
        store(to + panel * kPanelWidth + column, from ? load(from + g * units_ + unit, units_ - unit) : V(0));
      });
    };
    pack(weights_.bias, weights_.packed_bias);
    if (weights_.norm) pack(weights_.norm, weights_.packed_norm);
  }
  // Where those of a panel lie.
  const T* packed_bias(int64_t panel) const { return weights_.packed_bias + panel * kPanelWidth; }
  const T* packed_norm(int64_t panel) const { return weights_.packed_norm + panel * kPanelWidth; }

  // Calls f(gate, first unit, first column) for the vectors of a panel.
  template <class Visit>
  SEQKERNELS_INLINE void for_columns(int64_t panel, const Visit& f) const {
    for (int v = 0; v < panel_unit_vectors(panel); ++v)
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) f(g, (panel * kUnitVectors + v) * kLanes, (v * kGates + g) * kLanes);
  }

  // Makes out[rows][panel width] = rows W^T, plus b unless told otherwise, for one panel, packed there unless M is small;
  // `columns` are null or the same rows as columns.
  template <bool kWithBias = true, class Rows>
  SEQKERNELS_INLINE void multiply(const Rows& rows, const T* columns, int64_t count, int64_t panel,
                                  const T* packed_panel, T* out) const {
    const int vectors = panel_vectors(panel);
    const int64_t k_size = weights_.k_size;
    alignas(64) static constexpr T kZeros[kPanelWidth] = {};
    const auto tile = Tile<T>::from_bias(out, vectors * kLanes, kWithBias ? packed_bias(panel) : kZeros);
    if (small_m_) {
      for (int v = 0; v < vectors; ++v) {
        const int64_t unit = (panel * kUnitVectors + v / kGates) * kLanes, last = units_ - 1 - unit;
        const WeightRows<S> w{row(v % kGates, unit), k_size, last};
        if constexpr (sizeof(S) == sizeof(E))
          if (columns) {
            gemm_columns<F>(count, columns, {w.first, k_size}, min(kLanes, last + 1), k_size, tile.from(v * kLanes));
            continue;
          }
        gemv<S, F>(count, rows, w, k_size, tile.from(v * kLanes));
      }
      return;
    }
    if constexpr (kUnitVectors == 1) {
      constexpr int kWidth = kProductVectors * kLanes;
#pragma GCC unroll 2
      for (int column = 0; column < kPanelWidth; column += kWidth)
        gemm_rows<kProductVectors, F>(count, rows, packed_panel + column * packs<F>(k_size), kWidth, packs<F>(k_size),
                                      tile.from(column));
    } else {
      gemm<F>(count, vectors, rows, packed_panel, packs<F>(k_size), tile);
    }
  }

 private:
  // The row of the weight for gate g of unit u, null in the padding.
  const S* row(int g, int64_t u) const {
    return u < units_ ? weights_.weight + (g * units_ + u) * weights_.k_size : nullptr;
  }

  const GateWeights<S>& weights_;
  const int64_t units_;
  const bool small_m_;
};

}  // namespace seqkernels::SEQKERNELS_ISA
