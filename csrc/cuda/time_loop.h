// Runs the time loop of one pass of a layer on the device, by the plan that is best there.
#pragma once
#include "../layer.h"
#include "runtime.h"

namespace seqkernels::cuda {

// All kinds of plans, as `candidates` has them for the device at hand, and whether that can start them.
std::vector<Candidate> candidates_on(const Device& device, const PassKernels& kernels, const PlanRequest& request);

class TimeLoop {
 public:
  // `is_forward`: which of the cell's passes.
  TimeLoop(const Device& device, const Layer& layer, bool is_forward);

  // `norms`: of a normalised cell.
  void run(Projected<ForwardProblem>& problem, Norms norms) const { run_steps(problem, norms, problem.steps); }
  void run(Projected<BackwardProblem>& problem, Norms norms) const { run_steps(problem, norms, problem.shape.seq_len); }

 private:
  template <class Problem>
  void run_steps(Problem& problem, Norms& norms, int64_t steps) const;
  template <class Problem>
  void run_persistent(Problem& problem) const;
  template <class Problem>
  void run_stepwise(Problem& problem, Norms& norms, int64_t steps) const;
  std::optional<Tensor> arranged(WeightKind kind) const;
  char* weight(int64_t direction, WeightKind kind) const;
  Tensor stage_weights(const StageKernels& stage) const;
  SharedLayout layout_of(const Partition& part) const {
    return kernels_.layout(part, static_cast<int>(layer_.output_size()));
  }
  int64_t units(bool of_h) const { return of_h ? layer_.output_size() : layer_.hidden_size(); }
  int64_t rows_published(int64_t step) const;

  const Device& device_;
  const Layer& layer_;
  const bool tf32_;  // whether float32 is multiplied so
  const PassKernels& kernels_;
  const bool is_forward_;
  const Plan plan_;
  // W_hh and W_hr of all directions as the plan reads them; null: as they are.
  const std::optional<Tensor> hidden_, projection_;
};

}  // namespace seqkernels::cuda
