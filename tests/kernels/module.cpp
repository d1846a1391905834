// The Python module tests.kernels._kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

// plan-inl.h in a namespace of its own: what it is given says which ISA it plans for.
#define SEQKERNELS_ISA planned
#include "cpu/plan-inl.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

// For seqkernels._C.add_cpu_isa.
std::vector<py::capsule> bf16_kernels() {
  std::vector<py::capsule> list;
  for (const Bf16Kernels* const kernels : {&emulated_avx512bf16_kernels(), &emulated_amx_kernels()})
    list.emplace_back(kernels, "seqkernels.Bf16Kernels");
  return list;
}

const std::vector<const MathKernels*>& all_math() {
  static const std::vector<const MathKernels*> all{
      &baseline_math(),
#if defined(SEQKERNELS_HAS_AVX2)
      &avx2_math(),
#endif
#if defined(SEQKERNELS_HAS_AVX512)
      &avx512_math(),
#endif
  };
  return all;
}

MathFunction function_named(const std::string& name) {
  if (name == "exp") return MathFunction::kExp;
  if (name == "sigmoid") return MathFunction::kSigmoid;
  if (name == "tanh") return MathFunction::kTanh;
  throw std::runtime_error("function must be 'exp', 'sigmoid' or 'tanh', got '" + name + "'");
}

// y = function(x), both contiguous, of the same size, float32 or float64.
void math(const std::string& isa, const std::string& function, const py::buffer& x, const py::buffer& y) {
  const MathFunction wanted = function_named(function);
  const py::buffer_info in = x.request(), out = y.request(true);
  if (in.format != out.format || in.size != out.size) throw std::runtime_error("x and y must be alike");
  for (const MathKernels* const kernels : all_math()) {
    if (isa != kernels->isa) continue;
    if (in.item_type_is_equivalent_to<float>())
      return kernels->float32(wanted, static_cast<const float*>(in.ptr), static_cast<float*>(out.ptr), in.size);
    if (in.item_type_is_equivalent_to<double>())
      return kernels->float64(wanted, static_cast<const double*>(in.ptr), static_cast<double*>(out.ptr), in.size);
    throw std::runtime_error("x must be float32 or float64");
  }
  throw std::runtime_error("no functions of " + isa);
}

// Of every split of a step between `members`: its parts of the batch and of the units, and its cycles; the chosen one first.
std::vector<std::tuple<int, int, double>> splits(int members, int64_t batch, int64_t panels, int vectors,
                                                 int64_t k_packs, int gates, int vector_bytes, int multiply_adds,
                                                 int tile_rows) {
  const planned::ProductLimits limits[]{{vector_bytes, multiply_adds, 0, tile_rows, tile_rows}};
  const planned::SplitRequest requests[]{{members, batch, panels, vectors, k_packs, gates}};
  std::vector<std::tuple<int, int, double>> found;
  const auto add = [&](planned::Split split) {
    found.emplace_back(split.batch_parts, split.unit_parts, planned::step_cost(limits[0], requests[0], split).cycles());
  };
  add(planned::fastest_split(limits, requests));
  for (int units = 1; units <= members; ++units)
    for (int batch_parts = 1; batch_parts * units <= members; ++batch_parts) add({batch_parts, units});
  return found;
}

}  // namespace
}  // namespace seqkernels

PYBIND11_MODULE(_kernels, m) {
  m.def("bf16_kernels", &seqkernels::bf16_kernels);
  m.def("math", &seqkernels::math);
  m.def("splits", &seqkernels::splits);
}
