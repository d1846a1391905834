// The words in which bindings and kernels of every device speak of cells and dtypes.
#pragma once
#include <stdint.h>

#include "cells/registry.h"

namespace seqkernels {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16, kCount };

constexpr int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// A cell by its place in the registry.
enum class CellKind : int {};
constexpr int kCellKinds = cells::Registry::kCount;

// What a weight of a direction is. Those from kProjection on are of some cells alone, where they follow the others in this order.
enum WeightKind : int {
  kInputWeight,
  kHiddenWeight,
  kInputBias,
  kHiddenBias,
  kProjection,
  kInputNorm,
  kHiddenNorm,
  kCellNorm,
  kCellNormBias
};
constexpr int kWeightKinds = 9;
constexpr const char* kWeightNames[kWeightKinds] = {"w_ih",    "w_hh",    "b_ih",   "b_hh",       "w_hr",
                                                    "norm_ih", "norm_hh", "norm_c", "norm_c_bias"};
constexpr bool is_bias(WeightKind kind) { return kind == kInputBias || kind == kHiddenBias; }

struct WeightSize {
  int64_t rows, columns;  // columns: -1 of a vector
  constexpr bool is_vector() const { return columns < 0; }
};

// What a cell's struct says of it (cells/cell.h), for code that gets to know the cell at run time.
struct CellInfo {
  const char* name;
  int64_t gates;
  int64_t saved;  // values per unit and step that forward saves for backward
  int64_t norms;  // and numbers of each step of a sequence
  bool has_cell_state;
  bool has_hidden_dgates;  // gradients of the product with h that are not those of the product with x
  bool has_weight[kWeightKinds];
  int stages;
  const int* stage_gates;  // [stages]
  int carried;             // values per unit that are handed on from stage to stage
  int dgates;              // gradients per unit that `backward` writes

  constexpr bool is_projected() const { return has_weight[kProjection]; }  // h is a projection, of a size of its own
  constexpr bool is_normalized() const { return norms > 0; }
  // Weights of a direction: without biases, those beside w_ih and w_hh, and all.
  constexpr int extra_weights() const {
    int count = 0;
    for (int kind = kProjection; kind < kWeightKinds; ++kind) count += has_weight[kind];
    return count;
  }
  constexpr int weights(bool biases) const { return (biases ? 4 : 2) + extra_weights(); }
  constexpr bool has(WeightKind kind, bool biases) const { return has_weight[kind] && (biases || !is_bias(kind)); }
  // The kind of each of these, in their order, and the place of a kind.
  constexpr WeightKind kind_of_weight(int place, bool biases) const {
    for (int kind = 0;; ++kind)
      if (has(WeightKind(kind), biases) && place-- == 0) return WeightKind(kind);
  }
  constexpr int place_of(WeightKind kind, bool biases) const {
    int place = 0;
    for (int before = 0; before < kind; ++before) place += has(WeightKind(before), biases);
    return place;
  }
  // The size of a weight, for so many inputs, hidden units and units of h.
  constexpr WeightSize size_of(WeightKind kind, int64_t inputs, int64_t hidden, int64_t outputs) const {
    switch (kind) {
      case kInputWeight:
        return {gates * hidden, inputs};
      case kHiddenWeight:
        return {gates * hidden, outputs};
      case kProjection:
        return {outputs, hidden};
      case kCellNorm:
      case kCellNormBias:
        return {hidden, -1};
      default:
        return {gates * hidden, -1};
    }
  }
};

template <class Cell>
constexpr CellInfo info_of() {
  constexpr bool kOfInput = Cell::kNorm == cells::Norm::kSides, kOfHidden = Cell::kNorm != cells::Norm::kNone;
  return {
      Cell::kName,
      Cell::kGates,
      cells::kReserved<Cell>,
      cells::kNormsOfRow<Cell>,
      Cell::kHasCellState,
      kOfInput || (!kOfHidden && !Cell::kIsProjected && Cell::kDgates > Cell::kGates),
      {true, true, true, true, Cell::kIsProjected, kOfInput, kOfHidden, Cell::kNormalizesCell, Cell::kNormalizesCell},
      Cell::kStages,
      Cell::kStageGates,
      Cell::kCarried,
      Cell::kDgates};
}

// All of them, in the order of the registry.
struct CellInfos {
  CellInfo of[kCellKinds];
};
template <class... Cells>
constexpr CellInfos infos_of(cells::CellList<Cells...>) {
  return {{info_of<Cells>()...}};
}
constexpr CellInfos kCellInfos = infos_of(cells::Registry());

constexpr const CellInfo& cell_info(CellKind cell) { return kCellInfos.of[int(cell)]; }

// The kind of the cell that has this struct.
template <class Cell, class... Cells>
constexpr CellKind kind_in(cells::CellList<Cells...>) {
  int kind = 0;
  bool found = false;
  ((found = found || cells::kIsSame<Cell, Cells>, kind += !found), ...);
  return CellKind(kind);
}
template <class Cell>
constexpr CellKind kind_of() {
  return kind_in<Cell>(cells::Registry());
}

// Hidden units are padded to this many in what forward saves for backward, on every device.
constexpr int kUnitPadding = 16;

}  // namespace seqkernels
