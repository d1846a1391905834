// Numbers in memory and numbers in registers.
//
// Element types: double, float, and 16-bit patterns. Arithmetic is done in Real<T>: double for double, float for the rest.
// Value<Real, kShort> is the value type that the cells (csrc/cells) compute with: it brings sigmoid, tanh and relu, where
// kShort asks for no more than a 16-bit result will show.
//
// Type parameters: T is an element type, R a Real<T>.
#pragma once
#include "device.h"

#if defined(SEQKERNELS_EMULATED)
#include <cmath>
#include <cstring>
#else
#include <cuda_fp16.h>
#endif

namespace seqkernels::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <class T>
using Real = typename RealOf<T>::type;

template <class T>
constexpr bool is_short = sizeof(T) == 2;

// ---------------------------------------------------------------- conversions, to nearest even

SEQKERNELS_DEVICE double to_real(double x) { return x; }
SEQKERNELS_DEVICE float to_real(float x) { return x; }

template <class T>
SEQKERNELS_DEVICE T from_real(Real<T> x) {
  return x;
}

// Two numbers of 16 bits in one word. GPUs convert two at once in a fraction of the time that they take for one.
template <class T>
SEQKERNELS_DEVICE uint32_t word_of(float low, float high);

#if defined(SEQKERNELS_EMULATED)

SEQKERNELS_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
SEQKERNELS_DEVICE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

SEQKERNELS_DEVICE float to_real(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
template <>
SEQKERNELS_DEVICE BFloat16 from_real<BFloat16>(float x) {
  const uint32_t bits = bits_of(x);
  if (std::isnan(x)) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

SEQKERNELS_DEVICE float to_real(Float16 x) {
  _Float16 half;
  std::memcpy(&half, &x, sizeof half);
  return static_cast<float>(half);
}
template <>
SEQKERNELS_DEVICE Float16 from_real<Float16>(float x) {
  if (std::isnan(x)) return {0x7FFF};
  const _Float16 half = static_cast<_Float16>(x);
  Float16 result;
  std::memcpy(&result, &half, sizeof result);
  return result;
}

template <class T>
SEQKERNELS_DEVICE uint32_t word_of(float low, float high) {
  return from_real<T>(low).bits | static_cast<uint32_t>(from_real<T>(high).bits) << 16;
}

SEQKERNELS_DEVICE uint32_t tf32_bits(float x) {
  return std::isnan(x) ? 0x7FFFFFFF : (bits_of(x) + 0x1000) & ~0x1FFFu;  // to nearest, ties away
}

SEQKERNELS_DEVICE double exp_of(double x) { return std::exp(x); }
SEQKERNELS_DEVICE float exp_of(float x) { return std::exp(x); }
SEQKERNELS_DEVICE float short_exp2(float x) { return std::exp2(x); }
SEQKERNELS_DEVICE float short_reciprocal(float x) { return 1 / x; }
SEQKERNELS_DEVICE double tanh_of(double x) { return std::tanh(x); }
SEQKERNELS_DEVICE float tanh_of(float x) { return std::tanh(x); }
SEQKERNELS_DEVICE double sqrt_of(double x) { return std::sqrt(x); }
SEQKERNELS_DEVICE float sqrt_of(float x) { return std::sqrt(x); }

#else

SEQKERNELS_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
SEQKERNELS_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

SEQKERNELS_DEVICE float to_real(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
template <>
SEQKERNELS_DEVICE uint32_t word_of<BFloat16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
SEQKERNELS_DEVICE BFloat16 from_real<BFloat16>(float x) {
  return {static_cast<uint16_t>(word_of<BFloat16>(x, 0))};
}

SEQKERNELS_DEVICE float to_real(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <>
SEQKERNELS_DEVICE uint32_t word_of<Float16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
SEQKERNELS_DEVICE Float16 from_real<Float16>(float x) {
  return {static_cast<uint16_t>(word_of<Float16>(x, 0))};
}

SEQKERNELS_DEVICE uint32_t tf32_bits(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

SEQKERNELS_DEVICE double exp_of(double x) { return exp(x); }
SEQKERNELS_DEVICE float exp_of(float x) { return expf(x); }
SEQKERNELS_DEVICE float short_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SEQKERNELS_DEVICE float short_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SEQKERNELS_DEVICE double tanh_of(double x) { return ::tanh(x); }
SEQKERNELS_DEVICE float tanh_of(float x) { return tanhf(x); }
SEQKERNELS_DEVICE double sqrt_of(double x) { return sqrt(x); }
SEQKERNELS_DEVICE float sqrt_of(float x) { return sqrtf(x); }

#endif

// ---------------------------------------------------------------- the cells' value type

constexpr float kLog2E = 1.44269504f;

template <class R, bool kShort>
struct Value {
  R v;

  Value() = default;
  SEQKERNELS_DEVICE constexpr Value(R x) : v(x) {}

  friend SEQKERNELS_DEVICE Value operator+(Value a, Value b) { return a.v + b.v; }
  friend SEQKERNELS_DEVICE Value operator-(Value a, Value b) { return a.v - b.v; }
  friend SEQKERNELS_DEVICE Value operator*(Value a, Value b) { return a.v * b.v; }
  friend SEQKERNELS_DEVICE Value operator-(Value a) { return -a.v; }

  friend SEQKERNELS_DEVICE Value sigmoid(Value x) {
    if constexpr (kShort)
      return short_reciprocal(1 + short_exp2(-kLog2E * x.v));
    else
      return 1 / (1 + exp_of(-x.v));
  }
  // For 16 bits, 1 - 2 / (1 + exp(2 x)): off by 2^-23 or so, which near 0 is more than float32 would like. The factor 2 is
  // in the exponent, where it costs nothing.
  friend SEQKERNELS_DEVICE Value tanh(Value x) {
    if constexpr (kShort)
      return 1 - short_reciprocal(0.5f + short_exp2(2 * kLog2E * x.v - 1));
    else
      return tanh_of(x.v);
  }
  friend SEQKERNELS_DEVICE Value relu(Value x) { return x.v < 0 ? R(0) : x.v; }
  friend SEQKERNELS_DEVICE Value relu_grad(Value y, Value dy) { return y.v <= 0 ? R(0) : dy.v; }
};

}  // namespace seqkernels::cuda
