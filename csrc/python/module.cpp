// The Python module seqkernels._C: what was built, which CPU kernels run, and calls around torch's dispatcher. The ops are in
// torch.ops.seqkernels (layer_ops.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/memory.h"
#include "../cpu/team.h"
#include "cuda_plans.h"
#include "fastpath.h"

namespace seqkernels {
namespace {

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

std::string add_isa(const pybind11::capsule& capsule) {
  const auto* const kernels =
      static_cast<const Bf16Kernels*>(PyCapsule_GetPointer(capsule.ptr(), "seqkernels.Bf16Kernels"));
  if (!kernels) throw pybind11::error_already_set();
  add_cpu_isa(*kernels);
  return kernels->isa;
}

std::vector<pybind11::dict> list_cells() {
  std::vector<pybind11::dict> list;
  for (const CellInfo& cell : kCellInfos.of) {
    pybind11::dict described;
    described["name"] = cell.name;
    described["gates"] = cell.gates;
    described["saved"] = cell.saved;
    described["has_cell_state"] = cell.has_cell_state;
    described["stages"] = cell.stages;
    described["is_projected"] = cell.is_projected();
    described["norms"] = cell.norms;
    pybind11::list extra;
    for (int kind = kProjection; kind < kWeightKinds; ++kind)
      if (cell.has_weight[kind]) extra.append(kWeightNames[kind]);
    described["extra_weights"] = pybind11::tuple(extra);
    list.push_back(std::move(described));
  }
  return list;
}

}  // namespace
}  // namespace seqkernels

PYBIND11_MODULE(_C, m) {
  using namespace seqkernels;
  m.doc() = "Build configuration and CPU dispatch of seqkernels; the ops are in torch.ops.seqkernels.";
  m.def("build_config", &build_config, "What this binary was built with.");
  m.def("cells", &list_cells, "Every cell of the registry, in its order.");
  m.attr("unit_padding") = kUnitPadding;
  m.def("cpu_isa", [] { return std::string(cpu_kernels().isa); }, "The ISA whose kernels run.");
  m.def("cpu_isas", &available_cpu_isas, "Every ISA this machine can run, best last.");
  m.def("add_cpu_isa", &add_isa, pybind11::arg("kernels"), "Adds kernels that a test has; returns their name.");
  m.def("fill_scratch", &fill_scratch, pybind11::arg("fill"),
        "Whether the CPU kernels' scratch memory is full of NaN at the start of every call, for tests.");
  m.def("set_cpu_isa", &set_cpu_isa, pybind11::arg("isa"), "Run the kernels of this ISA from now on.");
  m.def("process_was_forked", &process_was_forked, "Whether threads are started anew for every long call.");
  define_fastpath(m);
  define_frozen(m);
#if defined(SEQKERNELS_CUDA_TARGETS)
  define_cuda_plans(m);
#endif
}
