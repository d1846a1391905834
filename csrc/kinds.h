// The words in which bindings and kernels of every device speak of cells and dtypes.
#pragma once
#include <stdint.h>

namespace seqkernels {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16, kCount };
enum class CellKind : int { kLstm, kGru, kRnnTanh, kRnnRelu, kCount };

// Gates of a cell, and what it saves of each step for backward, in vectors of hidden units.
struct CellSizes {
  int64_t gates, saved;
  bool has_cell_state;
};
constexpr CellSizes cell_sizes(CellKind cell) {
  return cell == CellKind::kLstm  ? CellSizes{4, 4, true}
         : cell == CellKind::kGru ? CellSizes{3, 4, false}
                                  : CellSizes{1, 0, false};
}

// Hidden units are padded to this many in what forward saves for backward, on every device.
constexpr int kUnitPadding = 16;

}  // namespace seqkernels
