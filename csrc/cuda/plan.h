// Which kernels run a pass, and why not others. Nothing here touches a GPU: a device is its limits, so plans for any
// device can be made, printed and tested anywhere.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "kernels.h"

namespace seqkernels::cuda {

struct DeviceLimits {
  int capability;  // 10 major + minor
  int multiprocessors;
  int64_t shared_bytes;  // of a block, at most
};

// The slowest and most general first; the persistent ones by what a group's blocks exchange through.
enum class PlanKind { kStepwise, kPersistentBlock, kPersistentCluster, kPersistentGrid, kCount };
const char* name(PlanKind kind);
PlanKind plan_kind(const std::string& name);  // throws, naming all

struct PlanRequest {
  int64_t seq_len, batch, hidden, directions;
  int64_t outputs;  // units of h: as many as hidden ones, but with a projection
};

struct Plan {
  PlanKind kind = PlanKind::kStepwise;
  Partition partition{};  // of a persistent plan; `ring` is still to be set
  int64_t shared_bytes = 0;
  double cycles = 0;  // of one step, as the model has it
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
extern bool (*tf32_allowed)();

// The fastest of the candidates that can run.
const Plan& fastest(const std::vector<Candidate>& candidates);

}  // namespace seqkernels::cuda
