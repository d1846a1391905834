#include "../cpu/frozen.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "call.h"
#include "fastpath.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

WeightKind kind_of(const Form& form, int64_t i) {
  return cell_info(form.cell).kind_of_weight(static_cast<int>(i % frozen_parameters(form.cell)), true);
}

// Of parameter `i` of a form: as modules name them.
std::string parameter_name(const Form& form, int64_t i) {
  static const char* const names[kWeightKinds] = {"weight_ih",      "weight_hh",     "bias_ih",
                                                  "bias_hh",        "weight_hr",     "norm_ih_weight",
                                                  "norm_hh_weight", "norm_c_weight", "norm_c_bias"};
  const int64_t direction = i / frozen_parameters(form.cell);
  std::string name = names[kind_of(form, i)];
  if (form.is_cell) return name;
  name += "_l" + std::to_string(direction / form.sizes.directions);
  return direction % form.sizes.directions == 1 ? name + "_reverse" : name;
}

class FrozenModule {
 public:
  FrozenModule(const Form& form, bool bfloat16, const py::list& parameters)
      : form_(form),
        weights_(bfloat16 ? DType::kBFloat16 : DType::kFloat32),
        frozen_(form.cell, weights_, form.sizes, addresses<const void*>(parameters)) {}

  // Fills tensors like those it was made from, none of which may be missing.
  void unpack(const py::list& parameters) const {
    for (const py::handle parameter : parameters)
      if (parameter.is_none()) throw std::invalid_argument("unpack needs a tensor for each parameter");
    frozen_.unpack(addresses<void*>(parameters));
  }

  py::object run(py::handle x, py::handle hx, bool gradients) const {
    Call call;
    if (!call.read(form_, x.ptr(), hx.ptr(), Py_None, gradients) || call.dtype() != DType::kFloat32) return py::none();
    call.make_results();
    run_beside_python(frozen_.work(call.rows()), [&] { frozen_.run(call.stack()); });
    return call.results();
  }

  const Form& form() const { return form_; }
  bool bfloat16() const { return weights_ == DType::kBFloat16; }

 private:
  // Where the parameters are, once they are known to be what this form has; null for a bias that is None.
  template <class Pointer>
  std::vector<Pointer> addresses(const py::list& parameters) const {
    const int64_t per_direction = frozen_parameters(form_.cell), directions = form_.sizes.directions;
    const int64_t count = per_direction * form_.sizes.layers * directions;
    if (static_cast<int64_t>(parameters.size()) != count)
      throw std::invalid_argument("expected " + std::to_string(count) + " parameters, got " +
                                  std::to_string(parameters.size()));
    std::vector<Pointer> list;
    for (int64_t i = 0; i < count; ++i) {
      const py::object parameter = parameters[static_cast<size_t>(i)];
      const WeightKind kind = kind_of(form_, i);
      if (is_bias(kind) && parameter.is_none()) {
        list.push_back(nullptr);
        continue;
      }
      const WeightSize size = form_.size_of(kind, i / per_direction / directions);
      BorrowedTensor tensor;
      const bool fits = borrow(parameter.ptr(), false, tensor) && tensor.is_contiguous() &&
                        tensor.dtype == (size.is_vector() ? DType::kFloat32 : weights_) && tensor.has_size(size);
      if (!fits) {
        const std::string sizes =
            std::to_string(size.rows) + (size.is_vector() ? "" : ", " + std::to_string(size.columns));
        throw std::invalid_argument(parameter_name(form_, i) + " must be a plain tensor of size [" + sizes +
                                    "] with all its memory, got " + describe(parameter));
      }
      list.push_back(tensor.data);
    }
    return list;
  }

  static std::string describe(const py::object& object) {
    const auto text = [](const py::object& part) { return py::str(part).cast<std::string>(); };
    const std::string type = py::type::handle_of(object).attr("__name__").cast<std::string>();
    if (!py::hasattr(object, "shape") || !py::hasattr(object, "dtype")) return type;
    return "a " + type + " of size " + text(py::list(object.attr("shape"))) + " and " + text(object.attr("dtype"));
  }

  const Form form_;
  const DType weights_;
  const Frozen frozen_;
};

// What sizes a module may have: those of one that exists.
void check_size(const char* name, int64_t value, int64_t least) {
  if (value < least || value > INT32_MAX)
    throw std::invalid_argument(std::string(name) + " must be at least " + std::to_string(least) + ", got " +
                                std::to_string(value));
}

}  // namespace

void define_frozen(py::module_& m) {
  py::class_<FrozenModule>(m, "Frozen", "A packed copy of a module's weights; see seqkernels.freeze.")
      .def(py::init([](std::string_view cell, bool is_cell, int64_t input_size, int64_t hidden_size, int64_t proj_size,
                       int64_t num_layers, bool bidirectional, bool batch_first, bool bfloat16, double norm_eps,
                       const py::list& parameters) {
             CellKind kind;
             if (!find_cell(cell, kind)) throw std::invalid_argument("unknown cell " + std::string(cell));
             check_size("input_size", input_size, 0);
             check_size("hidden_size", hidden_size, 1);
             check_size("proj_size", proj_size, cell_info(kind).is_projected() ? 1 : 0);
             if (proj_size > 0 && !cell_info(kind).is_projected())
               throw std::invalid_argument(std::string(cell) + " has no projection");
             check_size("num_layers", num_layers, 1);
             if (!(norm_eps >= 0))
               throw std::invalid_argument("norm_eps must be at least 0, got " + std::to_string(norm_eps));
             if (is_cell && (num_layers > 1 || bidirectional || batch_first))
               throw std::invalid_argument("a Cell has one layer and one direction, and no batch_first");
             if (!can_borrow())
               throw std::runtime_error("freeze knows DLPack's exchange API 1.x, and this torch has another");
             const int64_t output_size = proj_size > 0 ? proj_size : hidden_size;
             const StackSizes sizes{input_size, hidden_size, output_size, num_layers, bidirectional ? 2 : 1};
             return std::make_unique<FrozenModule>(Form{kind, is_cell, sizes, batch_first, norm_eps}, bfloat16,
                                                   parameters);
           }),
           py::arg("cell"), py::arg("is_cell"), py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"),
           py::arg("num_layers"), py::arg("bidirectional"), py::arg("batch_first"), py::arg("bfloat16"),
           py::arg("norm_eps"), py::arg("parameters"))
      .def("unpack", &FrozenModule::unpack)
      .def("run", &FrozenModule::run, "The result of the module's forward, or None.")
      .def_property_readonly("cell", [](const FrozenModule& m) { return cell_info(m.form().cell).name; })
      .def_property_readonly("is_cell", [](const FrozenModule& m) { return m.form().is_cell; })
      .def_property_readonly("input_size", [](const FrozenModule& m) { return m.form().sizes.input_size; })
      .def_property_readonly("hidden_size", [](const FrozenModule& m) { return m.form().sizes.hidden_size; })
      .def_property_readonly("proj_size",
                             [](const FrozenModule& m) {
                               return cell_info(m.form().cell).is_projected() ? m.form().sizes.output_size : 0;
                             })
      .def_property_readonly("num_layers", [](const FrozenModule& m) { return m.form().sizes.layers; })
      .def_property_readonly("bidirectional", [](const FrozenModule& m) { return m.form().sizes.directions == 2; })
      .def_property_readonly("batch_first", [](const FrozenModule& m) { return m.form().batch_first; })
      .def_property_readonly("norm_eps", [](const FrozenModule& m) { return m.form().norm_eps; })
      .def_property_readonly("bfloat16", &FrozenModule::bfloat16);
}

}  // namespace seqkernels
