// exp, sigmoid and tanh on vectors, and vectors side by side. Compiled once per ISA.
//
// The functions are at most 2 representable numbers away from the correctly rounded result over the whole range, with
// NaN, infinities and denormals as IEEE has them (the kernels flush denormals while they run, see FlushDenormals).
//
// Type parameter T: float or double, the numbers of a vector.
#pragma once
#include "vec-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class T>
SEQKERNELS_INLINE typename Vec<T>::RawInt bits_of(Vec<T> x) {
  return (typename Vec<T>::RawInt)x.raw;
}
template <class T>
SEQKERNELS_INLINE Vec<T> from_bits(typename Vec<T>::RawInt bits) {
  return Vec<T>((typename Vec<T>::Raw)bits);
}

template <class T>
constexpr typename Ieee<T>::Int kSignBit = typename Ieee<T>::Int(1) << (sizeof(T) * 8 - 1);

template <class T>
SEQKERNELS_INLINE Vec<T> absolute(Vec<T> x) {
  return from_bits<T>(bits_of(x) & ~kSignBit<T>);
}

// Smaller and larger numbers, lane by lane: a < b ? a : b and a > b ? a : b, so where one is NaN the result is b.
template <class T>
SEQKERNELS_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.raw < b.raw ? a.raw : b.raw);
}
template <class T>
SEQKERNELS_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.raw > b.raw ? a.raw : b.raw);
}
#if defined(__AVX512F__)
SEQKERNELS_INLINE VecF min(VecF a, VecF b) { return (VecF::Raw)_mm512_min_ps((__m512)a.raw, (__m512)b.raw); }
SEQKERNELS_INLINE VecF max(VecF a, VecF b) { return (VecF::Raw)_mm512_max_ps((__m512)a.raw, (__m512)b.raw); }
#elif defined(__AVX2__)
SEQKERNELS_INLINE VecF min(VecF a, VecF b) { return (VecF::Raw)_mm256_min_ps((__m256)a.raw, (__m256)b.raw); }
SEQKERNELS_INLINE VecF max(VecF a, VecF b) { return (VecF::Raw)_mm256_max_ps((__m256)a.raw, (__m256)b.raw); }
#endif

// Limits that let NaN through.
template <class T>
SEQKERNELS_INLINE Vec<T> at_most(Vec<T> x, T limit) {
  return min(Vec<T>(limit), x);
}
template <class T>
SEQKERNELS_INLINE Vec<T> at_least(Vec<T> x, T limit) {
  return max(Vec<T>(limit), x);
}

// The Taylor coefficients of e^(kScale r): kScale^k / k!.
template <int kScale, class T>
constexpr T coefficient(int k) {
  double c = 1;
  for (int i = 1; i <= k; ++i) c *= double(kScale) / i;
  return T(c);
}

// The sum over k >= kFirst of kScale^k / k! r^(k - kFirst).
template <int kScale, int kFirst, class T>
SEQKERNELS_INLINE Vec<T> series(Vec<T> r) {
  Vec<T> sum = coefficient<kScale, T>(Ieee<T>::kTaylor);
#pragma GCC unroll 16
  for (int k = Ieee<T>::kTaylor - 1; k >= kFirst; --k) sum = sum * r + Vec<T>(coefficient<kScale, T>(k));
  return sum;
}

// The parts of e^(kScale x) = 2^n e^(kScale r) with |kScale r| <= ln 2 / 2, for an x that is already limited.
template <int kScale, class T>
struct Exponent {
  using Format = Ieee<T>;

  typename Vec<T>::RawInt shifted;  // its low bits are those of n + offset
  Vec<T> r;

  SEQKERNELS_INLINE Exponent(Vec<T> x, int offset) {
    const Vec<T> round(Format::kRound + T(offset));
    const Vec<T> sum = x * Vec<T>(T(kScale * 1.44269504088896340736)) + round;
    const Vec<T> n = sum - round;
    shifted = bits_of(sum);
    r = x - n * Vec<T>(Format::kLn2Hi / kScale) - n * Vec<T>(Format::kLn2Lo / kScale);
  }

  // 2^(n + offset - kBias), which must be a normal number.
  SEQKERNELS_INLINE Vec<T> power() const { return from_bits<T>(shifted << Format::kMantissa); }
};

template <class T>
SEQKERNELS_INLINE Vec<T> exp(Vec<T> x) {
  using Format = Ieee<T>;
  const Exponent<1, T> e(at_least(at_most(x, Format::kExpMax), Format::kExpMin), 0);
  // In two factors: 2^n itself need not be a normal number.
  const typename Vec<T>::RawInt n = e.shifted - bits_of(Vec<T>(Format::kRound)), half = n >> 1;
  return series<1, 0>(e.r) * from_bits<T>((half + Format::kBias) << Format::kMantissa) *
         from_bits<T>((n - half + Format::kBias) << Format::kMantissa);
}

// The quotient a / b of normal numbers: on AVX-512 an estimate to 2^-14 and one correction, a fraction of a division's
// cycles.
template <class T>
SEQKERNELS_INLINE Vec<T> divide(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const Vec<T> estimate = (typename Vec<T>::Raw)_mm512_rcp14_ps((__m512)b.raw);
    const Vec<T> quotient = a * estimate;
    return quotient + (a - b * quotient) * estimate;
  }
#endif
  return a / b;
}

// The logistic function 1 / (1 + e^-x), both sides of the fraction scaled down so that e^-x does not overflow where the
// result is a denormal.
template <class T>
SEQKERNELS_INLINE Vec<T> sigmoid(Vec<T> x) {
  using Format = Ieee<T>;
  constexpr int kDown = Format::kSigmoidShift;
  const Exponent<-1, T> e(at_least(at_most(x, Format::kSigmoidMax), Format::kExpMin), Format::kBias - kDown);
  const Vec<T> one =
      from_bits<T>(typename Vec<T>::RawInt{} + ((typename Format::Int)(Format::kBias - kDown) << Format::kMantissa));
  return divide(one, series<-1, 0>(e.r) * e.power() + one);
}

// The hyperbolic tangent, by tanh |x| = expm1(2|x|) / (expm1(2|x|) + 2).
template <class T>
SEQKERNELS_INLINE Vec<T> tanh(Vec<T> x) {
  using Format = Ieee<T>;
  const Exponent<2, T> e(at_most(absolute(x), Format::kTanhMax), Format::kBias);
  const Vec<T> one(T(1)), two(T(2)), power = e.power();
  const Vec<T> expm1_r = e.r * e.r * series<2, 2>(e.r) + (e.r + e.r);
  const Vec<T> expm1 = expm1_r * power + (power - one);
  return from_bits<T>(bits_of(divide(expm1, expm1 + two)) | (bits_of(x) & kSignBit<T>));
}

template <class T>
SEQKERNELS_INLINE Vec<T> relu(Vec<T> x) {
  return at_least(x, T(0));
}

template <class T>
SEQKERNELS_INLINE Vec<T> relu_grad(Vec<T> y, Vec<T> dy) {
  return Vec<T>(y.raw <= Vec<T>(T(0)).raw ? Vec<T>(T(0)).raw : dy.raw);
}

// ---- side by side ------------------------------------------------------------------------------------------------

// This many vectors go through the same arithmetic: a cell is long chains of operations, each of which waits for the
// one before, and other chains beside them keep the core busy meanwhile (the compiler mixes them, see
// -fschedule-insns).
constexpr int kSideBySide = 3;  // as many as it takes, and as registers can hold

// n vectors, which a cell takes for one.
template <class T, int n>
struct VecN {
  Vec<T> part[n];

  VecN() = default;
  SEQKERNELS_INLINE VecN(int s) {
    for (Vec<T>& v : part) v = Vec<T>(s);
  }

  template <class Make>
  SEQKERNELS_INLINE static VecN each(const Make& make) {
    VecN result;
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) result.part[i] = make(i);
    return result;
  }
  SEQKERNELS_INLINE friend VecN operator+(const VecN& a, const VecN& b) {
    return each([&](int i) { return a.part[i] + b.part[i]; });
  }
  SEQKERNELS_INLINE friend VecN operator-(const VecN& a, const VecN& b) {
    return each([&](int i) { return a.part[i] - b.part[i]; });
  }
  SEQKERNELS_INLINE friend VecN operator*(const VecN& a, const VecN& b) {
    return each([&](int i) { return a.part[i] * b.part[i]; });
  }
  SEQKERNELS_INLINE friend VecN sigmoid(const VecN& x) {
    return each([&](int i) { return sigmoid(x.part[i]); });
  }
  SEQKERNELS_INLINE friend VecN tanh(const VecN& x) {
    return each([&](int i) { return tanh(x.part[i]); });
  }
  SEQKERNELS_INLINE friend VecN relu(const VecN& x) {
    return each([&](int i) { return relu(x.part[i]); });
  }
  SEQKERNELS_INLINE friend VecN relu_grad(const VecN& y, const VecN& dy) {
    return each([&](int i) { return relu_grad(y.part[i], dy.part[i]); });
  }
};

}  // namespace seqkernels::SEQKERNELS_ISA
