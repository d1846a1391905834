// What happens to states between steps, beside the cell: resets, recurrent dropout, zoneout. Compiled once per ISA.
//
// A reset between two steps lets nothing pass: the later one starts from zeros. It is said of the later row in time, so in
// reverse it lies between a row and the one that comes before it there.
#pragma once
#include "sequence-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// Resets of the rows of a step, by sequence.
struct ResetRow {
  const uint8_t* flags;  // null: none
  int64_t stride;
};

// Whether each sequence that has this step and one before it in visiting order starts anew with it; not in reverse, also those
// whose first step it is.
SEQKERNELS_INLINE ResetRow resets_before(const RowTensor& resets, const LayerShape& shape, bool reverse, int64_t t) {
  const int64_t later = reverse ? t + 1 : t;
  if (!resets.data || later < 0 || later >= shape.seq_len) return {nullptr, 0};
  return {first_row_of<const uint8_t>(resets, shape, later), resets.batch_stride};
}
SEQKERNELS_INLINE bool is_reset(const ResetRow& row, const LayerShape& shape, int64_t b) {
  return row.flags && row.flags[sequence_of(shape, b) * row.stride];
}

// 1 where a flag is set, and 0, of the first n lanes; the others are 0.
template <class T>
SEQKERNELS_INLINE Vec<T> load_flags(const uint8_t* p, int64_t n) {
  constexpr int kLanes = Vec<T>::kLanes;
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  uint8_t own[kLanes] = {};
  if (n < kLanes) {
    for (int64_t i = 0; i < n; ++i) own[i] = p[i];
    p = own;
  }
  Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  const auto flags = __builtin_convertvector(bytes, typename Vec<T>::RawInt);
  return Vec<T>(flags != typename Vec<T>::RawInt{} ? Vec<T>(1).raw : Vec<T>(0).raw);
}

// Zoneout of one row of a step, whose first unit is that of `flags`.
template <class T>
struct ZoneoutRow {
  using V = Vec<T>;
  const uint8_t* flags;  // null: in proportion
  T rate;

  // How much each unit keeps.
  SEQKERNELS_INLINE V kept(int64_t u, int64_t valid) const { return flags ? load_flags<T>(flags + u, valid) : V(rate); }
  // The value after the step. A unit keeps all of its own or nothing, but in proportion.
  SEQKERNELS_INLINE V mix(int64_t u, int64_t valid, V before, V made) const {
    const V keeps = kept(u, valid);
    if (!flags) return keeps * before + (V(1) - keeps) * made;
    return V(keeps.raw != V(0).raw ? before.raw : made.raw);
  }
};

// Zoneout of the units of h or of c in a layer.
template <class T>
class ZoneoutOf {
 public:
  ZoneoutOf(const Zoneout& zoneout, const LayerShape& shape, int64_t units)
      : zoneout_(zoneout), shape_(shape), units_(units), is_on_(zoneout.keeps.data || zoneout.rate != 0) {}

  bool is_on() const { return is_on_; }
  SEQKERNELS_INLINE ZoneoutRow<T> row(int direction, int64_t t, int64_t b) const {
    if (!zoneout_.keeps.data) return {nullptr, T(zoneout_.rate)};
    return {row_of<const uint8_t>(zoneout_.keeps, shape_, t, b) + direction * units_, T(0)};
  }

 private:
  const Zoneout& zoneout_;
  const LayerShape& shape_;
  const int64_t units_;
  const bool is_on_;
};

}  // namespace seqkernels::SEQKERNELS_ISA
