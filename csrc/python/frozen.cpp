#include "../cpu/frozen.h"

#include <pybind11/stl.h>

#include <memory>
#include <string_view>
#include <vector>

#include "call.h"
#include "fastpath.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

class FrozenModule {
 public:
  using Address = uintptr_t;  // of a tensor, 0 for none: Python checks these, once

  FrozenModule(const Form& form, bool bfloat16, const std::vector<Address>& parameters)
      : form_(form), frozen_(form.cell, bfloat16 ? DType::kBFloat16 : DType::kFloat32, form.sizes, [&] {
          const auto list = pointers(parameters);
          return std::vector<const void*>(list.begin(), list.end());
        }()) {
    if (!can_borrow()) throw std::runtime_error("freeze knows DLPack's exchange API 1.x, and this torch has another");
  }

  void unpack(const std::vector<Address>& parameters) const { frozen_.unpack(pointers(parameters)); }

  py::object run(py::handle x, py::handle hx, bool gradients) const {
    Call call;
    if (!call.read(form_, x.ptr(), hx.ptr(), gradients) || call.dtype() != DType::kFloat32) return py::none();
    call.make_results();
    run_beside_python(frozen_.work(call.rows()), [&] { frozen_.run(call.stack()); });
    return call.results();
  }

 private:
  static std::vector<void*> pointers(const std::vector<Address>& addresses) {
    std::vector<void*> list;
    for (const Address address : addresses) list.push_back(reinterpret_cast<void*>(address));
    return list;
  }

  const Form form_;
  const Frozen frozen_;
};

}  // namespace

void define_frozen(py::module_& m) {
  py::class_<FrozenModule>(m, "Frozen", "A packed copy of a module's weights; see seqkernels.freeze.")
      .def(py::init([](std::string_view cell, bool is_cell, int64_t input_size, int64_t hidden_size, int64_t layers,
                       int64_t directions, bool batch_first, bool bfloat16,
                       const std::vector<FrozenModule::Address>& parameters) {
        CellKind kind;
        if (!find_cell(cell, kind)) throw std::invalid_argument("unknown cell");
        const Form form{kind, is_cell, {input_size, hidden_size, layers, directions}, batch_first};
        return std::make_unique<FrozenModule>(form, bfloat16, parameters);
      }))
      .def("unpack", &FrozenModule::unpack)
      .def("run", &FrozenModule::run, "The result of the module's forward, or None.");
}

}  // namespace seqkernels
