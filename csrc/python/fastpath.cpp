#include "fastpath.h"

#include <pybind11/stl.h>

#include <string_view>
#include <vector>

#include "call.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

// What a module of torch.nn keeps of itself in its __dict__, read without the interpreter's help.
class Attributes {
 public:
  explicit Attributes(PyObject* dict) : dict_(dict) {}

  // False where there is no such attribute, it is of another type, or no size that anything has.
  bool read(PyObject* name, int64_t& value) const {
    PyObject* const found = get(name);
    if (!found || !PyLong_Check(found)) return false;
    value = PyLong_AsLongLong(found);
    return value >= 0 && value <= INT32_MAX;
  }
  bool read(PyObject* name, bool& value) const {
    PyObject* const found = get(name);
    value = found == Py_True;
    return value || found == Py_False;
  }
  PyObject* get(PyObject* name) const { return PyDict_GetItemWithError(dict_, name); }

 private:
  PyObject* dict_;
};

struct Names {
  PyObject *parameters = intern("_parameters"), *flat_weights_names = intern("_flat_weights_names"),
           *input_size = intern("input_size"), *hidden_size = intern("hidden_size"), *proj_size = intern("proj_size"),
           *num_layers = intern("num_layers"), *bidirectional = intern("bidirectional"),
           *batch_first = intern("batch_first"), *training = intern("training"), *dropout = intern("dropout"),
           *norm_eps = intern("norm_eps"), *options = intern("_options"), *zoneout = intern("zoneout"),
           *return_cell_states = intern("return_cell_states"),
           *weights_of_a_cell =
               Py_BuildValue("(NNNN)", intern("weight_ih"), intern("weight_hh"), intern("bias_ih"), intern("bias_hh"));

  static PyObject* intern(const char* name) { return PyUnicode_InternFromString(name); }
  static const Names& get() {
    static const Names* const names = new Names();
    return *names;
  }
};

// What options of the recurrence (seqkernels/_options.py) mean for a call that trains nothing.
bool read_options(PyObject* options, Form& form) {
  if (!options) return true;
  if (!PyDict_Check(options)) return false;
  const Attributes given(options);
  const auto read_rate = [](PyObject* number, double& rate) {
    if (!PyFloat_Check(number)) return false;
    rate = PyFloat_AS_DOUBLE(number);
    return rate >= 0 && rate <= 1;
  };
  if (PyObject* const zoneout = given.get(Names::get().zoneout)) {
    const bool is_pair = PyTuple_Check(zoneout) && PyTuple_GET_SIZE(zoneout) == 2;
    if (!read_rate(is_pair ? PyTuple_GET_ITEM(zoneout, 0) : zoneout, form.zoneout_h_rate)) return false;
    if (form.has_c() && !read_rate(is_pair ? PyTuple_GET_ITEM(zoneout, 1) : zoneout, form.zoneout_c_rate)) return false;
  }
  form.cell_states = given.get(Names::get().return_cell_states) == Py_True;
  return !form.cell_states || (form.has_c() && !form.is_cell);
}

bool read_form(const Attributes& attributes, const std::string_view cell, bool is_cell, Form& form) {
  const Names& names = Names::get();
  form = {{}, is_cell, {0, 0, 0, 1, 1}, false, 0};
  if (!find_cell(cell, form.cell) || !read_options(attributes.get(names.options), form)) return false;
  StackSizes& sizes = form.sizes;
  if (!attributes.read(names.input_size, sizes.input_size) || !attributes.read(names.hidden_size, sizes.hidden_size))
    return false;
  if (sizes.hidden_size < 1) return false;
  sizes.output_size = sizes.hidden_size;
  if (cell_info(form.cell).is_projected() && (!attributes.read(names.proj_size, sizes.output_size) || is_cell))
    return false;
  if (cell_info(form.cell).is_normalized()) {
    PyObject* const norm_eps = attributes.get(names.norm_eps);
    if (!norm_eps || !PyFloat_Check(norm_eps)) return false;
    form.norm_eps = PyFloat_AS_DOUBLE(norm_eps);
    if (!(form.norm_eps >= 0)) return false;
  }
  if (is_cell) return true;
  bool bidirectional, training;
  if (!attributes.read(names.num_layers, sizes.layers) || sizes.layers < 1 ||
      !attributes.read(names.bidirectional, bidirectional) || !attributes.read(names.batch_first, form.batch_first) ||
      !attributes.read(names.training, training))
    return false;
  sizes.directions = bidirectional ? 2 : 1;
  if (sizes.layers == 1 || !training) return true;
  PyObject* const dropout = attributes.get(names.dropout);
  return dropout && PyFloat_Check(dropout) && PyFloat_AS_DOUBLE(dropout) == 0.0;
}

// Reads the weights of every layer and direction; false where one is not an ordinary parameter that fits.
bool read_weights(const Attributes& attributes, const Form& form, DType dtype, bool gradients,
                  std::vector<BorrowedTensor>& tensors, std::vector<Weights>& weights) {
  const Names& all = Names::get();
  PyObject* const parameters = attributes.get(all.parameters);
  PyObject* const names = form.is_cell ? all.weights_of_a_cell : attributes.get(all.flat_weights_names);
  if (!parameters || !PyDict_Check(parameters) || !names || !(PyList_Check(names) || PyTuple_Check(names)))
    return false;
  const StackSizes& sizes = form.sizes;
  const CellInfo& info = cell_info(form.cell);
  const int64_t count = sizes.layers * sizes.directions, per_direction = PySequence_Fast_GET_SIZE(names) / count;
  const bool biases = per_direction == info.weights(true);
  if (PySequence_Fast_GET_SIZE(names) != per_direction * count || per_direction != info.weights(biases)) return false;
  PyObject* const* name = PySequence_Fast_ITEMS(names);
  for (int64_t i = 0; i < count; ++i) {
    Weights found{};
    for (int place = 0; place < per_direction; ++place) {
      const WeightKind kind = info.kind_of_weight(place, biases);
      PyObject* const object = PyDict_GetItemWithError(parameters, *name++);
      if (object == Py_None && form.is_cell && is_bias(kind)) continue;  // a Cell without biases
      BorrowedTensor weight;
      if (!object || !borrow(object, gradients, weight) || weight.dtype != dtype || !weight.is_contiguous())
        return false;
      if (!weight.has_size(form.size_of(kind, i / sizes.directions))) return false;
      found.of[kind] = weight.data;
      tensors.push_back(std::move(weight));
    }
    if (!found[kInputBias] != !found[kHiddenBias]) return false;
    weights.push_back(found);
  }
  return true;
}

py::object fastpath(const py::dict& module, const std::string_view cell, bool is_cell, py::handle x, py::handle hx,
                    bool gradients, py::handle reset_mask) {
  const Attributes attributes(module.ptr());
  Form form;
  Call call;
  std::vector<BorrowedTensor> parameters;  // kept alive while other threads may exchange them
  std::vector<Weights> weights;
  if (!read_form(attributes, cell, is_cell, form) || !call.read(form, x.ptr(), hx.ptr(), reset_mask.ptr(), gradients) ||
      call.rows() == 0 || !read_weights(attributes, form, call.dtype(), gradients, parameters, weights)) {
    if (PyErr_Occurred()) PyErr_Clear();
    return py::none();
  }
  call.make_results();
  run_beside_python(static_cast<double>(call.rows()) * work_of(form.cell, form.sizes),
                    [&] { run_stack(form.cell, call.stack(), weights); });
  return call.results();
}

}  // namespace

void define_fastpath(py::module_& m) {
  m.def("fastpath", &fastpath, py::arg("module"), py::arg("cell"), py::arg("is_cell"), py::arg("x"), py::arg("hx"),
        py::arg("gradients"), py::arg("reset_mask") = py::none(),
        "The result of a module's forward without gradients, or None; `module` is the __dict__ of one of torch's Cells "
        "(is_cell) or layers, which has this cell.");
}

}  // namespace seqkernels
