// What the words of a matrix product's operands are. Compiled once per ISA.
//
// A word is as wide as a number of the product, and holds one number or more that follow each other in depth. A format (Singles,
// Pairs, PairTiles) says how many, and how words are read, multiplied and written.
#pragma once
#include "../ranges-inl.h"
#include "../vec.h"

namespace seqkernels::SEQKERNELS_ISA {

// A word is one number of C's type.
template <class T>
struct Singles {
  using Sum = T;
  using Element = T;  // of A where it lies
  using Raw = typename Vec<T>::Raw;
  static constexpr int kPerWord = 1;
  static constexpr int kDepthStep = 1;     // words; a depth is padded with zeros to a multiple of it
  static constexpr int kMultiplyAdds = 2;  // of a vector of words, in a cycle
  static constexpr int kRowsLost = 1;      // a tile of n rows takes as long as n and these would at that rate
  static constexpr bool kInTiles = false;  // multiplied in tile registers (tile_registers-inl.h)
  struct Setup {};                         // of the thread that multiplies, while it lives

  // Word k of a row, on all lanes.
  SEQKERNELS_INLINE static Raw spread(const T* row, int64_t k) { return Vec<T>(row[k]).raw; }
  SEQKERNELS_INLINE static void multiply_add(Raw& sum, Raw a, Raw b) { sum += a * b; }

  // The words of a vector from the first of `count` elements.
  template <class S>
  SEQKERNELS_INLINE static Raw load_words(const S* p, int64_t count) {
    return load(p, count).raw;
  }
  // A vector of elements into part `part` of its words; the parts in order.
  template <class S>
  SEQKERNELS_INLINE static void store_part_of_words(T* words, int, const S* p, int64_t count) {
    store(words, load(p, count));
  }
  // Likewise n elements into n words.
  template <int n>
  SEQKERNELS_INLINE static void store_columns(T* words, int, const T* p) {
    __builtin_memcpy(words, p, n * sizeof(T));
  }
};

// A word is two bfloat16 numbers, the first in its low half. AVX512-BF16 multiplies them as they are.
struct Pairs {
  using Sum = float;
  using Element = Bf16;
  using Raw = VecF::Raw;
  static constexpr int kPerWord = 2, kDepthStep = 1, kMultiplyAdds = 2, kRowsLost = 1;
  static constexpr bool kInTiles = false;
  struct Setup {};

  SEQKERNELS_INLINE static Raw spread(const void* row, int64_t k) {
    uint32_t word;
    __builtin_memcpy(&word, static_cast<const char*>(row) + k * int64_t(sizeof word), sizeof word);
    return (Raw)(word - U32{});
  }
  SEQKERNELS_INLINE static void multiply_add(Raw& sum, Raw a, Raw b) {
#if defined(__AVX512BF16__)
    sum = (Raw)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += first(a) * first(b);
    sum += second(a) * second(b);
#endif
  }
  SEQKERNELS_INLINE static Raw first(Raw words) { return (Raw)((U32)words << 16); }
  SEQKERNELS_INLINE static Raw second(Raw words) { return (Raw)((U32)words & 0xffff0000u); }

  SEQKERNELS_INLINE static Raw load_words(const Bf16* p, int64_t count) {
    Raw all{};
    if (count >= 2 * VecF::kLanes)
      __builtin_memcpy(&all, p, sizeof all);
    else
      __builtin_memcpy(&all, p, size_t(larger(count, 0)) * sizeof *p);
    return all;
  }
  SEQKERNELS_INLINE static void store_part_of_words(float* words, int part, const Bf16* p, int64_t count) {
    const VecF element = load(p, count);
    store(words, part == 0 ? join(element, VecF(0)) : VecF((Raw)((U32)load(words).raw | (U32)element.raw)));
  }
  // The words of two vectors of elements; the bits of a bfloat16 are the upper half of a float's.
  SEQKERNELS_INLINE static VecF join(VecF first, VecF second) {
    return VecF((Raw)((U32)first.raw >> 16 | (U32)second.raw));
  }
  template <int n>
  SEQKERNELS_INLINE static void store_columns(float* words, int part, const Bf16* p) {
    uint32_t all[n];
    if (part > 0) __builtin_memcpy(all, words, sizeof all);
    for (int i = 0; i < n; ++i) all[i] = part == 0 ? p[i].bits : all[i] | uint32_t(p[i].bits) << 16;
    __builtin_memcpy(words, all, sizeof all);
  }
};

// How a vector along the depth is multiplied with rows of weights of type S where both lie: kElements of it at a time.
template <class S, class F>
struct AlongDepth {
  using Elements = typename F::Raw;
  static constexpr int kElements = Vec<typename F::Sum>::kLanes * F::kPerWord;
  SEQKERNELS_INLINE static Elements load_elements(const typename F::Element* p, int64_t count) {
    return F::load_words(p, count);
  }
  SEQKERNELS_INLINE static Elements load_weights(const S* p, int64_t count) { return F::load_words(p, count); }
  SEQKERNELS_INLINE static void multiply_add(typename F::Raw& sum, const Elements& x, const Elements& w) {
    F::multiply_add(sum, x, w);
  }
};
// A shift and a mask give two vectors of weights, where to widen 16-bit lanes takes two shuffles and two shifts.
template <>
struct AlongDepth<Bf16, Singles<float>> {
  struct Elements {
    VecF::Raw even, odd;
  };
  static constexpr int kElements = 2 * VecF::kLanes;
  SEQKERNELS_INLINE static Elements load_elements(const float* p, int64_t count) {
    const VecF::Raw a = load(p, count).raw, b = load(p + VecF::kLanes, larger(count - VecF::kLanes, 0)).raw;
    return {shuffle<float, Deinterleaved<0>>(a, b), shuffle<float, Deinterleaved<1>>(a, b)};
  }
  SEQKERNELS_INLINE static Elements load_weights(const Bf16* p, int64_t count) {
    const VecF::Raw words = Pairs::load_words(p, count);
    return {Pairs::first(words), Pairs::second(words)};
  }
  SEQKERNELS_INLINE static void multiply_add(VecF::Raw& sum, const Elements& x, const Elements& w) {
    sum += x.even * w.even;
    sum += x.odd * w.odd;
  }
};

// Words of a depth of that many elements, with its padding.
template <class F>
constexpr int64_t words(int64_t elements) {
  return round_up(ceil_div(elements, F::kPerWord), F::kDepthStep);
}
// Elements from one row to the next where `elements` of depth are read as whole words: vectors may be stored whole, and the
// stride is off the powers of two, so that rows do not share cache sets.
template <class F>
constexpr int64_t row_stride(int64_t elements) {
  const int64_t padding = larger(kUnitPadding, F::kDepthStep * F::kPerWord);
  return round_up(elements, padding) + padding;
}
// The share of n elements for a member, in whole words.
template <class F>
SEQKERNELS_INLINE Range share_of_words(int64_t n, int rank, int size) {
  const Range own = share(words<F>(n), rank, size);
  return {own.begin * F::kPerWord, smaller(own.end * F::kPerWord, n)};
}

}  // namespace seqkernels::SEQKERNELS_ISA
