// What Python asks of the CUDA kernels, and what they ask of Python. Only in a build that has them.
#if defined(SEQKERNELS_CUDA_TARGETS)
#include "cuda_plans.h"

#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "../cuda/explain.h"
#include "call.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

// Whether float32 layers may use TF32: asked through Python, where torch keeps the setting.
py::object tf32_query;

bool ask_tf32() {
  const py::gil_scoped_acquire gil;
  return tf32_query && tf32_query().cast<bool>();
}

void set_tf32_query(py::object query) {
  tf32_query = std::move(query);
  cuda::tf32_allowed = tf32_query.is_none() ? nullptr : &ask_tf32;
}

DType dtype_named(const std::string& name) {
  constexpr std::array<const char*, int(DType::kCount)> names{"float32", "float64", "bfloat16", "float16"};
  for (size_t i = 0; i < names.size(); ++i)
    if (name == names[i]) return DType(i);
  throw std::runtime_error("unknown dtype '" + name + "'");
}

// For each kind of plan its name, cycles of a step, how it is cut, and what stands against it: on a device that is there, by its
// index, or on one with such limits (capability, multiprocessors, shared bytes of a block).
std::vector<py::dict> cuda_plans(const std::string& cell, const std::string& dtype, bool backward, int64_t batch,
                                 int64_t hidden, int64_t directions, bool tf32_allowed,
                                 const std::variant<int, std::tuple<int, int, int64_t>>& device, int64_t outputs,
                                 int64_t seq_len, bool has_transition) {
  CellKind kind;
  if (!find_cell(cell, kind)) throw std::runtime_error("unknown cell '" + cell + "'");
  const cuda::LayerPass pass{kind, dtype_named(dtype), tf32_allowed, has_transition, backward};
  const cuda::PlanRequest request{cuda::plan_steps(seq_len), batch, hidden, directions, outputs > 0 ? outputs : hidden};
  std::variant<int, cuda::DeviceLimits> on = 0;
  if (const int* const index = std::get_if<int>(&device)) {
    on = *index;
  } else {
    const auto [capability, multiprocessors, shared_bytes] = std::get<1>(device);
    on = cuda::DeviceLimits{capability, multiprocessors, shared_bytes};
  }
  std::vector<py::dict> plans;
  for (const cuda::Candidate& candidate : cuda::candidates_for(pass, request, on)) {
    const cuda::Plan& plan = candidate.plan;
    py::dict described;
    described["name"] = cuda::name(plan.kind);
    described["obstacle"] = candidate.obstacle;
    described["cycles"] = plan.cycles;
    described["shared_bytes"] = plan.shared_bytes;
    described["launches"] = plan.launches(directions);
    described["teams"] = plan.partition.teams;
    described["members"] = plan.partition.members;
    described["unit_groups"] = plan.partition.unit_groups;
    described["columns"] = plan.partition.columns;
    described["column_groups"] = plan.partition.column_groups;
    described["column_tiles"] = plan.partition.column_tiles;
    plans.push_back(std::move(described));
  }
  return plans;
}

}  // namespace

void define_cuda_plans(py::module_& m) {
  m.def("set_tf32_query", &set_tf32_query, py::arg("query"), "Called to learn whether float32 layers may use TF32.");
  // The interpreter is gone when static objects are destroyed.
  py::module_::import("atexit").attr("register")(py::cpp_function([] { set_tf32_query(py::none()), tf32_query = {}; }));
  m.def("cuda_plans", &cuda_plans, py::arg("cell"), py::arg("dtype"), py::arg("backward"), py::arg("batch"),
        py::arg("hidden"), py::arg("directions"), py::arg("tf32_allowed"), py::arg("device"), py::arg("outputs") = 0,
        py::arg("seq_len") = 256, py::arg("has_transition") = false,
        "Every kind of plan for one layer, on the device with this index or on one with these limits.");
}

}  // namespace seqkernels

#endif
