// One warp-wide matrix product on tensor cores, D += A B with A [16, K], B [K, 8], D [16, 8] in float32, for operands of
// 32 bytes per row: K = 16 for bfloat16 and float16, K = 8 for float32 rounded to TF32.
//
// Fragments follow the PTX ISA's mma.m16n8k16 / mma.m16n8k8. With group = lane / 4 and member = lane % 4, a lane holds
//   a[0], a[1]  word `member` of rows group and group + 8        d[0], d[1]  row group,     columns 2 member, 2 member + 1
//   a[2], a[3]  word `member + 4` of the same rows               d[2], d[3]  row group + 8, the same columns
//   b[0], b[1]  words `member`, `member + 4` of column group     where a word is two 16-bit values or one float of K
#pragma once
#include "numbers.cuh"

namespace seqkernels::cuda {

struct TFloat32;  // an operand, BFloat16 and Float16 being the others: float32 in memory, rounded to TF32 on its way

#if !defined(SEQKERNELS_EMULATED)

template <class Operand>
SEQKERNELS_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
SEQKERNELS_DEVICE void mma<BFloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
SEQKERNELS_DEVICE void mma<Float16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
SEQKERNELS_DEVICE void mma<TFloat32>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

}  // namespace seqkernels::cuda
