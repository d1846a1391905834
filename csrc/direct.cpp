#include "direct.h"

#include <pybind11/stl.h>

#include <memory>
#include <string_view>
#include <vector>

#include "borrow.h"
#include "cpu/frozen.h"
#include "cpu/stack.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

// From this many multiply-adds on, Python's other threads may run meanwhile.
constexpr double kLongWork = 1 << 19;

// How a module is called.
struct Form {
  CellKind cell;
  bool is_cell;  // one of torch's Cells: x is [B, I] or [I], and the result the state alone
  StackSizes sizes;
  bool batch_first;

  bool has_c() const { return cell_sizes(cell).has_cell_state; }
};

// A cell by its name here, or by the `mode` of an RNNBase.
bool read_kind(std::string_view name, CellKind& kind) {
  if (name == "lstm" || name == "LSTM")
    kind = CellKind::kLstm;
  else if (name == "gru" || name == "GRU")
    kind = CellKind::kGru;
  else if (name == "tanh" || name == "RNN_TANH")
    kind = CellKind::kRnnTanh;
  else if (name == "relu" || name == "RNN_RELU")
    kind = CellKind::kRnnRelu;
  else
    return false;
  return true;
}

// One call: what came, what it is in sizes, and what it gives.
class Call {
 public:
  // False where x and hx are not plain tensors of the sizes that this form takes, or, with `gradients`, require one.
  bool read(const Form& form, PyObject* x_object, PyObject* hx, bool gradients) {
    form_ = form;
    if (!borrow(x_object, gradients, x_)) return false;
    const int rows = form.is_cell ? 0 : 1, last = x_.dim - 1;
    batched_ = x_.dim == rows + 2;
    if ((!batched_ && x_.dim != rows + 1) || x_.sizes[last] != form.sizes.input_size) return false;
    if (x_.sizes[last] > 1 && x_.strides[last] != 1) return false;
    const int step = batched_ && form.batch_first ? 1 : 0, sequence = 1 - step;
    seq_len_ = form.is_cell ? 1 : x_.sizes[step];
    batch_ = !batched_ ? 1 : form.is_cell ? x_.sizes[0] : x_.sizes[sequence];
    if (seq_len_ == 0) return false;
    x_rows_ = {x_.data, form.is_cell ? 0 : x_.strides[step],
               !batched_      ? 0
               : form.is_cell ? x_.strides[0]
                              : x_.strides[sequence]};
    return hx == Py_None || read_state(hx, gradients);
  }

  void make_results() {
    const auto [input_size, hidden, layers, directions] = form_.sizes;
    const BorrowedTensor& like = has_state_ ? h0_ : x_;
    const auto new_state = [&, hidden = hidden, states = layers * directions] {
      if (form_.is_cell) return batched_ ? new_tensor({batch_, hidden}, like) : new_tensor({hidden}, like);
      return batched_ ? new_tensor({states, batch_, hidden}, like) : new_tensor({states, hidden}, like);
    };
    h_n_ = new_state();
    if (form_.has_c()) c_n_ = new_state();
    if (form_.is_cell) return;
    const int64_t width = directions * hidden;
    const bool no_matter = seq_len_ == 1 || batch_ == 1;  // which of them comes first
    output_ = !batched_                        ? new_tensor({seq_len_, width}, h_n_)
              : form_.batch_first && no_matter ? new_tensor({batch_, seq_len_, width}, h_n_)
                                               : new_tensor({seq_len_, batch_, width}, h_n_);
  }

  // What the module's forward returns.
  py::object results() {
    py::object state = form_.has_c() ? py::make_tuple(h_n_.owner, c_n_.owner) : h_n_.owner;
    if (form_.is_cell) return state;
    const bool turn = batched_ && form_.batch_first && seq_len_ > 1 && batch_ > 1;
    return py::make_tuple(turn ? output_.owner.attr("transpose")(0, 1) : output_.owner, state);
  }

  DType dtype() const { return x_.dtype; }
  int64_t seq_len() const { return seq_len_; }
  int64_t batch() const { return batch_; }
  int64_t rows() const { return seq_len_ * batch_; }
  const RowTensor& x() const { return x_rows_; }
  char* h0() const { return has_state_ ? h0_.data : nullptr; }
  char* c0() const { return has_state_ && form_.has_c() ? c0_.data : nullptr; }
  char* output() const { return form_.is_cell ? h_n() : output_.data; }
  char* h_n() const { return h_n_.data; }
  char* c_n() const { return form_.has_c() ? c_n_.data : nullptr; }

 private:
  bool read_state(PyObject* hx, bool gradients) {
    has_state_ = true;
    if (!form_.has_c()) return read_state(hx, gradients, h0_);
    if (!(PyTuple_Check(hx) || PyList_Check(hx)) || PySequence_Fast_GET_SIZE(hx) != 2) return false;
    PyObject* const* const states = PySequence_Fast_ITEMS(hx);
    return read_state(states[0], gradients, h0_) && read_state(states[1], gradients, c0_);
  }

  bool read_state(PyObject* object, bool gradients, BorrowedTensor& state) const {
    if (!borrow(object, gradients, state) || state.dtype != x_.dtype || !state.is_contiguous()) return false;
    const int64_t hidden = form_.sizes.hidden_size, layers = form_.sizes.layers * form_.sizes.directions;
    if (form_.is_cell) return batched_ ? state.has_sizes({batch_, hidden}) : state.has_sizes({hidden});
    return batched_ ? state.has_sizes({layers, batch_, hidden}) : state.has_sizes({layers, hidden});
  }

  Form form_;
  BorrowedTensor x_, h0_, c0_;
  bool batched_, has_state_ = false;
  int64_t seq_len_, batch_;
  RowTensor x_rows_;
  BorrowedTensor output_, h_n_, c_n_;
};

template <class Run>
void run(double work, const Run& kernels) {
  if (work < kLongWork) return kernels();
  const py::gil_scoped_release others_may_run;
  kernels();
}

// ---- with the module's own parameters ----

// What a module of torch.nn keeps of itself in its __dict__, read without the interpreter's help.
class Attributes {
 public:
  explicit Attributes(PyObject* dict) : dict_(dict) {}

  // False where there is no such attribute or it is of another type.
  bool read(PyObject* name, int64_t& value) const {
    PyObject* const found = get(name);
    if (!found || !PyLong_Check(found)) return false;
    value = PyLong_AsLongLong(found);
    return value >= 0 || !PyErr_Occurred();
  }
  bool read(PyObject* name, bool& value) const {
    PyObject* const found = get(name);
    value = found == Py_True;
    return value || found == Py_False;
  }
  std::string_view text(PyObject* name) const {
    PyObject* const found = get(name);
    Py_ssize_t size = 0;
    const char* const data = found && PyUnicode_Check(found) ? PyUnicode_AsUTF8AndSize(found, &size) : nullptr;
    return data ? std::string_view(data, size_t(size)) : std::string_view();
  }
  PyObject* get(PyObject* name) const { return PyDict_GetItemWithError(dict_, name); }

 private:
  PyObject* dict_;
};

struct Names {
  PyObject *parameters = intern("_parameters"), *flat_weights_names = intern("_flat_weights_names"),
           *input_size = intern("input_size"), *hidden_size = intern("hidden_size"), *num_layers = intern("num_layers"),
           *bidirectional = intern("bidirectional"), *batch_first = intern("batch_first"), *mode = intern("mode"),
           *nonlinearity = intern("nonlinearity"), *training = intern("training"), *dropout = intern("dropout"),
           *weights_of_a_cell =
               Py_BuildValue("(NNNN)", intern("weight_ih"), intern("weight_hh"), intern("bias_ih"), intern("bias_hh"));

  static PyObject* intern(const char* name) { return PyUnicode_InternFromString(name); }
  static const Names& get() {
    static const Names* const names = new Names();
    return *names;
  }
};

// `cell` is "lstm", "gru" or "rnn" for one of the Cells, "" for layers.
bool read_form(const Attributes& attributes, const std::string_view cell, Form& form) {
  const Names& names = Names::get();
  const bool is_cell = !cell.empty();
  form = {CellKind::kLstm, is_cell, {0, 0, 1, 1}, false};
  const std::string_view kind = cell == "rnn" ? attributes.text(names.nonlinearity)
                                : is_cell     ? cell
                                              : attributes.text(names.mode);
  if (!read_kind(kind, form.cell)) return false;
  StackSizes& sizes = form.sizes;
  if (!attributes.read(names.input_size, sizes.input_size) || !attributes.read(names.hidden_size, sizes.hidden_size))
    return false;
  if (sizes.hidden_size < 1) return false;
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

// Of every layer and direction w_ih, w_hh and maybe b_ih, b_hh; false where one is not an ordinary parameter that fits.
bool read_weights(const Attributes& attributes, const Form& form, DType dtype, bool gradients,
                  std::vector<BorrowedTensor>& tensors, std::vector<Weights>& weights) {
  const Names& all = Names::get();
  PyObject* const parameters = attributes.get(all.parameters);
  PyObject* const names = form.is_cell ? all.weights_of_a_cell : attributes.get(all.flat_weights_names);
  if (!parameters || !PyDict_Check(parameters) || !names || !(PyList_Check(names) || PyTuple_Check(names)))
    return false;
  const int64_t count = form.sizes.layers * form.sizes.directions, hidden = form.sizes.hidden_size;
  const int64_t per_direction = PySequence_Fast_GET_SIZE(names) / count;
  if (PySequence_Fast_GET_SIZE(names) != per_direction * count || (per_direction != 2 && per_direction != 4))
    return false;
  const int64_t gate_rows = cell_sizes(form.cell).gates * hidden;
  PyObject* const* name = PySequence_Fast_ITEMS(names);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t inputs = i < form.sizes.directions ? form.sizes.input_size : form.sizes.directions * hidden;
    const char* found[4] = {};
    for (int64_t kind = 0; kind < per_direction; ++kind) {
      PyObject* const object = PyDict_GetItemWithError(parameters, *name++);
      if (object == Py_None && form.is_cell && kind >= 2) continue;  // a Cell without biases
      BorrowedTensor weight;
      if (!object || !borrow(object, gradients, weight) || weight.dtype != dtype || !weight.is_contiguous())
        return false;
      const bool fits = kind == 0   ? weight.has_sizes({gate_rows, inputs})
                        : kind == 1 ? weight.has_sizes({gate_rows, hidden})
                                    : weight.has_sizes({gate_rows});
      if (!fits) return false;
      found[kind] = weight.data;
      tensors.push_back(std::move(weight));
    }
    if (!found[2] != !found[3]) return false;
    weights.push_back({found[0], found[1], found[2], found[3]});
  }
  return true;
}

py::object direct(const py::dict& module, const std::string_view cell, py::handle x, py::handle hx, bool gradients) {
  const Attributes attributes(module.ptr());
  Form form;
  Call call;
  StackProblem problem{};
  std::vector<BorrowedTensor> parameters;  // kept alive while other threads may exchange them
  if (!read_form(attributes, cell, form) || !call.read(form, x.ptr(), hx.ptr(), gradients) || call.rows() == 0 ||
      !read_weights(attributes, form, call.dtype(), gradients, parameters, problem.weights)) {
    if (PyErr_Occurred()) PyErr_Clear();
    return py::none();
  }
  call.make_results();
  problem.cell = form.cell, problem.dtype = call.dtype(), problem.sizes = form.sizes;
  problem.seq_len = call.seq_len(), problem.batch = call.batch();
  problem.x = call.x(), problem.h0 = call.h0(), problem.c0 = call.c0();
  problem.output = call.output(), problem.h_n = call.h_n(), problem.c_n = call.c_n();
  run(static_cast<double>(call.rows()) * work_of(form.cell, form.sizes), [&] { run_stack(problem); });
  return call.results();
}

// ---- with weights of its own ----

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
    const auto in = [](char* data) { return reinterpret_cast<const float*>(data); };
    const auto out = [](char* data) { return reinterpret_cast<float*>(data); };
    seqkernels::run(frozen_.work(call.rows()), [&] {
      frozen_.run({call.seq_len(), call.batch(), call.x(), in(call.h0()), in(call.c0()), out(call.output()),
                   out(call.h_n()), out(call.c_n())});
    });
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

void define_direct(py::module_& m) {
  m.def("direct", &direct,
        "The result of a module's forward without gradients, or None; `module` is the __dict__ of an RNNBase or of a "
        "Cell.");
  py::class_<FrozenModule>(m, "Frozen", "A packed copy of a module's weights; see seqkernels.freeze.")
      .def(py::init([](std::string_view cell, bool is_cell, int64_t input_size, int64_t hidden_size, int64_t layers,
                       int64_t directions, bool batch_first, bool bfloat16,
                       const std::vector<FrozenModule::Address>& parameters) {
        CellKind kind;
        if (!read_kind(cell, kind)) throw std::invalid_argument("unknown cell");
        const Form form{kind, is_cell, {input_size, hidden_size, layers, directions}, batch_first};
        return std::make_unique<FrozenModule>(form, bfloat16, parameters);
      }))
      .def("unpack", &FrozenModule::unpack)
      .def("run", &FrozenModule::run, "The result of the module's forward, or None.");
}

}  // namespace seqkernels
