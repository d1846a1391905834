#include "blas.h"

#include <dlfcn.h>
#include <library_types.h>

#include <map>
#include <mutex>
#include <vector>

#include "../layer.h"

namespace seqkernels::cuda {
namespace {

// The part of cuBLAS's C interface that is used here, the same in all its releases since 11. Declared instead of included and
// looked up instead of linked: the library that torch has loaded will do, whichever release it is.
using Handle = void*;
enum Operation : int { kAsItIs = 0, kTransposed = 1 };
enum ComputeType : int { kCompute32 = 68, kCompute64 = 70, kCompute32AsTf32 = 77 };
constexpr int kDefaultAlgorithm = -1;

struct Interface {
  int (*create)(Handle*);
  int (*set_stream)(Handle, cudaStream_t);
  int (*set_workspace)(Handle, void*, size_t bytes);
  int (*multiply)(Handle, Operation, Operation, int m, int n, int k, const void* alpha, const void* a, cudaDataType,
                  int lda, long long stride_a, const void* b, cudaDataType, int ldb, long long stride_b,
                  const void* beta, void* c, cudaDataType, int ldc, long long stride_c, int batches, ComputeType,
                  int algorithm);
};

const Interface& interface() {
  static const Interface found = [] {
    Interface all{};
    const auto look_up = [](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(RTLD_DEFAULT, name));
    };
    look_up(all.create, "cublasCreate_v2");
    look_up(all.set_stream, "cublasSetStream_v2");
    look_up(all.set_workspace, "cublasSetWorkspace_v2");
    look_up(all.multiply, "cublasGemmStridedBatchedEx");
    return all;
  }();
  return found;
}

void check_blas(int status, const char* doing) {
  if (status != 0) fail("seqkernels on CUDA: ", doing, " failed: cuBLAS status ", status);
}

// Handles that nobody uses, by device. They are never destroyed: when a process ends, CUDA may be gone before.
class Pool {
 public:
  // Null if there is none and none can be made.
  Handle take(int device) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::vector<Handle>& idle = idle_[device];
      if (!idle.empty()) {
        const Handle handle = idle.back();
        idle.pop_back();
        return handle;
      }
    }
    // cuBLAS allocates memory, which a stream that is being captured must not, unless it is told that this is meant.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "setting the capture mode");
    Handle handle = nullptr;
    if (interface().create(&handle) != 0) handle = nullptr;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "setting the capture mode");
    return handle;
  }
  void give_back(int device, Handle handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_[device].push_back(handle);
  }

 private:
  std::mutex mutex_;
  std::map<int, std::vector<Handle>> idle_;
};

Pool& pool() {
  static Pool& never_destroyed = *new Pool;
  return never_destroyed;
}

// As much as cuBLAS recommends, and torch gives it.
int64_t workspace_bytes(const Device& device) { return int64_t{device.limits().capability >= 90 ? 32 : 8} << 20; }

cudaDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return CUDA_R_64F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    case DType::kFloat16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}

}  // namespace

std::unique_ptr<Blas> Blas::borrow(const Device& device, DType dtype, bool tf32, const Tensor& like) {
  const Interface& all = interface();
  if (!all.create || !all.set_stream || !all.set_workspace || !all.multiply) return nullptr;
  Tensor workspace = new_tensor({workspace_bytes(device)}, ScalarType::Byte, like);
  const int index = like.get_device_index();
  const Handle handle = pool().take(index);
  if (!handle) return nullptr;
  std::unique_ptr<Blas> blas(new Blas(index, dtype, tf32, std::move(workspace), handle));
  const bool is_ready = all.set_stream(handle, device.stream()) == 0 &&  // which takes the workspace away
                        all.set_workspace(handle, data(blas->workspace_), size_t(workspace_bytes(device))) == 0;
  return is_ready ? std::move(blas) : nullptr;
}

Blas::Blas(int device, DType dtype, bool tf32, Tensor workspace, void* handle)
    : device_(device), dtype_(dtype), tf32_(tf32), workspace_(std::move(workspace)), handle_(handle) {}

Blas::~Blas() { pool().give_back(device_, handle_); }

// To cuBLAS, whose matrices have adjacent rows, ours are transposed: out' = b' a'.
void Blas::multiply(int64_t batches, int64_t rows, int64_t wide, int64_t deep, const Matrices& a, const Matrices& b,
                    const Matrices& out) const {
  const auto size = [](int64_t n) { return static_cast<int>(n); };
  const bool is_double = dtype_ == DType::kFloat64;
  // Of a single row it does not matter, but cuBLAS checks strides.
  const bool b_is_transposed = b.column != 1 || deep == 1;
  const cudaDataType type = type_of(dtype_), result = is_double ? CUDA_R_64F : CUDA_R_32F;
  const ComputeType compute = is_double ? kCompute64 : tf32_ ? kCompute32AsTf32 : kCompute32;
  const double one64 = 1, zero64 = 0;
  const float one32 = 1, zero32 = 0;
  const void* const one = is_double ? static_cast<const void*>(&one64) : &one32;
  const void* const zero = is_double ? static_cast<const void*>(&zero64) : &zero32;
  check_blas(interface().multiply(handle_, b_is_transposed ? kTransposed : kAsItIs, kAsItIs, size(wide), size(rows),
                                  size(deep), one, b.data, type, size(b_is_transposed ? b.column : b.row), b.batch,
                                  a.data, type, size(a.row), a.batch, zero, out.data, result, size(out.row), out.batch,
                                  size(batches), compute, kDefaultAlgorithm),
             "a product");
}

}  // namespace seqkernels::cuda
