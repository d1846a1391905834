#include "time_loop.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "blas.h"
#include "matrix.h"

namespace seqkernels::cuda {
namespace {

Device::LaunchShape launch_shape(const Plan& plan, int64_t directions) {
  const Partition& part = plan.partition;
  return {static_cast<int>(plan.blocks(directions)), kThreads * part.teams, plan.shared_bytes,
          plan.kind == PlanKind::kPersistentCluster ? part.members : 1, plan.kind == PlanKind::kPersistentGrid};
}

Plan choose(const Device& device, const PassKernels& kernels, const PlanRequest& request) {
  const std::vector<Candidate> all = candidates_on(device, kernels, request);
  if (const char* const wanted = std::getenv("SEQKERNELS_CUDA_PLAN"); wanted && *wanted) {
    // Python hands layers to cuDNN; what comes here it has not taken.
    if (std::string(wanted) == "cudnn")
      fail("SEQKERNELS_CUDA_PLAN asks for cudnn, which cannot run this: it gets inference of unpacked layers alone");
    const Candidate& forced = all[size_t(plan_kind(wanted))];
    if (!forced.obstacle.empty())
      fail("SEQKERNELS_CUDA_PLAN asks for ", wanted, ", which cannot run this: ", forced.obstacle);
    return forced.plan;
  }
  return fastest(all);
}

// Plans are asked for at every call, for a few sizes.
Plan remembered(const Device& device, const PassKernels& kernels, const PlanRequest& request) {
  const char* const wanted = std::getenv("SEQKERNELS_CUDA_PLAN");
  const auto key = std::make_tuple(&kernels, &device.limits(), request.steps, request.batch, request.hidden,
                                   request.outputs, request.directions, std::string(wanted ? wanted : ""));
  static std::mutex mutex;
  static std::map<decltype(key), Plan> plans;
  constexpr size_t kMost = 4096;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = plans.find(key); found != plans.end()) return found->second;
  }
  const Plan plan = choose(device, kernels, request);
  const std::lock_guard<std::mutex> lock(mutex);
  if (plans.size() >= kMost) plans.clear();
  return plans.emplace(key, plan).first->second;
}

bool multiplies_as_tf32(const Layer& layer) {
  return layer.dtype() == DType::kFloat32 && tf32_allowed && tf32_allowed();
}

// Whether anything happens to states between steps, or is to be told of c.
bool has_transition(const LayerSpec& spec) {
  return spec.lengths || spec.reset_mask || spec.recurrent_mask || spec.zoneout_h || spec.zoneout_c ||
         spec.zoneout_h_rate > 0 || spec.zoneout_c_rate > 0 || spec.return_cell_states;
}

const PassKernels& kernels_for(const Layer& layer, bool tf32, bool is_forward) {
  const CellKernels& kernels = kernels_of(layer.cell(), layer.dtype(), tf32, has_transition(layer.spec()));
  return is_forward ? kernels.forward : kernels.backward;
}

}  // namespace

std::vector<Candidate> candidates_on(const Device& device, const PassKernels& kernels, const PlanRequest& request) {
  const ClusterRoom room = [&](const Partition& part, int64_t shared_bytes) {
    Plan plan{PlanKind::kPersistentCluster, part, shared_bytes};
    plan.groups_at_once = plan.groups(request.directions);
    return device.clusters_at_once(kernels.persistent(part), launch_shape(plan, request.directions));
  };
  std::vector<Candidate> all = candidates(kernels, device.limits(), request, room);
  for (Candidate& candidate : all)
    if (candidate.plan.kind != PlanKind::kStepwise && candidate.obstacle.empty() &&
        !device.can_launch(kernel_of(kernels, candidate.plan), launch_shape(candidate.plan, request.directions)))
      candidate.obstacle = "its blocks would not all run at once on this device";
  return all;
}

TimeLoop::TimeLoop(const Device& device, const Layer& layer, bool is_forward)
    : device_(device),
      layer_(layer),
      tf32_(multiplies_as_tf32(layer)),
      kernels_(kernels_for(layer, tf32_, is_forward)),
      is_forward_(is_forward),
      plan_(remembered(
          device, kernels_,
          {plan_steps(layer.seq_len()), layer.batch(), layer.hidden_size(), layer.directions(), layer.output_size()})),
      hidden_(arranged(kHiddenWeight)),
      projection_(arranged(kProjection)) {}

template <class Problem>
void TimeLoop::run_steps(Problem& problem, Norms& norms, int64_t steps) const {
  plan_.kind == PlanKind::kStepwise ? run_stepwise(problem, norms, steps) : run_persistent(problem);
}

template <class Problem>
void TimeLoop::run_persistent(Problem& problem) const {
  Partition part = plan_.partition;
  std::optional<Tensor> ring;
  if (plan_.kind == PlanKind::kPersistentGrid) {
    part.ring = &part;  // anything: the ring is not in shared memory
    const int64_t bytes = 4 * layout_of(part).ring_words() * part.column_groups * layer_.directions();
    ring = new_tensor({bytes}, ScalarType::Byte, layer_.x());
    part.ring = data(*ring);
    device_.fill(*ring, 0xFF);
  }
  for (int64_t d = 0; d < layer_.directions(); ++d) {
    problem.weights[d] = weight(d, kHiddenWeight);
    problem.projection.weights[d] = weight(d, kProjection);
  }
  SharedLayout layout = layout_of(part);
  void* arguments[] = {&problem, &part, &layout};
  Device::LaunchShape shape = launch_shape(plan_, layer_.directions());
  const int64_t groups = plan_.groups(layer_.directions());
  for (int64_t first = 0; first < groups; first += plan_.groups_at_once) {
    part.first_group = static_cast<int>(first);
    shape.blocks = static_cast<int>(std::min(groups - first, plan_.groups_at_once) / part.teams * part.members);
    device_.launch(kernels_.persistent(part), shape, arguments);
  }
}

// Stepwise products read [D, deep, wide]; persistent kernels read rows of W_hh [G H, P] and W_hr [P, H] going forward, and of
// their transposes, [D, P, G H] and [D, H, P], going back.
std::optional<Tensor> TimeLoop::arranged(WeightKind kind) const {
  if (!layer_.has_weight(kind)) return std::nullopt;
  if (plan_.kind == PlanKind::kStepwise) {
    const Tensor stacked = stacked_weights(layer_, kind);
    return is_forward_ ? transposed(stacked) : stacked;
  }
  if (is_forward_) return std::nullopt;
  const Tensor& first = layer_.weight_tensor(0, kind);
  const int64_t rows = first.size(0), columns = first.size(1);
  const Tensor weights = new_tensor({layer_.directions(), columns, rows}, layer_.scalar_type(), layer_.x());
  for (int64_t d = 0; d < layer_.directions(); ++d) {
    Tensor part = window(weights, {columns, rows}, d * columns * rows);
    torch::stable::copy_(part, transposed(layer_.weight_tensor(d, kind)));
  }
  return weights;
}

// Where a persistent kernel reads a weight of a direction; null for one that is not there.
char* TimeLoop::weight(int64_t direction, WeightKind kind) const {
  const std::optional<Tensor>& arranged = kind == kProjection ? projection_ : hidden_;
  if (!arranged) return layer_.weight(direction, kind);
  return data(*arranged) + direction * layer_.weight_tensor(0, kind).numel() * layer_.x().element_size();
}

// What the product of a stage reads, [D, deep, wide]: its rows of W_hh alone, or W_hr.
Tensor TimeLoop::stage_weights(const StageKernels& stage) const {
  const WeightKind kind = stage.is_projection ? kProjection : kHiddenWeight;
  const Tensor& first = layer_.weight_tensor(0, kind);
  const int64_t matrix = first.numel(), columns = first.size(1);
  const int64_t before = stage.is_projection ? 0 : stage.first_gate * layer_.hidden_size() * columns;
  const Sizes sizes{layer_.directions(), stage.published * units(stage.reads_outputs),
                    stage.tiles * units(stage.makes_outputs)};
  return window(stage.is_projection ? *projection_ : *hidden_, sizes,
                is_forward_ ? Sizes{matrix, 1, columns} : Sizes{matrix, columns, 1}, before);
}

// Rows, of any direction, that have this step of the pass.
int64_t TimeLoop::rows_published(int64_t step) const {
  int64_t rows = 0;
  for (int64_t d = 0; d < layer_.directions(); ++d) {
    const bool from_the_end = (d == 1 || layer_.spec().reverse) == is_forward_;
    const int64_t time = from_the_end ? layer_.seq_len() - 1 - step : step;
    rows = std::max(rows, layer_.offsets()[size_t(time) + 1] - layer_.offsets()[size_t(time)]);
  }
  return rows;
}

template <class Problem>
void TimeLoop::run_stepwise(Problem& problem, Norms& norms, int64_t steps) const {
  const int64_t directions = layer_.directions(), batch = layer_.batch();
  const int64_t most_units = std::max(units(true), units(false));
  const int64_t most_wide = kernels_.most(&StageKernels::tiles) * most_units;
  const int64_t most_deep = kernels_.most(&StageKernels::published) * most_units;
  const ScalarType real = layer_.compute_type();
  const Sizes states{directions, batch, most_units};
  const Tensor product = new_tensor({directions, batch, most_wide}, real, layer_.x());
  const Tensor published = new_tensor({directions, batch, most_deep}, layer_.scalar_type(), layer_.x());
  const Tensor h = new_tensor(states, real, layer_.x()), c = new_tensor(states, real, layer_.x());
  const Tensor carried =
      new_tensor({std::max(layer_.info().carried, 2), directions, batch, most_units}, real, layer_.x());
  device_.fill(product, 0);
  StepBuffers buffers{data(product), data(published), data(h), data(c), data(carried)};
  std::vector<Tensor> weights;
  for (int s = 0; s < kernels_.stages; ++s) weights.push_back(stage_weights(kernels_.stage[s]));

  const int64_t sequences = directions * batch;
  const int64_t blocks =
      kernels_.is_normalized() ? sequences : (sequences * most_units + kStepThreads - 1) / kStepThreads;
  const Device::LaunchShape shape{static_cast<int>(std::min<int64_t>(blocks, 1 << 20)), kStepThreads,
                                  kernels_.is_normalized() ? kSumsBytes : 0};
  int64_t first_step = 0;
  if constexpr (std::is_base_of_v<ForwardProblem, Problem>) first_step = problem.first_step;
  const std::unique_ptr<Blas> blas = Blas::borrow(device_, layer_.dtype(), tf32_, layer_.x());
  for (int64_t iteration = 0; iteration <= steps * kernels_.stages; ++iteration) {
    const int s = kernels_.stage_of(iteration);
    const StageKernels& stage = kernels_.stage[s];
    if (iteration > 0) {
      // Those that had a step in the iteration before this one, and so have something for the product.
      const int64_t rows = rows_published(first_step + (iteration - 1) / kernels_.stages);
      const int64_t wide = stage.tiles * units(stage.makes_outputs), room = stage.tiles * most_units;
      const int64_t deep = stage.published * units(stage.reads_outputs);
      const Tensor& b = weights[size_t(s)];
      if (blas)
        blas->multiply(directions, rows, wide, deep, {data(published), batch * deep, deep, 1},
                       {data(b), b.stride(0), b.stride(1), b.stride(2)}, {data(product), batch * room, room, 1});
      else
        multiply(window(published, {directions, rows, deep}, {batch * deep, deep, 1}), b,
                 window(product, {directions, rows, wide}, {batch * room, room, 1}));
    }
    void* arguments[] = {&problem, &buffers, &iteration, &norms};  // kernels of other cells take three
    device_.launch(stage.stepwise, shape, arguments);
  }
}

template void TimeLoop::run_steps(Projected<ForwardProblem>&, Norms&, int64_t) const;
template void TimeLoop::run_steps(Projected<BackwardProblem>&, Norms&, int64_t) const;

}  // namespace seqkernels::cuda
