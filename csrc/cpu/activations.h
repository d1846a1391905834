// exp, sigmoid and tanh on vectors, and vectors side by side. Compiled once per ISA, as vec.h.
//
// The functions are at most 2 representable numbers away from the correctly rounded result over the whole range, with
// NaN, infinities and denormals as IEEE has them (the kernels flush denormals while they run, see FlushDenormals).
#pragma once
#include "vec.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class T>
SEQKERNELS_INLINE Vec<T> absolute(Vec<T> x) {
  using I = typename Ieee<T>::Int;
  const typename Vec<T>::RawInt bits = (typename Vec<T>::RawInt)x.raw;
  return Vec<T>((typename Vec<T>::Raw)(bits & ~((I)1 << (sizeof(T) * 8 - 1))));
}

// |magnitude| with the sign of x.
template <class T>
SEQKERNELS_INLINE Vec<T> copy_sign(Vec<T> magnitude, Vec<T> x) {
  using RawInt = typename Vec<T>::RawInt;
  const RawInt sign = (RawInt)x.raw & ((typename Ieee<T>::Int)1 << (sizeof(T) * 8 - 1));
  return Vec<T>((typename Vec<T>::Raw)((RawInt)absolute(magnitude).raw | sign));
}

// Limits that let NaN through (x86's min and max return their second operand then).
template <class T>
SEQKERNELS_INLINE Vec<T> at_most(Vec<T> x, T limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return Vec<T>((typename Vec<T>::Raw)_mm512_min_ps((__m512)Vec<T>(limit).raw, (__m512)x.raw));
#endif
  return Vec<T>(x.raw > Vec<T>(limit).raw ? Vec<T>(limit).raw : x.raw);
}
template <class T>
SEQKERNELS_INLINE Vec<T> at_least(Vec<T> x, T limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return Vec<T>((typename Vec<T>::Raw)_mm512_max_ps((__m512)Vec<T>(limit).raw, (__m512)x.raw));
#endif
  return Vec<T>(x.raw < Vec<T>(limit).raw ? Vec<T>(limit).raw : x.raw);
}

// 2^n for exponents of normal numbers.
template <class T>
SEQKERNELS_INLINE Vec<T> power_of_two(typename Vec<T>::RawInt n) {
  return Vec<T>((typename Vec<T>::Raw)((n + Ieee<T>::kBias) << Ieee<T>::kMantissa));
}

constexpr double kInverseFactorial[] = {
    1.,        1.,         1. / 2,      1. / 6,       1. / 24,       1. / 120,       1. / 720,
    1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};

// x = n ln 2 + r with |r| <= ln 2 / 2: n, also as an integer, and expm1(r) by its Taylor series.
template <class T>
struct Exponent {
  Vec<T> n;
  typename Vec<T>::RawInt integer;
  Vec<T> expm1;
};

template <class T>
SEQKERNELS_INLINE Exponent<T> reduce_exponent(Vec<T> x) {
  using F = Ieee<T>;
  using RawInt = typename Vec<T>::RawInt;
  const Vec<T> round(F::kRound);
  const Vec<T> shifted = x * Vec<T>(T(1.44269504088896340736)) + round;
  const Vec<T> n = shifted - round;
  const Vec<T> r = x - n * Vec<T>(F::kLn2Hi) - n * Vec<T>(F::kLn2Lo);
  Vec<T> sum = T(kInverseFactorial[F::kTaylor]);
#pragma GCC unroll 16
  for (int k = F::kTaylor - 1; k >= 2; --k) sum = sum * r + Vec<T>(T(kInverseFactorial[k]));
  return {n, (RawInt)shifted.raw - (RawInt)round.raw, r + r * r * sum};
}

// exp of an x that is already limited to what the format holds.
template <class T>
SEQKERNELS_INLINE Vec<T> exp_limited(Vec<T> x) {
  const Exponent<T> e = reduce_exponent(x);
  const Vec<T> mantissa = Vec<T>(T(1)) + e.expm1;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return Vec<T>((typename Vec<T>::Raw)_mm512_scalef_ps((__m512)mantissa.raw, (__m512)e.n.raw));
#endif
  // In two factors: 2^n itself need not be a normal number.
  const typename Vec<T>::RawInt half = e.integer >> 1;
  return mantissa * power_of_two<T>(half) * power_of_two<T>(e.integer - half);
}

template <class T>
SEQKERNELS_INLINE Vec<T> exp(Vec<T> x) {
  return exp_limited(at_least(at_most(x, Ieee<T>::kExpMax), Ieee<T>::kExpMin));
}

// a / b for 1 <= b < 2^64: on AVX-512 an estimate to 2^-14 and one correction, a fraction of a division's cycles.
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

template <class T>
SEQKERNELS_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> e = exp_limited(at_least(-absolute(x), Ieee<T>::kExpMin)), one(T(1));
  return divide(Vec<T>(x.raw < Vec<T>(T(0)).raw ? e.raw : one.raw), one + e);
}

// tanh |x| = expm1(2|x|) / (expm1(2|x|) + 2)
template <class T>
SEQKERNELS_INLINE Vec<T> tanh(Vec<T> x) {
  const Vec<T> a = at_most(absolute(x), Ieee<T>::kTanhMax);
  const Exponent<T> e = reduce_exponent(a + a);
  const Vec<T> scale = power_of_two<T>(e.integer);
  const Vec<T> expm1 = e.expm1 * scale + (scale - Vec<T>(T(1)));
  return copy_sign(divide(expm1, expm1 + Vec<T>(T(2))), x);
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

// n vectors that go through the same arithmetic: a cell is long chains of operations, each of which waits for the one
// before, and other chains beside them keep the core busy meanwhile (the compiler mixes them, see -fschedule-insns).
constexpr int kSideBySide = 3;  // as many as it takes, and as registers can hold

template <class T, int n>
struct Bundle {
  Vec<T> part[n];

  Bundle() = default;
  SEQKERNELS_INLINE Bundle(int s) {
    for (Vec<T>& v : part) v = Vec<T>(s);
  }

  template <class F>
  SEQKERNELS_INLINE static Bundle each(const F& f) {
    Bundle result;
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) result.part[i] = f(i);
    return result;
  }
  SEQKERNELS_INLINE friend Bundle operator+(const Bundle& a, const Bundle& b) {
    return each([&](int i) { return a.part[i] + b.part[i]; });
  }
  SEQKERNELS_INLINE friend Bundle operator-(const Bundle& a, const Bundle& b) {
    return each([&](int i) { return a.part[i] - b.part[i]; });
  }
  SEQKERNELS_INLINE friend Bundle operator*(const Bundle& a, const Bundle& b) {
    return each([&](int i) { return a.part[i] * b.part[i]; });
  }
  SEQKERNELS_INLINE friend Bundle sigmoid(const Bundle& x) {
    return each([&](int i) { return sigmoid(x.part[i]); });
  }
  SEQKERNELS_INLINE friend Bundle tanh(const Bundle& x) {
    return each([&](int i) { return tanh(x.part[i]); });
  }
  SEQKERNELS_INLINE friend Bundle relu(const Bundle& x) {
    return each([&](int i) { return relu(x.part[i]); });
  }
  SEQKERNELS_INLINE friend Bundle relu_grad(const Bundle& y, const Bundle& dy) {
    return each([&](int i) { return relu_grad(y.part[i], dy.part[i]); });
  }
};

}  // namespace seqkernels::SEQKERNELS_ISA
