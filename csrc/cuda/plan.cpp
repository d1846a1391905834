#include "plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

namespace seqkernels::cuda {
namespace {

constexpr std::array<const char*, int(PlanKind::kCount)> kNames{"stepwise", "persistent_block", "persistent_cluster",
                                                                "persistent_grid"};

// The tables of all cells, in the order of the registry.
using KernelsOf = const CellKernels& (*)(DType dtype, bool tf32);
template <class... Cells>
std::array<KernelsOf, sizeof...(Cells)> tables_of(cells::CellList<Cells...>) {
  return {&kernels_of<Cells>...};
}

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// What a step costs, in cycles of an H100's multiprocessor at 1.755 GHz: fitted to 2,573 cuts that were timed on one
// (benchmarks/results/*-sweep.csv, python -m benchmarks.calibrate). Half of them are predicted within 7 %, and what the model
// chooses takes 1 % longer on average than the best cut. kAlone was not among them; of float32 without tensor cores, products
// are counted.
struct Costs {
  // A step of one quarter a warp: of a block by itself, with an exchange through the shared memory of a cluster, through L2.
  static constexpr double kAlone = 1610, kNear = 1725, kFar = 2645;
  static constexpr double kBackward = 670;  // more inputs and more words to publish
  // Where a warp has several quarters or there are several passes over the columns.
  static constexpr double kSeveral = 410, kQuarter = 865, kPass = 1850;
  static constexpr double kMma = 5.7;             // of one warp-wide MMA, all of a scheduler's warps together
  static constexpr double kWeights = 2.8 / 128;   // of a byte of weights that lies in shared memory
  static constexpr double kRound = 460;           // of a round of loads that waits for the one before to be used
  static constexpr double kPartials = 0.5 / 128;  // of a byte of partial sums
  static constexpr double kRead = 0.3 / 128;      // of a byte of a ring slot in shared memory
  static constexpr double kFfmas = 64;            // of a scheduler for the FFMAs of a tile, a column tile and a chunk
  static constexpr double kStaging = 45;          // what else it does for a chunk then
  static constexpr double kReduction = 16;        // adding up the lanes' sums of a tile and a column tile, in a warp
  // A product and a launch of the stepwise plan: the host takes longer than the GPU.
  static constexpr double kLaunches = 24000;
  // Multiply-adds a cycle and multiprocessor of a product of few rows: of 16 bits, of TF32, without tensor cores.
  static constexpr double kProduct16 = 500, kProduct32 = 250, kFfmaProduct = 80;
  // Multiprocessors that clusters cannot have: those left over in each part of a device.
  static constexpr int kOutsideOfClusters = 12;
};

// The product of a stage, of all warps on a multiprocessor.
double product_cycles(const PassKernels& kernels, const StageKernels& stage, const Partition& part,
                      double chunks_per_warp) {
  const double tiles = double(part.columns) / kTileColumns, passes = std::ceil(tiles / part.column_tiles);
  const double resident = std::min(chunks_per_warp, double(stage.resident_chunks));
  const double weights = (chunks_per_warp - resident) * stage.tiles * 1024 * kWarps * passes;  // bytes
  const double rounds = (std::ceil(chunks_per_warp * part.column_tiles / stage.chunks_ahead) - 1) * passes;
  const double mmas = 2 * chunks_per_warp * stage.tiles * tiles * kWarps / 4;  // of a scheduler
  const double ffma = chunks_per_warp * tiles * (Costs::kFfmas * stage.tiles + Costs::kStaging) / 4;
  const double product =
      kernels.on_tensor_cores ? Costs::kMma * mmas : kWarps * (ffma + Costs::kReduction * stage.tiles * tiles);
  return product + Costs::kWeights * weights + Costs::kRound * std::max(rounds, 0.0);
}

// A stage of a step: an exchange, its product and its pointwise part.
double stage_cycles(const PassKernels& kernels, const StageKernels& stage, const Partition& part,
                    const SharedLayout& layout, bool in_grid) {
  const int units = stage.reads_outputs ? part.members * layout.outputs : part.units();
  const int64_t chunks = int64_t{stage.published} * units / kernels.chunk;
  const int64_t tiles = part.columns / kTileColumns, passes = ceil_div(tiles, part.column_tiles);
  double cycles = in_grid ? Costs::kFar : part.members > 1 ? Costs::kNear : Costs::kAlone;
  if (kernels.is_backward) cycles += Costs::kBackward;
  if (!has_one_quarter(part)) {
    double quarters = 0;  // of a warp
    for (int64_t first = 0; first < tiles; first += part.column_tiles)
      quarters +=
          double(ceil_div(part.unit_groups * std::min<int64_t>(part.column_tiles, tiles - first) * kQuarters, kWarps));
    cycles += Costs::kSeveral + Costs::kQuarter * quarters + Costs::kPass * double(passes - 1);
  }
  cycles += product_cycles(kernels, stage, part, double(ceil_div(chunks, part.splits)));
  cycles += Costs::kPartials * 2 * kWarps * stage.tiles * kUnitPadding * part.columns * 4;
  if (!in_grid) cycles += Costs::kRead * double(chunks) * part.columns * 64 * part.unit_groups;
  return cycles;
}

// `at_once`: blocks that run at once.
double step_cycles(const PassKernels& kernels, const PlanRequest& request, const Partition& part,
                   const SharedLayout& layout, bool in_grid, int64_t at_once) {
  const int64_t blocks = request.directions * part.column_groups * part.members;
  double cycles = 0;
  for (int s = 0; s < kernels.stages; ++s) cycles += stage_cycles(kernels, kernels.stage[s], part, layout, in_grid);
  return double(ceil_div(blocks, std::max<int64_t>(at_once, 1))) * cycles;
}

double stepwise_cycles(const PassKernels& kernels, const DeviceLimits& device, const PlanRequest& request) {
  const auto units = [&](bool of_h) { return double(of_h ? request.outputs : request.hidden); };
  double work = 0;  // of all products of a step
  for (int s = 0; s < kernels.stages; ++s) {
    const StageKernels& stage = kernels.stage[s];
    work += stage.tiles * units(stage.makes_outputs) * stage.published * units(stage.reads_outputs);
  }
  work *= double(request.directions) * double(request.batch);
  const double rate = !kernels.on_tensor_cores            ? Costs::kFfmaProduct
                      : kernels.chunk == 2 * kUnitPadding ? Costs::kProduct16
                                                          : Costs::kProduct32;
  return Costs::kLaunches * kernels.stages + work / (rate * device.multiprocessors);
}

// Adds every cut of the columns for blocks that hold `unit_groups` of the groups of `members`.
void cut_columns(const PassKernels& kernels, const DeviceLimits& device, const PlanRequest& request,
                 const ClusterRoom& room, PlanKind kind, int members, int unit_groups, std::vector<Plan>& cuts) {
  const bool in_grid = kind == PlanKind::kPersistentGrid;
  Partition part{};
  part.members = members, part.unit_groups = unit_groups, part.splits = kWarps / unit_groups;
  part.ring = in_grid ? reinterpret_cast<void*>(1) : nullptr;  // not in shared memory
  int64_t last = 0;
  for (int64_t groups = 1; groups <= ceil_div(request.batch, kTileColumns); ++groups) {
    const int64_t columns = up(ceil_div(request.batch, groups), kTileColumns);
    if (columns == last) continue;
    last = columns;
    part.columns = static_cast<int>(columns);
    part.column_groups = static_cast<int>(ceil_div(request.batch, columns));
    part.column_tiles = static_cast<int>(
        std::min<int64_t>({kernels.column_tiles, kernels.block_tiles / unit_groups, columns / kTileColumns}));
    if (!kernels.persistent(part)) continue;
    const int64_t blocks = request.directions * part.column_groups * members;
    if (in_grid && blocks > device.multiprocessors) break;  // only more from here on
    const SharedLayout layout = kernels.layout(part, static_cast<int>(request.outputs));
    const int64_t bytes = layout.bytes();
    if (bytes > device.shared_bytes) continue;
    const bool in_clusters = kind == PlanKind::kPersistentCluster;
    const int outside = in_clusters ? Costs::kOutsideOfClusters : 0;
    const int64_t groups_at_once =
        in_clusters && room ? room(part, bytes) : std::max(1, device.multiprocessors - outside) / members;
    if (groups_at_once == 0) continue;
    Plan plan{kind, part, bytes, step_cycles(kernels, request, part, layout, in_grid, groups_at_once * members)};
    plan.partition.ring = nullptr;
    cuts.push_back(plan);
  }
}

// What rules out all persistent plans, or nothing.
std::string common_obstacle(const PassKernels& kernels, const DeviceLimits& device) {
  if (kernels.is_normalized()) return "no persistent kernels for normalised rows";
  if (!kernels.persistent) return "no persistent kernels for float64";
  if (device.capability < 80)
    return "compute capability " + std::to_string(device.capability / 10) + "." +
           std::to_string(device.capability % 10) + " is below 8.0";
  return "";
}

Candidate persistent(PlanKind kind, const PassKernels& kernels, const DeviceLimits& device, const PlanRequest& request,
                     const ClusterRoom& room) {
  Candidate best;
  best.plan.kind = kind;
  best.obstacle = common_obstacle(kernels, device);
  if (best.obstacle.empty() && kind == PlanKind::kPersistentCluster && device.capability < 90)
    best.obstacle = "thread-block clusters need compute capability 9.0";
  if (!best.obstacle.empty()) return best;

  const std::vector<Plan> cuts = cuts_of(kind, kernels, device, request, room);
  const auto cheapest =
      std::min_element(cuts.begin(), cuts.end(), [](const Plan& a, const Plan& b) { return a.cycles < b.cycles; });
  if (cheapest != cuts.end())
    best.plan = *cheapest;
  else if (kind == PlanKind::kPersistentGrid)
    best.obstacle = "W_hh, the batch and the directions do not fit on " + std::to_string(device.multiprocessors) +
                    " multiprocessors at once";
  else
    best.obstacle =
        std::string("W_hh, the exchange buffers or the units of a step are too many for ") +
        (kind == PlanKind::kPersistentBlock ? "one multiprocessor" : "a cluster of " + std::to_string(kMaxCluster));
  return best;
}

}  // namespace

bool (*tf32_allowed)() = nullptr;

const CellKernels& kernels_of(CellKind cell, DType dtype, bool tf32) {
  return tables_of(cells::Registry())[size_t(cell)](dtype, tf32);
}

const char* name(PlanKind kind) { return kNames[size_t(kind)]; }

PlanKind plan_kind(const std::string& name) {
  std::string names;
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return PlanKind(i);
    names += (i == 0 ? "" : ", ") + std::string(kNames[i]);
  }
  throw std::runtime_error("a plan must be one of " + names + "; got '" + name + "'");
}

std::vector<Plan> cuts_of(PlanKind kind, const PassKernels& kernels, const DeviceLimits& device,
                          const PlanRequest& request, const ClusterRoom& room) {
  const int64_t needed = ceil_div(std::max(request.hidden, request.outputs), kUnitPadding);
  const int64_t fewest = kind == PlanKind::kPersistentBlock ? 1 : 2;
  const int64_t most = kind == PlanKind::kPersistentBlock     ? 1
                       : kind == PlanKind::kPersistentCluster ? kMaxCluster
                                                              : device.multiprocessors;
  std::vector<Plan> cuts;
  for (int unit_groups = 1; unit_groups <= std::min(kWarps, kernels.block_tiles); unit_groups *= 2) {
    int64_t members = std::max(fewest, ceil_div(needed, unit_groups));
    if (kind == PlanKind::kPersistentCluster)
      for (int64_t power = 2; power <= kMaxCluster; power *= 2)
        if (power >= members) {
          members = power;
          break;
        }
    while (members * unit_groups * kUnitPadding % kernels.chunk != 0) ++members;
    const auto cut = [&](int64_t members) {
      if (members <= most)
        cut_columns(kernels, device, request, room, kind, static_cast<int>(members), unit_groups, cuts);
    };
    cut(members);
    // Equal shares of a projection that are whole chunks together are smaller for some numbers of blocks than for others.
    const int64_t even = up(members, kMaxCluster);
    if (kernels.stage[kernels.stages - 1].is_projection && kind == PlanKind::kPersistentGrid && even > members)
      cut(even);
  }
  return cuts;
}

std::vector<Candidate> candidates(const PassKernels& kernels, const DeviceLimits& device, const PlanRequest& request,
                                  const ClusterRoom& room) {
  std::vector<Candidate> all;
  Candidate stepwise;
  stepwise.plan.cycles = stepwise_cycles(kernels, device, request);
  all.push_back(stepwise);
  for (const PlanKind kind : {PlanKind::kPersistentBlock, PlanKind::kPersistentCluster, PlanKind::kPersistentGrid})
    all.push_back(persistent(kind, kernels, device, request, room));
  return all;
}

const void* kernel_of(const PassKernels& kernels, const Plan& plan) {
  Partition part = plan.partition;
  if (plan.kind == PlanKind::kPersistentGrid) part.ring = &part;  // anything: it is not in shared memory
  return kernels.persistent(part);
}

const Plan& fastest(const std::vector<Candidate>& candidates) {
  const Candidate* best = &candidates.front();
  for (const Candidate& candidate : candidates)
    if (candidate.obstacle.empty() && candidate.plan.cycles < best->plan.cycles) best = &candidate;
  return best->plan;
}

}  // namespace seqkernels::cuda
