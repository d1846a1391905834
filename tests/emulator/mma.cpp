// mma.m16n8k16 and mma.m16n8k8 of the PTX ISA; csrc/cuda/mma.cuh has the layout of fragments.
#include <bit>

#include "machine.h"

namespace seqkernels::emulator {

namespace {

constexpr int kRows = 16, kColumns = 8, kMostK = 16;

float from_bfloat16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

// Moves exponent and mantissa to float32's places; the product corrects the exponent's bias, subnormal or not.
float from_float16(uint32_t bits) {
  const uint32_t magnitude = (bits & 0x7fff) << 13;
  const bool is_finite = (bits & 0x7c00) != 0x7c00;
  const float value =
      is_finite ? std::bit_cast<float>(magnitude) * 0x1p112f : std::bit_cast<float>(magnitude | 0x7f800000);
  return bits & 0x8000 ? -value : value;
}

// Tensor cores do not look at the low 13 bits.
float from_tfloat32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000); }

int inner_size(Operands operands) { return operands == Operands::kTFloat32 ? 8 : 16; }

// The values of word `word` of a row or column; consecutive ones are `stride` apart.
void unpack(Operands operands, uint32_t bits, int word, float* values, int stride) {
  if (operands == Operands::kTFloat32) {
    values[word * stride] = from_tfloat32(bits);
    return;
  }
  const auto convert = operands == Operands::kBFloat16 ? from_bfloat16 : from_float16;
  values[2 * word * stride] = convert(bits & 0xffff);
  values[(2 * word + 1) * stride] = convert(bits >> 16);
}

}  // namespace

// Products are exact in float32; sums are rounded after each of them, hardware's a little less often.
void multiply(CudaThread* const* lanes) {
  const Operands operands = lanes[0]->operands;
  float a[kRows][kMostK], b[kMostK][kColumns], d[kRows][kColumns];
  for (int lane = 0; lane < cuda::kWarpSize; ++lane) {
    const CudaThread& thread = *lanes[lane];
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 4; ++i) {
      unpack(operands, thread.a[i], member + i / 2 * 4, a[group + i % 2 * 8], 1);
      d[group + i / 2 * 8][2 * member + i % 2] = thread.d[i];
    }
    for (int i = 0; i < 2; ++i) unpack(operands, thread.b[i], member + i * 4, &b[0][group], kColumns);
  }
  for (int row = 0; row < kRows; ++row)
    for (int k = 0; k < inner_size(operands); ++k)
      for (int column = 0; column < kColumns; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < cuda::kWarpSize; ++lane)
    for (int i = 0; i < 4; ++i) lanes[lane]->d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

}  // namespace seqkernels::emulator
