// Products of a time loop, by cuBLAS itself: through torch's dispatcher, one takes the host longer than a small one takes the GPU.
#pragma once
#include <memory>

#include "../kinds.h"
#include "runtime.h"

namespace seqkernels::cuda {

// A batch of matrices in memory; strides are in elements, and that of columns or that of rows is 1.
struct Matrices {
  void* data;
  int64_t batch, row, column;  // strides
};

class Blas {
 public:
  // A handle for products of the device's current stream, or null: where this process has no cuBLAS that can be found (it has
  // one wherever torch multiplies on CUDA, but a torch that links it statically hides it), or that has no memory for a handle.
  // Operands are of `dtype`, results float32, or float64 for float64. `tf32`: whether float32 is multiplied as TF32. `like`: a
  // tensor on the device.
  static std::unique_ptr<Blas> borrow(const Device& device, DType dtype, bool tf32, const Tensor& like);
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  // out = a b, of as many matrices [rows, deep], [deep, wide] and [rows, wide]; columns of a and of out are adjacent.
  void multiply(int64_t batches, int64_t rows, int64_t wide, int64_t deep, const Matrices& a, const Matrices& b,
                const Matrices& out) const;

 private:
  Blas(int device, DType dtype, bool tf32, Tensor workspace, void* handle);

  const int device_;
  const DType dtype_;
  const bool tf32_;
  const Tensor workspace_;
  void* const handle_;
};

}  // namespace seqkernels::cuda
