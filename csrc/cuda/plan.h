// Which kernels run a pass, and why not others. Nothing here touches a GPU: a device is its limits, so plans for any
// device can be made, printed and tested anywhere.
#pragma once
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "../api.h"
#include "kernels.h"

namespace seqkernels::cuda {

struct DeviceLimits {
  int capability;  // 10 major + minor
  int multiprocessors;
  int64_t shared_bytes;  // of a block, at most
};

// The slowest and most general first; the persistent ones by what a group's blocks exchange through.
enum class PlanKind { kStepwise, kPersistentBlock, kPersistentCluster, kPersistentGrid, kCount };
SEQKERNELS_API const char* name(PlanKind kind);
PlanKind plan_kind(const std::string& name);  // throws, naming all

struct PlanRequest {
  int64_t steps;  // so many at least, as `plan_steps` has it
  int64_t batch, hidden, directions;
  int64_t outputs;  // units of h: as many as hidden ones, but with a projection
};
// The number of steps that plans are made for: a power of two, so that there are few. Of long sequences, forward may do no more at
// a time, for that many input gates have room.
inline int64_t plan_steps(int64_t seq_len) {
  int64_t steps = 1;
  while (2 * steps <= seq_len && steps < 128) steps *= 2;
  return steps;
}

struct Plan {
  PlanKind kind = PlanKind::kStepwise;
  Partition partition{};  // of a persistent plan; `ring` is still to be set
  int64_t shared_bytes = 0;
  int64_t groups_at_once = 0;  // of a launch, or more than there are; of a cluster's launch, all
  double cycles = 0;           // of one step, as the model has it

  int64_t groups(int64_t directions) const { return directions * partition.column_groups; }
  // None of a plan that cannot run, or is not persistent.
  int64_t launches(int64_t directions) const {
    return groups_at_once == 0 ? 0 : (groups(directions) + groups_at_once - 1) / groups_at_once;
  }
  // Of the largest launch.
  int64_t blocks(int64_t directions) const {
    return std::min(groups(directions), groups_at_once) / partition.teams * partition.members;
  }
};

// One kind of plan, at its best for this request, or why there is none.
struct Candidate {
  Plan plan;
  std::string obstacle;  // empty: it can run
};

// How many clusters of a launch run at once: fewer than multiprocessors would make, for clusters keep to parts of a device.
using ClusterRoom = std::function<int(const Partition&, int64_t shared_bytes)>;

// Every way to cut a persistent kind of plan that the device has room for.
std::vector<Plan> cuts_of(PlanKind kind, const PassKernels& kernels, const DeviceLimits& device,
                          const PlanRequest& request, const ClusterRoom& room = {});

// Candidates of all kinds, in the order of PlanKind. Without `room`, as many clusters are taken to run at once as multiprocessors make.
std::vector<Candidate> candidates(const PassKernels& kernels, const DeviceLimits& device, const PlanRequest& request,
                                  const ClusterRoom& room = {});

// The kernel of a persistent plan.
const void* kernel_of(const PassKernels& kernels, const Plan& plan);

// Asked before each float32 layer: whether torch lets recurrent networks use TF32. Set by Python, where the setting is.
SEQKERNELS_API extern bool (*tf32_allowed)();

// The fastest of the candidates that can run.
const Plan& fastest(const std::vector<Candidate>& candidates);

}  // namespace seqkernels::cuda
