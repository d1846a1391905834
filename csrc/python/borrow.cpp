#include "borrow.h"

#include <algorithm>

#include "../extent.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

// As laid down by DLPack 1.3.
struct DLPackTensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DLPackExchange {
  struct {
    uint32_t major, minor;
  } version;
  void* previous;
  void *new_managed, *export_managed, *import_managed;
  int (*describe)(void* tensor, DLPackTensor* description);  // 0, or -1 and a Python exception
  void* current_stream;
};
constexpr uint32_t kMajorVersion = 1;
constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2, kBFloat = 4, kBool = 6;

// A method without arguments, or a property, that torch wrote in C: called without the interpreter's help.
class Getter {
 public:
  explicit Getter(py::handle descriptor) : descriptor_(descriptor.inc_ref().ptr()) {
    if (Py_IS_TYPE(descriptor_, &PyMethodDescr_Type)) {
      const PyMethodDef* const method = reinterpret_cast<PyMethodDescrObject*>(descriptor_)->d_method;
      if (method->ml_flags == METH_NOARGS) method_ = method->ml_meth;
    } else if (Py_IS_TYPE(descriptor_, &PyGetSetDescr_Type)) {
      property_ = reinterpret_cast<PyGetSetDescrObject*>(descriptor_)->d_getset;
    }
  }

  // What it gives; null where that is an error, which is taken back.
  py::object operator()(PyObject* self) const {
    PyObject* const result = method_     ? method_(self, nullptr)
                             : property_ ? property_->get(self, property_->closure)
                                         : PyObject_CallOneArg(descriptor_, self);
    if (!result) PyErr_Clear();
    return py::reinterpret_steal<py::object>(result);
  }

  bool is_false(PyObject* self) const { return (*this)(self).ptr() == Py_False; }

  // -1 where it gives no integer, or a negative one.
  int64_t integer(PyObject* self) const {
    const py::object result = (*this)(self);
    if (!result || !PyLong_Check(result.ptr())) return -1;
    const int64_t value = PyLong_AsLongLong(result.ptr());
    if (value < 0) PyErr_Clear();
    return std::max<int64_t>(value, -1);
  }

 private:
  PyObject* descriptor_;
  PyCFunction method_ = nullptr;
  const PyGetSetDef* property_ = nullptr;
};

// What is needed of torch, looked up once and kept for good. `exchange` is null where this torch offers another one.
struct Torch {
  PyObject *tensor, *parameter, *empty_like;
  const DLPackExchange* exchange = nullptr;
  Getter is_negated, requires_grad, storage, storage_offset, storage_bytes;
  PyObject* new_empty = PyUnicode_InternFromString("new_empty");

  explicit Torch(const py::module_& torch)
      : is_negated(torch.attr("Tensor").attr("is_neg")),
        requires_grad(torch.attr("Tensor").attr("requires_grad")),
        storage(torch.attr("Tensor").attr("untyped_storage")),
        storage_offset(torch.attr("Tensor").attr("storage_offset")),
        storage_bytes(torch.attr("UntypedStorage").attr("nbytes")) {
    tensor = torch.attr("Tensor").cast<py::object>().release().ptr();
    parameter = torch.attr("nn").attr("Parameter").cast<py::object>().release().ptr();
    empty_like = torch.attr("empty_like").cast<py::object>().release().ptr();
    const py::object capsule = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return;
    exchange = static_cast<const DLPackExchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (exchange->version.major != kMajorVersion || !exchange->describe) exchange = nullptr;
  }

  static const Torch& get() {
    static const Torch* const torch = new Torch(py::module_::import("torch"));
    return *torch;
  }
};

bool dtype_of(const DLPackTensor& tensor, DType& dtype) {
  const uint8_t code = tensor.dtype.code, bits = tensor.dtype.bits;
  if (code == kBFloat && bits == 16)
    dtype = DType::kBFloat16;
  else if (code == kFloat && (bits == 16 || bits == 32 || bits == 64))
    dtype = bits == 16 ? DType::kFloat16 : bits == 32 ? DType::kFloat32 : DType::kFloat64;
  else
    return false;
  return tensor.dtype.lanes == 1;
}

// False where it is not on the CPU or has no memory; its dtype is left to the caller.
bool describe(const Torch& torch, PyObject* object, BorrowedTensor& tensor, DLPackTensor& description) {
  if (torch.exchange->describe(object, &description) != 0) {
    PyErr_Clear();
    return false;
  }
  tensor.owner = py::reinterpret_borrow<py::object>(object);
  tensor.data = static_cast<char*>(description.data) + description.byte_offset;
  tensor.dim = description.ndim, tensor.sizes = description.shape, tensor.strides = description.strides;
  return description.device.type == kCpu && (description.data || tensor.is_empty());
}
bool describe(const Torch& torch, PyObject* object, BorrowedTensor& tensor) {
  DLPackTensor description;
  return describe(torch, object, tensor, description) && dtype_of(description, tensor.dtype);
}

// False where the storage has less than the sizes say, as one that was freed or made smaller.
bool hold_storage(const Torch& torch, BorrowedTensor& tensor, int64_t element_bytes) {
  tensor.storage = torch.storage(tensor.owner.ptr());
  if (!tensor.storage) return false;
  const int64_t elements = extent(tensor.sizes, tensor.strides, tensor.dim);
  if (elements == 0) return true;
  const int64_t offset = torch.storage_offset.integer(tensor.owner.ptr());
  return offset >= 0 && (offset + elements) * element_bytes <= torch.storage_bytes.integer(tensor.storage.ptr());
}

}  // namespace

bool BorrowedTensor::has_sizes(std::initializer_list<int64_t> expected) const {
  return std::equal(sizes, sizes + dim, expected.begin(), expected.end());
}

bool BorrowedTensor::is_empty() const { return std::count(sizes, sizes + dim, 0) > 0; }

bool BorrowedTensor::is_contiguous() const {
  if (is_empty()) return true;
  int64_t stride = 1;
  for (int i = dim; i-- > 0;) {
    if (sizes[i] != 1 && strides[i] != stride) return false;
    stride *= sizes[i];
  }
  return true;
}

bool can_borrow() { return Torch::get().exchange; }

bool borrow(PyObject* object, bool gradients, BorrowedTensor& tensor) {
  const Torch& torch = Torch::get();
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (!torch.exchange || (type != torch.tensor && type != torch.parameter)) return false;
  if ((gradients && !torch.requires_grad.is_false(object)) || !torch.is_negated.is_false(object)) return false;
  return describe(torch, object, tensor) && hold_storage(torch, tensor, bytes_of(tensor.dtype));
}

bool borrow_flags(PyObject* object, BorrowedTensor& tensor) {
  const Torch& torch = Torch::get();
  DLPackTensor description;
  return torch.exchange && reinterpret_cast<PyObject*>(Py_TYPE(object)) == torch.tensor &&
         describe(torch, object, tensor, description) && description.dtype.code == kBool &&
         description.dtype.bits == 8 && description.dtype.lanes == 1 && hold_storage(torch, tensor, 1);
}

BorrowedTensor new_tensor(std::initializer_list<int64_t> sizes, const BorrowedTensor& like) {
  const Torch& torch = Torch::get();
  PyObject* made;
  if (like.has_sizes(sizes) && like.is_contiguous()) {  // the shorter way
    made = PyObject_CallOneArg(torch.empty_like, like.owner.ptr());
  } else {
    py::tuple shape(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) shape[i] = py::int_(sizes.begin()[i]);
    made = PyObject_CallMethodOneArg(like.owner.ptr(), torch.new_empty, shape.ptr());
  }
  if (!made) throw py::error_already_set();
  const auto object = py::reinterpret_steal<py::object>(made);
  BorrowedTensor tensor;
  if (!describe(torch, made, tensor)) throw std::runtime_error("torch made a tensor that is not plain");
  return tensor;
}

}  // namespace seqkernels
