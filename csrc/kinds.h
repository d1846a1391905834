// The words in which bindings and kernels of every device speak of cells and dtypes.
#pragma once

namespace seqkernels {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16, kCount };
enum class CellKind : int { kLstm, kGru, kRnnTanh, kRnnRelu, kCount };

// Hidden units are padded to this many in what forward saves for backward, on every device.
constexpr int kUnitPadding = 16;

}  // namespace seqkernels
