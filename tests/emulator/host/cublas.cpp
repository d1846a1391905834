// The part of cuBLAS that csrc/cuda/blas.cpp looks up, on the host's memory: matrices with adjacent rows, sums in float64.
#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstdint>
#include <cstring>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace {

double element(const void* data, cudaDataType type, int64_t index) {
  switch (type) {
    case CUDA_R_64F:
      return static_cast<const double*>(data)[index];
    case CUDA_R_32F:
      return static_cast<const float*>(data)[index];
    case CUDA_R_16F:
      return static_cast<const c10::Half*>(data)[index];
    default:
      return static_cast<const c10::BFloat16*>(data)[index];
  }
}

constexpr int kInvalidValue = 7;
int products = 0;  // so far

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int cublasCreate_v2(void** handle) { return *handle = new char, 0; }
EXPORTED int cublasSetStream_v2(void* handle, cudaStream_t) { return handle ? 0 : kInvalidValue; }
EXPORTED int cublasSetWorkspace_v2(void* handle, void* memory, size_t bytes) {
  std::memset(memory, 0xFF, bytes < 4096 ? bytes : 4096);
  return handle ? 0 : kInvalidValue;
}
EXPORTED int cublasGemmStridedBatchedEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k,
                                        const void* alpha, const void* a, cudaDataType type_a, int lda,
                                        long long stride_a, const void* b, cudaDataType type_b, int ldb,
                                        long long stride_b, const void* beta, void* c, cudaDataType type_c, int ldc,
                                        long long stride_c, int batches, int, int) {
  const bool is_double = type_c == CUDA_R_64F;
  const double one = is_double ? *static_cast<const double*>(alpha) : *static_cast<const float*>(alpha);
  const double zero = is_double ? *static_cast<const double*>(beta) : *static_cast<const float*>(beta);
  ++products;
  if (!handle || type_a != type_b || one != 1 || zero != 0) return kInvalidValue;
  if (lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m) return kInvalidValue;
  for (int64_t batch = 0; batch < batches; ++batch)
    for (int64_t column = 0; column < n; ++column)
      for (int64_t row = 0; row < m; ++row) {
        double sum = 0;
        for (int64_t i = 0; i < k; ++i)
          sum += element(a, type_a, batch * stride_a + (transpose_a ? row * lda + i : i * lda + row)) *
                 element(b, type_b, batch * stride_b + (transpose_b ? i * ldb + column : column * ldb + i));
        const int64_t at = batch * stride_c + column * ldc + row;
        if (is_double)
          static_cast<double*>(c)[at] = sum;
        else
          static_cast<float*>(c)[at] = static_cast<float>(sum);
      }
  return 0;
}
EXPORTED int emulated_products() { return products; }
