// Plain tensors of Python's, borrowed for the time of a call, and new ones: the short way, around torch's dispatcher.
//
// The address, dtype and sizes of a tensor come through DLPack's exchange API, which torch.Tensor offers as a table of C
// functions: https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once
#include <pybind11/pybind11.h>

#include "../kinds.h"

namespace seqkernels {

// A strided tensor on the CPU of a dtype that the kernels take. It keeps the tensor and its memory alive, whatever another
// thread gives to that tensor meanwhile; sizes and strides are valid only while no other thread of Python's runs.
struct BorrowedTensor {
  pybind11::object owner, storage;
  char* data;
  DType dtype;  // but of flags
  int dim;
  const int64_t* sizes;
  const int64_t* strides;

  bool has_sizes(std::initializer_list<int64_t> expected) const;
  bool has_size(const WeightSize& expected) const {
    return expected.is_vector() ? has_sizes({expected.rows}) : has_sizes({expected.rows, expected.columns});
  }
  bool is_empty() const;
  bool is_contiguous() const;
};

// Whether this torch offers the exchange API in a version that is known here; if not, nothing can be borrowed.
bool can_borrow();

// False for anything but a plain tensor (torch.Tensor or Parameter itself, not negated lazily) that a BorrowedTensor can
// be, or where `gradients` and it requires one.
bool borrow(PyObject* object, bool gradients, BorrowedTensor& tensor);

// Likewise a bool tensor, which gradients do not matter to.
bool borrow_flags(PyObject* object, BorrowedTensor& tensor);

// An uninitialised contiguous tensor of the dtype of `like`.
BorrowedTensor new_tensor(std::initializer_list<int64_t> sizes, const BorrowedTensor& like);

}  // namespace seqkernels
