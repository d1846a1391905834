// SIMD vectors of one ISA, on the compiler's vector extensions: loads, stores and transposition.
//
// Compiled once per ISA, inside namespace seqkernels::SEQKERNELS_ISA. Nothing here is of the C++ library or of torch:
// an inline function of theirs, compiled for AVX-512 here, could be the copy the linker keeps for everybody.
//
// Type parameters: T is float or double, the numbers of a vector; S a storage type, which may have 16 bits.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "../cells/cell.h"
#include "kernels.h"

#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own header's deliberately undefined vectors (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#elif defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace seqkernels::SEQKERNELS_ISA {

#if defined(__AVX512F__) || defined(SEQKERNELS_EMULATE_AVX512)
constexpr int kVectorBytes = 64, kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16, kVectorRegisters = 16;
#endif

// The format of T as an IEEE number, the integer of its size, and vectors of both.
template <class T>
struct Ieee;
template <>
struct Ieee<float> {
  using Int = int32_t;
  typedef float Raw __attribute__((vector_size(kVectorBytes)));
  typedef int32_t RawInt __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kBias = 127, kTaylor = 7;
  static constexpr float kRound = 0x1.8p23f;  // x + kRound - kRound rounds x to an integer
  static constexpr float kLn2Hi = 0x1.63p-1f, kLn2Lo = -0x1.bd0106p-13f;
  static constexpr float kExpMin = -110, kExpMax = 90, kTanhMax = 10, kSigmoidMax = 40;
  static constexpr int kSigmoidShift = 40;
};
template <>
struct Ieee<double> {
  using Int = int64_t;
  typedef double Raw __attribute__((vector_size(kVectorBytes)));
  typedef int64_t RawInt __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kBias = 1023, kTaylor = 13;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLn2Hi = 0x1.62e42feep-1, kLn2Lo = 0x1.a39ef35793c76p-33;
  static constexpr double kExpMin = -760, kExpMax = 720, kTanhMax = 22, kSigmoidMax = 60;
  static constexpr int kSigmoidShift = 100;
};

template <class T>
struct Vec {
  using Raw = typename Ieee<T>::Raw;
  using RawInt = typename Ieee<T>::RawInt;
  static constexpr int kLanes = kVectorBytes / sizeof(T);

  Raw raw;

  Vec() = default;
  SEQKERNELS_INLINE Vec(Raw r) : raw(r) {}
  SEQKERNELS_INLINE Vec(T s) : raw(s - Raw{}) {}  // s - 0 is s, -0 included, and one broadcast
  SEQKERNELS_INLINE Vec(int s) : Vec(T(s)) {}

  SEQKERNELS_INLINE friend Vec operator+(Vec a, Vec b) { return a.raw + b.raw; }
  SEQKERNELS_INLINE friend Vec operator-(Vec a, Vec b) { return a.raw - b.raw; }
  SEQKERNELS_INLINE friend Vec operator*(Vec a, Vec b) { return a.raw * b.raw; }
  SEQKERNELS_INLINE friend Vec operator/(Vec a, Vec b) { return a.raw / b.raw; }
  SEQKERNELS_INLINE friend Vec operator-(Vec a) { return -a.raw; }
};

template <class T>
SEQKERNELS_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v.raw, p, sizeof v.raw);
  return v;
}

template <class T>
SEQKERNELS_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v.raw, sizeof v.raw);
}

// ---- 16-bit storage: loads widen to float, stores round to nearest even -----------------------------------------

using VecF = Vec<float>;
typedef uint32_t U32 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t U16 __attribute__((vector_size(kVectorBytes / 2)));

SEQKERNELS_INLINE U32 widen(const void* p) {
  U16 u;
  __builtin_memcpy(&u, p, sizeof u);
  return __builtin_convertvector(u, U32);
}

SEQKERNELS_INLINE void narrow(void* p, U32 bits) {
  const U16 u = __builtin_convertvector(bits, U16);
  __builtin_memcpy(p, &u, sizeof u);
}

SEQKERNELS_INLINE VecF load(const Bf16* p) { return VecF((VecF::Raw)(widen(p) << 16)); }

SEQKERNELS_INLINE void store(Bf16* p, VecF v) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v.raw));
#else
  const U32 u = (U32)v.raw;
  const U32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  narrow(p, v.raw == v.raw ? rounded : (u >> 16) | 0x40u);
#endif
}

#if defined(__F16C__) && defined(__AVX512F__)
SEQKERNELS_INLINE VecF load(const Half* p) {
  return VecF((VecF::Raw)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)));
}
SEQKERNELS_INLINE void store(Half* p, VecF v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
SEQKERNELS_INLINE VecF load(const Half* p) {
  return VecF((VecF::Raw)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
}
SEQKERNELS_INLINE void store(Half* p, VecF v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v.raw, _MM_FROUND_TO_NEAREST_INT));
}
#else
SEQKERNELS_INLINE VecF load(const Half* p) {
  const U32 h = widen(p), sign = (h & 0x8000u) << 16, magnitude = (h & 0x7fffu) << 13;
  const U32 normal = magnitude + ((127u - 15u) << 23);
  const U32 special = magnitude + ((255u - 31u) << 23);
  // A denormal half is an integer times 2^-24: put it behind the implicit one of 2^-14 and subtract that.
  const VecF tiny = VecF((VecF::Raw)(magnitude + (113u << 23))) - VecF(0x1p-14f);
  const U32 exponent = h & 0x7c00u;
  const U32 zero{};
  const U32 bits = exponent == zero ? (U32)tiny.raw : (exponent == zero + 0x7c00u ? special : normal);
  return VecF((VecF::Raw)(bits | sign));
}
SEQKERNELS_INLINE void store(Half* p, VecF v) {
  const U32 u = (U32)v.raw, sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu, zero{};
  const U32 rounded = (a - ((127u - 15u) << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 1/2 leaves the value, rounded to 2^-24, in the low bits of the mantissa.
  const U32 tiny = (U32)(VecF((VecF::Raw)a) + VecF(0.5f)).raw - 0x3f000000u;
  const U32 special = a > zero + 0x7f800000u ? 0x7e00u | ((a >> 13) & 0x3ffu) : zero + 0x7c00u;
  const U32 finite = a < zero + (113u << 23) ? tiny : rounded;
  narrow(p, sign | (a >= zero + 0x477ff000u ? special : finite));
}
#endif

// The compute type of storage type S: float for the 16-bit types, else S itself.
template <class S>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::Type;

// The first n lanes (none if n < 0); the others are zero (load) or untouched (store).
#if defined(__AVX512F__)
template <int kLanes>
SEQKERNELS_INLINE uint32_t lane_mask(int64_t n) {
  return n <= 0 ? 0u : ((1u << (n < kLanes ? n : kLanes)) - 1u);
}
template <class S>
SEQKERNELS_INLINE Vec<Compute<S>> load_part(const S* p, int64_t n) {
  constexpr int kLanes = Vec<Compute<S>>::kLanes;
  const uint32_t mask = lane_mask<kLanes>(n);
  alignas(64) S lanes[kLanes];
  if constexpr (sizeof(S) == 8)
    _mm512_store_pd(lanes, _mm512_maskz_loadu_pd(__mmask8(mask), p));
  else if constexpr (sizeof(S) == 4)
    _mm512_store_ps(lanes, _mm512_maskz_loadu_ps(__mmask16(mask), p));
  else
    _mm256_store_si256((__m256i*)lanes, _mm256_maskz_loadu_epi16(__mmask16(mask), p));
  return load(lanes);
}
template <class S>
SEQKERNELS_INLINE void store_part(S* p, Vec<Compute<S>> v, int64_t n) {
  constexpr int kLanes = Vec<Compute<S>>::kLanes;
  const uint32_t mask = lane_mask<kLanes>(n);
  alignas(64) S lanes[kLanes];
  store(lanes, v);
  if constexpr (sizeof(S) == 8)
    _mm512_mask_storeu_pd(p, __mmask8(mask), _mm512_load_pd(lanes));
  else if constexpr (sizeof(S) == 4)
    _mm512_mask_storeu_ps(p, __mmask16(mask), _mm512_load_ps(lanes));
  else
    _mm256_mask_storeu_epi16(p, __mmask16(mask), _mm256_load_si256((const __m256i*)lanes));
}
#else
template <class S>
__attribute__((noinline)) Vec<Compute<S>> load_part(const S* p, int64_t n) {
  S lanes[Vec<Compute<S>>::kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class S>
__attribute__((noinline)) void store_part(S* p, Vec<Compute<S>> v, int64_t n) {
  S lanes[Vec<Compute<S>>::kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif
template <class S>
SEQKERNELS_INLINE Vec<Compute<S>> load(const S* p, int64_t n) {
  return n >= Vec<Compute<S>>::kLanes ? load(p) : load_part(p, n);
}
template <class S>
SEQKERNELS_INLINE void store(S* p, Vec<Compute<S>> v, int64_t n) {
  n >= Vec<Compute<S>>::kLanes ? store(p, v) : store_part(p, v, n);
}

// Rounds v as a store as S and a load would.
template <class S>
SEQKERNELS_INLINE Vec<Compute<S>> round_to(Vec<Compute<S>> v) {
  S lanes[Vec<Compute<S>>::kLanes];
  store(lanes, v);
  return load(lanes);
}
template <>
SEQKERNELS_INLINE Vec<float> round_to<float>(Vec<float> v) {
  return v;
}
template <>
SEQKERNELS_INLINE Vec<double> round_to<double>(Vec<double> v) {
  return v;
}

// ---- shuffles ----------------------------------------------------------------------------------------------------

// Lane i of n is lane Source::lane(i, n) of a and b, one after the other.
#if defined(__clang__)
template <class Index, Index... i>
struct Lanes {
  template <class Source, class Raw>
  SEQKERNELS_INLINE static Raw shuffle(Raw a, Raw b) {
    return __builtin_shufflevector(a, b, Source::lane(i, sizeof...(i))...);
  }
};
template <class T, class Source>
SEQKERNELS_INLINE typename Vec<T>::Raw shuffle(typename Vec<T>::Raw a, typename Vec<T>::Raw b) {
  return __make_integer_seq<Lanes, int, Vec<T>::kLanes>::template shuffle<Source>(a, b);
}
#else
template <class T, class Source>
SEQKERNELS_INLINE typename Vec<T>::Raw shuffle(typename Vec<T>::Raw a, typename Vec<T>::Raw b) {
  typename Vec<T>::RawInt index;
#pragma GCC unroll 16
  for (int i = 0; i < Vec<T>::kLanes; ++i) index[i] = Source::lane(i, Vec<T>::kLanes);
  return __builtin_shuffle(a, b, index);
}
#endif

// Lanes of a and b in turn, from their first halves (part 0) or their second (part 1).
template <int part>
struct Interleaved {
  static constexpr int lane(int i, int n) { return i / 2 + i % 2 * n + part * (n / 2); }
};
// The even (part 0) or the odd lanes of a, then those of b.
template <int part>
struct Deinterleaved {
  static constexpr int lane(int i, int) { return 2 * i + part; }
};

// Transposes a square of lanes x lanes in place: log2(lanes) perfect shuffles.
template <class T>
SEQKERNELS_INLINE void transpose(typename Vec<T>::Raw* v) {
  constexpr int n = Vec<T>::kLanes;
#pragma GCC unroll 4
  for (int stage = 1; stage < n; stage *= 2) {
    typename Vec<T>::Raw w[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      w[2 * i] = shuffle<T, Interleaved<0>>(v[i], v[i + n / 2]);
      w[2 * i + 1] = shuffle<T, Interleaved<1>>(v[i], v[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) v[i] = w[i];
  }
}

// While it lives, denormal operands and results count as zero on this thread: a state or gradient that decays
// through the denormal range would otherwise run many times slower.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace seqkernels::SEQKERNELS_ISA
