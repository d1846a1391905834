// The op that draws flags, as zoneout wants them, of a seed from torch's generator. torch's own `bernoulli_` takes 7 ns for one.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstring>

#include "../checks.h"
#include "dispatch.h"
#include "run.h"

namespace seqkernels {
namespace {

constexpr double kWorkOfFlag = 4;  // multiply-adds in the time of one

void random_flags_cpu(Tensor flags, const Tensor& seed, double p) {
  using torch::headeronly::ScalarType;
  check_dtype(flags, ScalarType::Bool, "flags");
  check_memory(flags, "flags");
  if (!flags.is_contiguous()) fail("flags must be contiguous");
  check_dtype(seed, ScalarType::Long, "seed");
  check_memory(seed, "seed");
  if (seed.numel() != 1) fail("seed must have one element, got ", seed.numel());
  if (!(p >= 0 && p <= 1)) fail("p must be a probability, from 0 to 1, got ", p);
  const int64_t count = flags.numel(), values = std::lround(p * 65536);  // of sixteen bits
  auto* const first = static_cast<uint8_t*>(flags.mutable_data_ptr());
  if (count == 0) return;
  if (values == 0) return void(std::memset(first, 0, size_t(count)));
  const RandomFlagsArguments arguments{uint64_t(*static_cast<const int64_t*>(seed.const_data_ptr())),
                                       uint16_t(values - 1), count, first};
  const auto kernel = cpu_kernels().random_flags;
  run_team(team_threads(kWorkOfFlag * double(count)), 0, [&](Team*, Member member) { kernel(arguments, member); });
}

void boxed(StableIValue* stack, uint64_t, uint64_t) {
  using torch::stable::detail::to;
  const auto flags = to<Tensor>(stack[0]), seed = to<Tensor>(stack[1]);
  random_flags_cpu(flags, seed, to<double>(stack[2]));
}

STABLE_TORCH_LIBRARY_FRAGMENT(seqkernels, m) { m.def("random_flags(Tensor(a!) flags, Tensor seed, float p) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(seqkernels, CPU, m) { m.impl("random_flags", &boxed); }

}  // namespace
}  // namespace seqkernels
