// All op schemas and the Python module seqkernels._C: the one place to look an op up.
//
// An op runs one layer in all its directions (D = h0.size(0)). Shapes: x [T, B, I], or packed [R, I] with batch_sizes
// [T]; h0, c0 [D, B, H]; weights per direction w_ih [G H, I], w_hh [G H, H] and, with biases, b_ih, b_hh [G H];
// output [T, B, D H] or [R, D H]. `gates` and `cells` are what backward needs, in the layout of the device.
// Backward returns an empty tensor for each gradient that needs_grad (x, the states, each weight) does not ask for.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <variant>

#include "checks.h"
#include "cpu/dispatch.h"
#include "direct.h"
#if defined(SEQKERNELS_CUDA_TARGETS)
#include "cuda/time_loop.h"
#endif

STABLE_TORCH_LIBRARY(seqkernels, m) {
  m.def(
      "lstm(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? batch_sizes=None, bool "
      "save_for_backward=True)"
      " -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)");
  m.def(
      "_lstm_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor x, Tensor h0, Tensor "
      "c0,"
      " Tensor[] weights, Tensor? batch_sizes, Tensor output, Tensor gates, Tensor cells, bool[] needs_grad)"
      " -> (Tensor grad_x, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)");
  m.def(
      "gru(Tensor x, Tensor h0, Tensor[] weights, Tensor? batch_sizes=None, bool save_for_backward=True)"
      " -> (Tensor output, Tensor h_n, Tensor gates)");
  m.def(
      "_gru_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor x, Tensor h0, Tensor[] weights,"
      " Tensor? batch_sizes, Tensor output, Tensor gates, bool[] needs_grad)"
      " -> (Tensor grad_x, Tensor grad_h0, Tensor[] grad_weights)");
  m.def(
      "rnn(Tensor x, Tensor h0, Tensor[] weights, str nonlinearity, Tensor? batch_sizes=None)"
      " -> (Tensor output, Tensor h_n)");
  m.def(
      "_rnn_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor x, Tensor h0, Tensor[] weights, str "
      "nonlinearity,"
      " Tensor? batch_sizes, Tensor output, bool[] needs_grad)"
      " -> (Tensor grad_x, Tensor grad_h0, Tensor[] grad_weights)");
  // exp, sigmoid or tanh as the CPU kernels compute them, for float32 and float64.
  m.def("_math(Tensor x, str function) -> Tensor");
}

namespace seqkernels {
namespace {

using torch::stable::Tensor;

Tensor math_cpu(Tensor x, std::string function) {
  using torch::headeronly::ScalarType;
  const bool is_double = x.scalar_type() == ScalarType::Double;
  if (!is_double && x.scalar_type() != ScalarType::Float) fail("x must be float32 or float64");
  if (function != "exp" && function != "sigmoid" && function != "tanh")
    fail("function must be 'exp', 'sigmoid' or 'tanh', got '", function, "'");
  const Tensor in = torch::stable::contiguous(x);
  Tensor out = torch::stable::empty_like(in);
  cpu_kernels().math(function == "exp"    ? MathFunction::kExp
                     : function == "tanh" ? MathFunction::kTanh
                                          : MathFunction::kSigmoid,
                     is_double ? DType::kFloat64 : DType::kFloat32, in.data_ptr(), out.data_ptr(), in.numel());
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(seqkernels, CPU, m) { m.impl("_math", TORCH_BOX(&math_cpu)); }

pybind11::dict build_config() {
  pybind11::dict config;
  config["version"] = SEQKERNELS_VERSION;
  config["compiler"] = __VERSION__;
  config["cpu_targets"] = compiled_cpu_isas();
#if defined(SEQKERNELS_CUDA_TARGETS)
  config["cuda_targets"] = SEQKERNELS_CUDA_TARGETS;
#else
  config["cuda_targets"] = "";
#endif
  config["torch_target"] = "2.10";
  return config;
}

#if defined(SEQKERNELS_CUDA_TARGETS)

// Asked through Python, where torch keeps the setting.
pybind11::object tf32_query;

bool ask_tf32() {
  const pybind11::gil_scoped_acquire gil;
  return tf32_query && tf32_query().cast<bool>();
}

void set_tf32_query(pybind11::object query) {
  tf32_query = std::move(query);
  cuda::tf32_allowed = tf32_query.is_none() ? nullptr : &ask_tf32;
}

template <size_t kCount>
int index_of(const std::string& name, const char* what, const char* const (&names)[kCount]) {
  for (size_t i = 0; i < kCount; ++i)
    if (name == names[i]) return static_cast<int>(i);
  fail("unknown ", what, " '", name, "'");
}

// For each kind of plan its name, cycles of a step, how it is cut, and what stands against it: on a device that is there, by its
// index, or on one with such limits (capability, multiprocessors, shared bytes of a block).
std::vector<pybind11::dict> cuda_plans(const std::string& cell, const std::string& dtype, bool backward, int64_t batch,
                                       int64_t hidden, int64_t directions, bool tf32_allowed,
                                       const std::variant<int, std::tuple<int, int, int64_t>>& device) {
  const auto kind = CellKind(index_of(cell, "cell", {"lstm", "gru", "tanh", "relu"}));
  const auto type = DType(index_of(dtype, "dtype", {"float32", "float64", "bfloat16", "float16"}));
  const cuda::CellKernels& kernels = cuda::kernels_of(kind, type, tf32_allowed);
  const cuda::PassKernels& pass = backward ? kernels.backward : kernels.forward;
  const cuda::PlanRequest request{1, batch, hidden, directions};
  std::vector<cuda::Candidate> candidates;
  if (const int* const index = std::get_if<int>(&device)) {
    candidates = cuda::candidates_on(cuda::Device(*index), pass, request);
  } else {
    const auto [capability, multiprocessors, shared_bytes] = std::get<1>(device);
    candidates = cuda::candidates(pass, {capability, multiprocessors, shared_bytes}, request);
  }
  std::vector<pybind11::dict> plans;
  for (const cuda::Candidate& candidate : candidates) {
    const cuda::Plan& plan = candidate.plan;
    pybind11::dict described;
    described["name"] = cuda::name(plan.kind);
    described["obstacle"] = candidate.obstacle;
    described["cycles"] = plan.cycles;
    described["shared_bytes"] = plan.shared_bytes;
    described["members"] = plan.partition.members;
    described["unit_groups"] = plan.partition.unit_groups;
    described["columns"] = plan.partition.columns;
    described["column_groups"] = plan.partition.column_groups;
    described["column_tiles"] = plan.partition.column_tiles;
    plans.push_back(std::move(described));
  }
  return plans;
}

#endif

}  // namespace
}  // namespace seqkernels

PYBIND11_MODULE(_C, m) {
  using namespace seqkernels;
  m.doc() = "Build configuration and CPU dispatch of seqkernels; the ops are in torch.ops.seqkernels.";
  m.def("build_config", &build_config, "What this binary was built with.");
  m.def("cpu_isa", [] { return std::string(cpu_kernels().isa); }, "The ISA whose kernels run.");
  m.def("cpu_isas", &available_cpu_isas, "Every ISA this machine can run, best last.");
  m.def("emulated_cpu_isas", &emulated_cpu_isas, "avx512bf16 and amx on any CPU, for tests.");
  m.def("set_cpu_isa", &set_cpu_isa, pybind11::arg("isa"), "Run the kernels of this ISA from now on.");
  define_direct(m);
#if defined(SEQKERNELS_CUDA_TARGETS)
  namespace py = pybind11;
  m.def("set_tf32_query", &set_tf32_query, py::arg("query"), "Called to learn whether float32 layers may use TF32.");
  // The interpreter is gone when static objects are destroyed.
  py::module_::import("atexit").attr("register")(py::cpp_function([] { set_tf32_query(py::none()), tf32_query = {}; }));
  m.def("cuda_plans", &cuda_plans, py::arg("cell"), py::arg("dtype"), py::arg("backward"), py::arg("batch"),
        py::arg("hidden"), py::arg("directions"), py::arg("tf32_allowed"), py::arg("device"),
        "Every kind of plan for one layer, on the device with this index or on one with these limits.");
#endif
}
