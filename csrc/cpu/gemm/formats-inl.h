// Operand formats: how the numbers of a product's operands lie and are multiplied. Compiled once per ISA.
//
// Operands are made of packs. A pack is kPack numbers that follow each other in K, together as wide as a number of C;
// kPack is the VNNI pack factor, and 1 where there is no such layout. A format (ScalarFormat, Bf16VnniFormat,
// Bf16AmxFormat) says how packs are read, multiplied and written, and K is counted in them.
//
// Type parameters here and in the files on top of this one:
//   F  a format     T  F::Sum, the numbers of C       E    F::Element, the numbers of A where they lie
//   S  the storage type of a tensor of numbers        Raw  a vector as the compiler has it
#pragma once
#include "../ranges-inl.h"
#include "../vec-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// A pack is one number, of C's type.
template <class T>
struct ScalarFormat {
  using Sum = T;
  using Element = T;  // of A where it lies
  using Raw = typename Vec<T>::Raw;
  static constexpr int kPack = 1;
  static constexpr int kKStep = 1;         // packs; K is padded with zeros to a multiple of it
  static constexpr int kMultiplyAdds = 2;  // of a vector of packs, in a cycle
  static constexpr int kRowsLost = 1;      // a tile of n rows takes as long as n and these would at that rate
  static constexpr bool kInTiles = false;  // multiplied in tile registers (tile_registers-inl.h)
  struct Setup {};                         // of the thread that multiplies, while it lives

  // Spreads pack k of a row over all lanes.
  SEQKERNELS_INLINE static Raw spread(const T* row, int64_t k) { return Vec<T>(row[k]).raw; }
  SEQKERNELS_INLINE static void multiply_add(Raw& sum, Raw a, Raw b) { sum += a * b; }

  // A vector of packs from `count` elements; what lies beyond them is zero.
  template <class S>
  SEQKERNELS_INLINE static Raw load_packs(const S* p, int64_t count) {
    return load(p, count).raw;
  }
  // Packs of a vector of columns of `rows` rows, the first one at p; `count` columns are there.
  template <class S>
  SEQKERNELS_INLINE static Vec<T> join_rows(const S* p, int64_t, int64_t, int64_t count) {
    return load(p, count);
  }
  // Stores a vector of elements as part `part` of as many packs; the parts in order.
  template <class S>
  SEQKERNELS_INLINE static void store_part_of_packs(T* packs, int, const S* p, int64_t count) {
    store(packs, load(p, count));
  }
  // Stores n elements as part `part` of n packs; the parts in order.
  template <int n>
  SEQKERNELS_INLINE static void store_columns(T* packs, int, const T* p) {
    __builtin_memcpy(packs, p, n * sizeof(T));
  }
};

// A pack is two bfloat16 numbers, the first in its low half. AVX512-BF16 multiplies them as they are.
struct Bf16VnniFormat {
  using Sum = float;
  using Element = Bf16;
  using Raw = VecF::Raw;
  static constexpr int kPack = 2, kKStep = 1, kMultiplyAdds = 2, kRowsLost = 1;
  static constexpr bool kInTiles = false;
  struct Setup {};

  SEQKERNELS_INLINE static Raw spread(const void* row, int64_t k) {
    uint32_t pack;
    __builtin_memcpy(&pack, static_cast<const char*>(row) + k * int64_t(sizeof pack), sizeof pack);
    return (Raw)(pack - U32{});
  }
  SEQKERNELS_INLINE static void multiply_add(Raw& sum, Raw a, Raw b) {
#if defined(__AVX512BF16__)
    sum = (Raw)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += first(a) * first(b);
    sum += second(a) * second(b);
#endif
  }
  SEQKERNELS_INLINE static Raw first(Raw packs) { return (Raw)((U32)packs << 16); }
  SEQKERNELS_INLINE static Raw second(Raw packs) { return (Raw)((U32)packs & 0xffff0000u); }

  SEQKERNELS_INLINE static Raw load_packs(const Bf16* p, int64_t count) {
    Raw all{};
    if (count >= 2 * VecF::kLanes)
      __builtin_memcpy(&all, p, sizeof all);
    else
      __builtin_memcpy(&all, p, size_t(max(count, 0)) * sizeof *p);
    return all;
  }
  SEQKERNELS_INLINE static VecF join_rows(const Bf16* p, int64_t stride, int64_t rows, int64_t count) {
    return join(load(p, count), rows > 1 ? load(p + stride, count) : VecF(0));
  }
  SEQKERNELS_INLINE static void store_part_of_packs(float* packs, int part, const Bf16* p, int64_t count) {
    const VecF element = load(p, count);
    store(packs, part == 0 ? join(element, VecF(0)) : VecF((Raw)((U32)load(packs).raw | (U32)element.raw)));
  }
  // The packs of two vectors of elements; the bits of a bfloat16 are the upper half of a float's.
  SEQKERNELS_INLINE static VecF join(VecF first, VecF second) {
    return VecF((Raw)((U32)first.raw >> 16 | (U32)second.raw));
  }
  template <int n>
  SEQKERNELS_INLINE static void store_columns(float* packs, int part, const Bf16* p) {
    uint32_t all[n];
    if (part > 0) __builtin_memcpy(all, packs, sizeof all);
    for (int i = 0; i < n; ++i) all[i] = part == 0 ? p[i].bits : all[i] | uint32_t(p[i].bits) << 16;
    __builtin_memcpy(packs, all, sizeof all);
  }
};

// How a vector along K is multiplied with rows of weights of type S, both read where they lie: kElements of it at a
// time.
template <class S, class F>
struct AlongK {
  using Elements = typename F::Raw;
  static constexpr int kElements = Vec<typename F::Sum>::kLanes * F::kPack;
  SEQKERNELS_INLINE static Elements load_elements(const typename F::Element* p, int64_t count) {
    return F::load_packs(p, count);
  }
  SEQKERNELS_INLINE static Elements load_weights(const S* p, int64_t count) { return F::load_packs(p, count); }
  SEQKERNELS_INLINE static void multiply_add(typename F::Raw& sum, const Elements& x, const Elements& w) {
    F::multiply_add(sum, x, w);
  }
};
// A shift and a mask give two vectors of weights, where to widen 16-bit lanes takes two shuffles and two shifts.
template <>
struct AlongK<Bf16, ScalarFormat<float>> {
  struct Elements {
    VecF::Raw even, odd;
  };
  static constexpr int kElements = 2 * VecF::kLanes;
  SEQKERNELS_INLINE static Elements load_elements(const float* p, int64_t count) {
    const VecF::Raw a = load(p, count).raw, b = load(p + VecF::kLanes, max(count - VecF::kLanes, 0)).raw;
    return {shuffle<float, Deinterleaved<0>>(a, b), shuffle<float, Deinterleaved<1>>(a, b)};
  }
  SEQKERNELS_INLINE static Elements load_weights(const Bf16* p, int64_t count) {
    const VecF::Raw packs = Bf16VnniFormat::load_packs(p, count);
    return {Bf16VnniFormat::first(packs), Bf16VnniFormat::second(packs)};
  }
  SEQKERNELS_INLINE static void multiply_add(VecF::Raw& sum, const Elements& x, const Elements& w) {
    sum += x.even * w.even;
    sum += x.odd * w.odd;
  }
};

// Packs of that many elements of K, with its padding.
template <class F>
constexpr int64_t packs(int64_t elements) {
  return round_up(ceil_div(elements, F::kPack), F::kKStep);
}
// Elements from one row to the next where `elements` of K are read as whole packs: vectors may be stored whole, and the
// stride is off the powers of two, so that rows do not share cache sets.
template <class F>
constexpr int64_t row_stride(int64_t elements) {
  const int64_t padding = max(kUnitPadding, F::kKStep * F::kPack);
  return round_up(elements, padding) + padding;
}
// The share of n elements for a member, in whole packs.
template <class F>
SEQKERNELS_INLINE Range share_of_packs(int64_t n, int rank, int size) {
  const Range own = share(packs<F>(n), rank, size);
  return {own.begin * F::kPack, min(own.end * F::kPack, n)};
}

}  // namespace seqkernels::SEQKERNELS_ISA
