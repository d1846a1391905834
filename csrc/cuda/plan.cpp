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
template <class... Cells>
std::array<KernelsOf, sizeof...(Cells)> transition_tables_of(cells::CellList<Cells...>) {
  return {&transition_kernels_of<Cells>...};
}

// By cell, dtype, and whether float32 is multiplied as TF32.
std::vector<CellKernels> kernels_with_transition() {
  std::vector<CellKernels> all;
  for (int cell = 0; cell < kCellKinds; ++cell)
    for (int dtype = 0; dtype < int(DType::kCount); ++dtype)
      for (const bool tf32 : {false, true}) {
        all.push_back(tables_of(cells::Registry())[size_t(cell)](DType(dtype), tf32));
        all.back().set_persistent(transition_tables_of(cells::Registry())[size_t(cell)](DType(dtype), tf32));
      }
  return all;
}

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// What a step costs, in cycles of 1 / 1.755 us: fitted to 4,126 cuts that were timed on an H200
// (benchmarks/results/nvidia-h200-sweep.csv, python -m benchmarks.calibrate). Half of them are predicted within 8 %, and what the
// model chooses takes 1 % longer on average than the best cut. kAlone was not among them; of float32 without tensor cores,
// products are counted.
struct Costs {
  // A step of one quarter a warp: of a block by itself, with an exchange through the shared memory of a cluster, through L2.
  static constexpr double kAlone = 1700, kNear = 1836, kFar = 2181;
  static constexpr double kBackward = 655;  // more inputs and more words to publish
  // Where a warp has several quarters or there are several passes over the columns.
  static constexpr double kSeveral = 570, kQuarter = 876, kPass = 1850;
  static constexpr double kMma = 10.3;  // of one warp-wide MMA, all of a scheduler's warps together
  // Of a byte of weights that lies in shared memory. When the cuts were timed, these came in four loads that met in the same
  // banks, where now there is one: no plan takes longer than the model says, but those with more weights there may take less.
  static constexpr double kWeights = 2.9 / 128;
  // Of a round of loads that waits for the one before to be used: of one team, of two that take turns.
  static constexpr double kRound = 418, kTeamRound = 269;
  static constexpr double kFfmas = 64;      // of a scheduler for the FFMAs of a tile, a column tile and a chunk
  static constexpr double kStaging = 45;    // what else it does for a chunk then
  static constexpr double kReduction = 16;  // adding up the lanes' sums of a tile and a column tile, in a warp
  static constexpr double kLaunch = 45000;  // of one more launch: it begins with its weights
  // A product and a launch of the stepwise plan: the host takes longer than the GPU.
  static constexpr double kLaunches = 24000;
  // Multiply-adds a cycle and multiprocessor of a product of few rows: of 16 bits, of TF32, without tensor cores.
  static constexpr double kProduct16 = 500, kProduct32 = 250, kFfmaProduct = 80;
  // Multiprocessors that clusters cannot have: those left over in each part of a device.
  static constexpr int kOutsideOfClusters = 12;
};

// Calls visit(tiles) for each pass over the columns, with as many tiles as that takes.
template <class Visit>
void for_each_pass(const Partition& part, const Visit& visit) {
  for (int left = part.columns / kTileColumns; left > 0;) {
    const int tiles = tiles_of_pass(part, left);
    visit(tiles);
    left -= tiles;
  }
}
int passes_of(const Partition& part) {
  int passes = 0;
  for_each_pass(part, [&](int) { ++passes; });
  return passes;
}

// The product of a stage, of all warps on a multiprocessor.
double product_cycles(const PassKernels& kernels, const StageKernels& stage, const Partition& part,
                      double chunks_per_warp) {
  const StageKernels::Depth& depth = stage.depth[int(form_of(part))];
  const double tiles = double(part.columns) / kTileColumns, passes = passes_of(part);
  const int ahead = part.column_tiles == 1 ? stage.depth[int(Form::kOneQuarter)].chunks_ahead : depth.chunks_ahead;
  const double resident = std::min(chunks_per_warp, double(depth.resident_chunks));
  const double weights = (chunks_per_warp - resident) * stage.tiles * 1024 * kWarps * passes;  // bytes
  const double rounds = (std::ceil(chunks_per_warp * part.column_tiles / ahead) - 1) * passes;
  const double mmas = 2 * chunks_per_warp * stage.tiles * tiles * kWarps / 4;  // of a scheduler
  const double ffma = chunks_per_warp * tiles * (Costs::kFfmas * stage.tiles + Costs::kStaging) / 4;
  const double product =
      kernels.on_tensor_cores ? Costs::kMma * mmas : kWarps * (ffma + Costs::kReduction * stage.tiles * tiles);
  return part.teams * (product + Costs::kWeights * weights) +
         (part.teams > 1 ? Costs::kTeamRound : Costs::kRound) * std::max(rounds, 0.0);
}

// A stage of a step: an exchange, its product and its pointwise part. Two teams take their time side by side, but for what
// keeps the multiprocessor busy.
double stage_cycles(const PassKernels& kernels, const StageKernels& stage, const Partition& part,
                    const SharedLayout& layout, bool in_grid) {
  const int units = stage.reads_outputs ? part.members * layout.outputs : part.units();
  const int64_t chunks = int64_t{stage.published} * units / kernels.chunk;
  double cycles = in_grid ? Costs::kFar : part.members > 1 ? Costs::kNear : Costs::kAlone;
  if (kernels.is_backward) cycles += Costs::kBackward;
  if (!has_one_quarter(part)) {
    double quarters = 0;  // of a warp
    for_each_pass(part, [&](int tiles) { quarters += double(ceil_div(part.unit_groups * tiles * kQuarters, kWarps)); });
    cycles += Costs::kSeveral + Costs::kQuarter * quarters + Costs::kPass * (passes_of(part) - 1);
  }
  return cycles + product_cycles(kernels, stage, part, double(ceil_div(chunks, part.splits)));
}

// `at_once`: groups that run at once.
double step_cycles(const PassKernels& kernels, const PlanRequest& request, const Partition& part,
                   const SharedLayout& layout, bool in_grid, int64_t at_once) {
  double cycles = 0;
  for (int s = 0; s < kernels.stages; ++s) cycles += stage_cycles(kernels, kernels.stage[s], part, layout, in_grid);
  return double(ceil_div(request.directions * part.column_groups, std::max<int64_t>(at_once, 1))) * cycles;
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

// Adds every cut of the columns for blocks of so many teams that hold `unit_groups` of the groups of `members`.
void cut_columns(const PassKernels& kernels, const DeviceLimits& device, const PlanRequest& request,
                 const ClusterRoom& room, PlanKind kind, int members, int unit_groups, int teams,
                 std::vector<Plan>& cuts) {
  const bool in_grid = kind == PlanKind::kPersistentGrid;
  Partition part{};
  part.teams = teams;
  part.members = members, part.unit_groups = unit_groups, part.splits = kWarps / unit_groups;
  part.ring = in_grid ? reinterpret_cast<void*>(1) : nullptr;  // not in shared memory
  int64_t last = 0;
  for (int64_t groups = 1; groups <= ceil_div(request.batch, kTileColumns); ++groups) {
    const int64_t columns = up(ceil_div(request.batch, groups), kTileColumns);
    if (columns == last) continue;
    last = columns;
    part.columns = static_cast<int>(columns);
    part.column_groups = static_cast<int>(up(ceil_div(request.batch, columns), teams));
    const int64_t most_tiles =
        std::min<int64_t>({kernels.column_tiles, kernels.block_tiles / unit_groups, columns / kTileColumns});
    for (part.column_tiles = 1; 2 * part.column_tiles <= most_tiles;) part.column_tiles *= 2;
    if (!kernels.persistent(part)) continue;
    const SharedLayout layout = kernels.layout(part, static_cast<int>(request.outputs));
    const int64_t bytes = layout.bytes();
    if (bytes > device.shared_bytes) continue;
    const bool in_clusters = kind == PlanKind::kPersistentCluster;
    const int outside = in_clusters ? Costs::kOutsideOfClusters : 0;
    const int64_t at_once =
        teams * (in_clusters && room ? room(part, bytes) : std::max(1, device.multiprocessors - outside) / members);
    if (at_once == 0) continue;
    Plan plan{kind, part, bytes};
    // All blocks of a grid run at once, or none does; clusters and single blocks wait for their turn.
    plan.groups_at_once = in_grid ? at_once : std::max(at_once, plan.groups(request.directions));
    plan.cycles = step_cycles(kernels, request, part, layout, in_grid, at_once) +
                  Costs::kLaunch * double(plan.launches(request.directions) - 1) / double(request.steps);
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

const CellKernels& kernels_of(CellKind cell, DType dtype, bool tf32, bool has_transition) {
  if (!has_transition) return tables_of(cells::Registry())[size_t(cell)](dtype, tf32);
  static const std::vector<CellKernels> all = kernels_with_transition();
  return all[(size_t(cell) * size_t(DType::kCount) + size_t(dtype)) * 2 + tf32];
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
      for (int teams = 1; members <= most && teams <= (kind == PlanKind::kPersistentGrid ? kMaxTeams : 1); ++teams)
        cut_columns(kernels, device, request, room, kind, static_cast<int>(members), unit_groups, teams, cuts);
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
