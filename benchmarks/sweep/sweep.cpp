// Times every way to cut every persistent kernel on this machine's GPU, without torch: what a step takes, to choose and to
// calibrate plans by. Links with the objects of csrc/cuda (benchmarks/sweep/__main__.py builds and runs it).
//
//   sweep [--seconds S] [--from N] [--without KIND] [--quick] [--batch B]
//                                                                all cuts of all layers, or of those with B sequences; N: skip
//                                                                the first N lines
//   sweep --profile CELL,DTYPE,PASS,H,B,KIND                     the best cut of one layer, for a profiler
//
// One JSON object a line, as it is measured. A cut's results are compared with those of the layer's first cut: all cuts do the
// same arithmetic but for the order of sums. A launch that does not end within kPatience seconds ends the program with status
// 75, its line with "hung".
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/plan.h"

namespace seqkernels::cuda {
namespace {

constexpr int kSteps[] = {64, 320};  // what does not depend on the number of steps drops out of their difference
constexpr int kRepeats = 3;
constexpr double kPatience = 5;
constexpr int kHungStatus = 75;

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", doing, cudaGetErrorString(status));
  std::exit(1);
}

struct DTypeInfo {
  const char* name;
  DType dtype;
  bool tf32;
  int bytes;
};
constexpr DTypeInfo kDTypes[] = {{"bfloat16", DType::kBFloat16, false, 2},
                                 {"float16", DType::kFloat16, false, 2},
                                 {"tf32", DType::kFloat32, true, 4},
                                 {"float32", DType::kFloat32, false, 4}};

struct Layer {
  CellKind cell;
  const DTypeInfo* type;
  int hidden, batch, directions;
  bool backward;
};

// Memory of the device, uninitialised.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(std::max<int64_t>(bytes, 16)) {
    check(cudaMalloc(&data_, static_cast<size_t>(bytes_)), "cudaMalloc");
  }
  Buffer(Buffer&& other) noexcept : bytes_(other.bytes_), data_(other.data_) { other.data_ = nullptr; }
  ~Buffer() { cudaFree(data_); }
  char* data() const { return static_cast<char*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_;
  void* data_ = nullptr;
};

uint16_t bits16(float x, DType dtype) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (dtype == DType::kBFloat16) return static_cast<uint16_t>(bits >> 16);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude < 0x38800000) return 0;  // no half subnormals: a few zeros more
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | ((magnitude - 0x38000000) >> 13));
}

// Evenly distributed numbers.
Buffer random(int64_t count, float low, float high, DType dtype, bool wide) {
  static std::mt19937 generator(1);
  constexpr int64_t kBlock = 65521;  // a prime, so that repetitions fall differently
  const int64_t bytes = wide || dtype == DType::kFloat32 ? 4 : 2, block = std::min(count, kBlock);
  std::vector<char> host(static_cast<size_t>(block * bytes));
  std::uniform_real_distribution<float> numbers(low, high);
  for (int64_t i = 0; i < block; ++i) {
    const float x = numbers(generator);
    const uint16_t narrow = bits16(x, dtype);
    std::memcpy(&host[static_cast<size_t>(i * bytes)], bytes == 4 ? static_cast<const void*>(&x) : &narrow,
                static_cast<size_t>(bytes));
  }
  Buffer buffer(count * bytes);
  check(cudaMemcpy(buffer.data(), host.data(), host.size(), cudaMemcpyHostToDevice), "copy");
  for (int64_t done = block; done < count; done *= 2)
    check(cudaMemcpy(buffer.data() + done * bytes, buffer.data(),
                     static_cast<size_t>(std::min(done, count - done) * bytes), cudaMemcpyDeviceToDevice),
          "copy");
  return buffer;
}

float real_of(const char* at, DType dtype) {
  if (dtype == DType::kFloat32) {
    float x;
    std::memcpy(&x, at, sizeof x);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  if (dtype == DType::kBFloat16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
  }
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return NAN;
  const float x = exponent == 0 ? std::ldexp(float(mantissa), -24) : std::ldexp(float(1024 + mantissa), exponent - 25);
  return bits & 0x8000 ? -x : x;
}

// A layer's arrays, for the largest number of steps.
class Problem {
 public:
  explicit Problem(const Layer& layer)
      : layer_(layer),
        sizes_(cell_info(layer.cell)),
        kernels_(layer.backward ? kernels_of(layer.cell, layer.type->dtype, layer.type->tf32).backward
                                : kernels_of(layer.cell, layer.type->dtype, layer.type->tf32).forward) {
    const int64_t d = layer.directions, b = layer.batch, h = layer.hidden, rows = kSteps[1] * b;
    const int64_t gates = sizes_.gates * h, padded = padded_units(layer.hidden);
    const float scale = 1 / std::sqrt(float(h));
    const DType dtype = layer.type->dtype;
    const auto add = [&](int64_t count, float low, float high, bool wide = false) -> void* {
      buffers_.push_back(std::make_unique<Buffer>(random(count, low, high, dtype, wide)));
      return buffers_.back()->data();
    };
    const auto room = [&](int64_t count, int bytes) -> void* {
      buffers_.push_back(std::make_unique<Buffer>(count * bytes));
      return buffers_.back()->data();
    };
    const int bytes = layer.type->bytes;
    shape_ = {layer.directions, layer.batch, layer.hidden, padded_units(layer.hidden), kSteps[1], rows, nullptr};
    void* weights[2] = {add(gates * h, -scale, scale), add(gates * h, -scale, scale)};
    void* const h0 = add(d * b * h, -1, 1);
    void* const c0 = sizes_.has_cell_state ? add(d * b * h, -1, 1) : nullptr;
    if (layer.backward) {
      backward_.shape = shape_;
      backward_.row_bytes = row_bytes_of(shape_, sizes_, layer.hidden, dtype);
      backward_.weights[0] = weights[0], backward_.weights[1] = weights[1];
      backward_.grad_output = add(rows * d * h, -1, 1);
      backward_.h0 = h0, backward_.c0 = c0;
      backward_.output = add(rows * d * h, -1, 1);
      if (sizes_.saved > 0) backward_.gates = add(d * rows * sizes_.saved * padded, 0.05f, 0.95f);
      if (sizes_.has_cell_state) backward_.cells = add(d * rows * padded, -1, 1, true);
      result_bytes_ = rows * d * gates * bytes;
      backward_.input_dgates = result_ = room(rows * d * gates, bytes);
      if (sizes_.has_hidden_dgates) backward_.hidden_dgates = room(rows * d * gates, bytes);
      backward_.grad_h0 = room(d * b * h, bytes);
      if (sizes_.has_cell_state) backward_.grad_c0 = room(d * b * h, bytes);
    } else {
      forward_.shape = shape_;
      forward_.row_bytes = row_bytes_of(shape_, sizes_, layer.hidden, dtype);
      forward_.weights[0] = weights[0], forward_.weights[1] = weights[1];
      for (int i = 0; i < layer.directions; ++i) {
        forward_.input_gates[i] = add(rows * gates, -1, 1, true);
        forward_.b_ih[i] = add(gates, -scale, scale);
        forward_.b_hh[i] = add(gates, -scale, scale);
      }
      forward_.h0 = h0, forward_.c0 = c0;
      result_bytes_ = rows * d * h * bytes;
      forward_.output = result_ = room(rows * d * h, bytes);
      forward_.h_n = room(d * b * h, bytes);
      if (sizes_.has_cell_state) {
        forward_.c_n = room(d * b * h, bytes);
        forward_.c_carry = room(d * b * h, 4);
        forward_.cells = room(d * rows * padded, 4);
      }
      if (sizes_.saved > 0) forward_.gates = room(d * rows * sizes_.saved * padded, bytes);
    }
    check(cudaStreamCreate(&stream_), "stream");
    for (cudaEvent_t& event : events_) check(cudaEventCreate(&event), "event");
  }

  ~Problem() {
    for (cudaEvent_t& event : events_) cudaEventDestroy(event);
    cudaStreamDestroy(stream_);
  }

  const PassKernels& kernels() const { return kernels_; }

  // Allows the plan's kernel so much shared memory.
  void allow_shared(const Plan& plan, int64_t bytes) const {
    check(cudaFuncSetAttribute(kernel_of(kernels_, plan), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)),
          "shared memory");
  }

  cudaLaunchConfig_t config(const Plan& plan, cudaLaunchAttribute* attribute) const {
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(plan.blocks(layer_.directions));
    config.blockDim = static_cast<unsigned>(kThreads * plan.partition.teams);
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    config.stream = stream_;
    config.attrs = attribute;
    if (plan.kind == PlanKind::kPersistentGrid) {
      attribute->id = cudaLaunchAttributeCooperative;
      attribute->val.cooperative = 1;
      config.numAttrs = 1;
    } else if (plan.kind == PlanKind::kPersistentCluster) {
      attribute->id = cudaLaunchAttributeClusterDimension;
      attribute->val.clusterDim = {static_cast<unsigned>(plan.partition.members), 1, 1};
      config.numAttrs = 1;
    }
    return config;
  }

  // Seconds of a launch of so many steps; negative if it hangs.
  double run(const Plan& plan, int steps) {
    Partition part = plan.partition;
    if (plan.kind == PlanKind::kPersistentGrid) {
      part.ring = &part;
      const int64_t bytes =
          4 * kernels_.layout(part, layer_.hidden).ring_words() * part.column_groups * layer_.directions;
      if (!ring_ || ring_->bytes() < bytes) ring_ = std::make_unique<Buffer>(bytes);
      part.ring = ring_->data();
      check(cudaMemsetAsync(part.ring, 0xFF, static_cast<size_t>(bytes), stream_), "memset");
    }
    cudaLaunchAttribute attribute;
    const cudaLaunchConfig_t launch = config(plan, &attribute);
    forward_.steps = steps;
    forward_.shape.seq_len = backward_.shape.seq_len = steps;
    forward_.shape.rows = backward_.shape.rows = int64_t{steps} * layer_.batch;
    SharedLayout layout = kernels_.layout(part, layer_.hidden);
    void* arguments[] = {layer_.backward ? static_cast<void*>(&backward_) : &forward_, &part, &layout};
    check(cudaEventRecord(events_[0], stream_), "event");
    check(cudaLaunchKernelExC(&launch, kernel_of(kernels_, plan), arguments), "launch");
    check(cudaEventRecord(events_[1], stream_), "event");
    const auto begin = Clock::now();
    cudaError_t status;
    while ((status = cudaEventQuery(events_[1])) == cudaErrorNotReady)
      if (seconds_since(begin) > kPatience) return -1;
    check(status, "kernel");
    float milliseconds;
    check(cudaEventElapsedTime(&milliseconds, events_[0], events_[1]), "event");
    return milliseconds * 1e-3;
  }

  void poison() const { check(cudaMemset(result_, 0xFF, static_cast<size_t>(result_bytes_)), "memset"); }

  // A few steps' results.
  std::vector<float> results(int steps) const {
    const int64_t bytes = layer_.type->bytes;
    const int64_t row = result_bytes_ / kSteps[1] / bytes;  // values of a time
    std::vector<char> host(static_cast<size_t>(row * bytes));
    std::vector<float> found;
    for (const int time : {0, steps / 2, steps - 1}) {
      check(cudaMemcpy(host.data(), static_cast<char*>(result_) + time * row * bytes, host.size(),
                       cudaMemcpyDeviceToHost),
            "copy");
      for (int64_t i = 0; i < row; ++i)
        found.push_back(real_of(&host[static_cast<size_t>(i * bytes)], layer_.type->dtype));
    }
    return found;
  }

 private:
  const Layer layer_;
  const CellInfo sizes_;
  const PassKernels& kernels_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::unique_ptr<Buffer> ring_;
  Shape shape_{};
  ForwardProblem forward_{};
  BackwardProblem backward_{};
  void* result_ = nullptr;
  int64_t result_bytes_ = 0;
  cudaStream_t stream_{};
  cudaEvent_t events_[2]{};
};

// The largest difference, relative to the root mean square of `expected`; NaN counts as infinite.
double difference(const std::vector<float>& actual, const std::vector<float>& expected) {
  double largest = 0, squares = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = std::abs(double(actual[i]) - expected[i]);
    if (!(d <= largest)) largest = d == d ? d : INFINITY;
    squares += double(expected[i]) * expected[i];
  }
  return largest / std::max(std::sqrt(squares / double(expected.size())), 1e-6);
}

DeviceLimits limits() {
  const auto get = [](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, 0), "device");
    return value;
  };
  return {10 * get(cudaDevAttrComputeCapabilityMajor) + get(cudaDevAttrComputeCapabilityMinor),
          get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

int clusters_at_once(const Problem& problem, const Plan& plan) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t launch = problem.config(plan, &attribute);
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel_of(problem.kernels(), plan), &launch) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return clusters;
}

// What matters most first.
std::vector<Layer> layers(bool quick) {
  struct Size {
    int hidden, batch;
  };
  std::vector<Size> sizes;
  for (const int hidden : {128, 256, 512, 1024, 768, 64, 192, 384, 2048, 96, 640})
    for (const int batch : {16, 64, 1, 128, 32, 8, 256}) sizes.push_back({hidden, batch});
  std::stable_sort(sizes.begin(), sizes.end(), [](const Size& a, const Size& b) {
    const auto rank = [](const Size& s) { return (s.batch == 16 ? 0 : s.batch == 64 ? 1 : 2) + (s.hidden >= 1024); };
    return rank(a) < rank(b);
  });
  std::vector<Layer> all;
  const auto add = [&](CellKind cell, int dtype, const Size& size, int directions) {
    for (const bool backward : {false, true})
      all.push_back({cell, &kDTypes[dtype], size.hidden, size.batch, directions, backward});
  };
  for (const Size& size : sizes)
    for (const int dtype : {0, 2}) add(kind_of<cells::Lstm>(), dtype, size, 1);
  for (const Size& size : sizes)
    for (const int dtype : {0, 2}) add(kind_of<cells::Gru>(), dtype, size, 1);
  for (const Size& size : sizes) add(kind_of<cells::Lstm>(), 3, size, 1);
  if (quick) return all;
  for (const Size& size : sizes) add(kind_of<cells::RnnTanh>(), 0, size, 1);
  for (const Size& size : sizes) add(kind_of<cells::Gru>(), 3, size, 1);
  for (const Size& size : sizes) add(kind_of<cells::Lstm>(), 0, size, 2);
  for (const Size& size : sizes) add(kind_of<cells::Lstm>(), 1, size, 1);
  return all;
}

std::string described(const Layer& layer, const Plan& plan) {
  char line[400];
  const Partition& p = plan.partition;
  std::snprintf(
      line, sizeof line,
      "{\"cell\": \"%s\", \"dtype\": \"%s\", \"pass\": \"%s\", \"hidden\": %d, \"batch\": %d, \"directions\": %d, "
      "\"plan\": \"%s\", \"teams\": %d, \"members\": %d, \"unit_groups\": %d, \"columns\": %d, \"column_tiles\": %d, "
      "\"model_cycles\": %.0f",
      cell_info(layer.cell).name, layer.type->name, layer.backward ? "backward" : "forward", layer.hidden, layer.batch,
      layer.directions, name(plan.kind), p.teams, p.members, p.unit_groups, p.columns, p.column_tiles, plan.cycles);
  return line;
}

struct Options {
  double seconds = 60;
  int from = 0;
  bool quick = false;
  int batch = 0;  // of the layers; 0: of any
  std::vector<std::string> without;
  std::string profile;
};

// Times one cut. `expected`: results of the layer's first cut, or empty.
void measure(const Layer& layer, Problem& problem, const Plan& plan, std::vector<float>& expected) {
  const std::string line = described(layer, plan);
  std::vector<double> steps;
  double error = 0, once = 0;
  for (int i = 0; i <= kRepeats; ++i) {
    if (i == 0) problem.poison();
    const double few = problem.run(plan, kSteps[0]);
    if (few >= 0 && i == 0) {
      const std::vector<float> results = problem.results(kSteps[0]);
      if (expected.empty()) expected = results;
      error = difference(results, expected);
    }
    const double many = few < 0 ? -1 : problem.run(plan, kSteps[1]);
    if (many < 0) {
      std::printf("%s, \"hung\": true}\n", line.c_str());
      std::fflush(stdout);
      std::_Exit(kHungStatus);
    }
    if (i == 0) continue;  // the first launch loads the kernel
    steps.push_back((many - few) / (kSteps[1] - kSteps[0]));
    once = few - steps.back() * kSteps[0];
  }
  std::sort(steps.begin(), steps.end());
  std::printf("%s, \"us\": %.3f, \"us_once\": %.1f, \"error\": %.3g}\n", line.c_str(), steps[steps.size() / 2] * 1e6,
              once * 1e6, std::isfinite(error) ? error : 1e30);
  std::fflush(stdout);
}

int sweep(const Options& options) {
  const auto begin = Clock::now();
  const DeviceLimits device = limits();
  int number = 0;
  for (const Layer& layer : layers(options.quick)) {
    if (options.batch != 0 && layer.batch != options.batch) continue;
    std::unique_ptr<Problem> problem;
    std::vector<float> expected;
    const PlanRequest request{kSteps[1], layer.batch, layer.hidden, layer.directions, layer.hidden};
    for (const PlanKind kind : {PlanKind::kPersistentBlock, PlanKind::kPersistentCluster, PlanKind::kPersistentGrid}) {
      if (std::count(options.without.begin(), options.without.end(), name(kind))) continue;
      const CellKernels& both = kernels_of(layer.cell, layer.type->dtype, layer.type->tf32);
      std::vector<Plan> cuts = cuts_of(kind, layer.backward ? both.backward : both.forward, device, request);
      // The best by the model, whatever that is worth, are enough.
      std::sort(cuts.begin(), cuts.end(), [](const Plan& a, const Plan& b) { return a.cycles < b.cycles; });
      if (cuts.size() > 8) cuts.resize(8);
      for (const Plan& plan : cuts) {
        if (plan.launches(layer.directions) > 1) continue;  // they take so many times as long
        if (number++ < options.from) continue;
        if (seconds_since(begin) > options.seconds) return 0;
        if (!problem) problem = std::make_unique<Problem>(layer);
        problem->allow_shared(plan, device.shared_bytes);
        if (kind == PlanKind::kPersistentCluster && clusters_at_once(*problem, plan) == 0) {
          std::printf("%s, \"refused\": true}\n", described(layer, plan).c_str());
          continue;
        }
        measure(layer, *problem, plan, expected);
      }
    }
  }
  return 0;
}

int profile(const std::string& what) {
  std::vector<std::string> fields{""};
  for (const char c : what)
    if (c == ',')
      fields.emplace_back();
    else
      fields.back().push_back(c);
  if (fields.size() < 6) return 2;
  const auto index = [](const std::string& name, const auto& names, const auto& name_of) {
    for (size_t i = 0; i < std::size(names); ++i)
      if (name == name_of(names[i])) return i;
    std::fprintf(stderr, "unknown: %s\n", name.c_str());
    std::exit(2);
  };
  const Layer layer{CellKind(index(fields[0], kCellInfos.of, [](const CellInfo& cell) { return cell.name; })),
                    &kDTypes[index(fields[1], kDTypes, [](const DTypeInfo& t) { return t.name; })],
                    std::stoi(fields[3]),
                    std::stoi(fields[4]),
                    1,
                    fields[2] == "backward"};
  Problem problem(layer);
  const DeviceLimits device = limits();
  std::vector<Plan> cuts = cuts_of(plan_kind(fields[5]), problem.kernels(), device,
                                   {kSteps[1], layer.batch, layer.hidden, layer.directions, layer.hidden});
  const auto takes_more = [](const Plan& plan) { return plan.launches(1) > 1; };
  cuts.erase(std::remove_if(cuts.begin(), cuts.end(), takes_more), cuts.end());
  if (cuts.empty()) return 2;
  const Plan& plan =
      *std::min_element(cuts.begin(), cuts.end(), [](const Plan& a, const Plan& b) { return a.cycles < b.cycles; });
  problem.allow_shared(plan, device.shared_bytes);
  std::printf("%s}\n", described(layer, plan).c_str());
  for (int i = 0; i < 2; ++i)
    if (problem.run(plan, kSteps[1]) < 0) return kHungStatus;
  return 0;
}

}  // namespace
}  // namespace seqkernels::cuda

int main(int count, char** arguments) {
  using namespace seqkernels::cuda;
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string option = arguments[i];
    const auto value = [&] { return std::string(i + 1 < count ? arguments[++i] : ""); };
    if (option == "--seconds")
      options.seconds = std::stod(value());
    else if (option == "--from")
      options.from = std::stoi(value());
    else if (option == "--batch")
      options.batch = std::stoi(value());
    else if (option == "--without")
      options.without.push_back(value());
    else if (option == "--profile")
      options.profile = value();
    else if (option == "--quick")
      options.quick = true;
    else
      return std::fprintf(stderr, "unknown option %s\n", option.c_str()), 2;
  }
  return options.profile.empty() ? sweep(options) : profile(options.profile);
}
