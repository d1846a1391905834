// A layer's problem on the emulator (kernels.cpp has the fields of one), by the kernels of one cell: what the real host does, and,
// for what that asks torch, naive sums in double.
//
// Type parameters: T is the element type, R = Real<T> what arithmetic is done in (numbers.cuh).
#pragma once
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels.h"
#include "pointwise.cuh"
#include "records.h"

namespace seqkernels::cuda {

// A program may leave out some cells' files.
template <class Cell>
__attribute__((weak)) const CellKernels& kernels_of(DType dtype, bool tf32);

using emulator::Memory;
using emulator::Records;
using emulator::RecordWriter;

enum class Plan { kStepwise, kCluster, kGrid };

constexpr int kRowThreads = 64;

using KernelsOf = const CellKernels& (*)(DType dtype, bool tf32);

template <class... Cells>
KernelsOf find_kernels(cells::CellList<Cells...>, int64_t cell) {
  const KernelsOf all[] = {&kernels_of<Cells>...};
  return all[cell];
}

inline void expect(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string("not a problem for these kernels: ") + what);
}

template <class Term>
double sum(int64_t count, const Term& term) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += term(i);
  return sum;
}

template <class T>
class Host {
  using R = Real<T>;

 public:
  Host(const Records& problem, RecordWriter& result)
      : in_(problem),
        result_(result),
        cell_(cell_info(CellKind(in_.integer("cell")))),
        plan_(static_cast<Plan>(in_.integer("plan"))),
        input_(in_.integer("input")),
        seed_(static_cast<uint64_t>(in_.integer("seed"))) {
    const KernelsOf kernels = find_kernels(cells::Registry(), in_.integer("cell"));
    expect(kernels, "this program is without that cell");
    kernels_ = &kernels(static_cast<DType>(in_.integer("dtype")), in_.integer("tf32") != 0);
    make_shape();
    if (cell_.is_normalized()) make_norms();
    if (plan_ != Plan::kStepwise) make_partition();
  }

  void run() {
    forward();
    if (in_.integer("saves") == 0) return;
    backward();
    make_parameter_gradients();
  }

 private:
  // ---------------------------------------------------------------- sizes

  void make_shape() {
    shape_ = {.directions = static_cast<int>(in_.integer("directions")),
              .batch = static_cast<int>(in_.integer("batch")),
              .hidden = static_cast<int>(in_.integer("hidden")),
              .padded = padded_units(static_cast<int>(in_.integer("hidden"))),
              .seq_len = in_.integer("seq_len"),
              .rows = 0,
              .offsets = nullptr,
              .first_reverse = 1};
    shape_.rows = shape_.seq_len * shape_.batch;
    outputs_ = static_cast<int>(in_.integer("outputs"));
    gate_units_ = cell_.gates * shape_.hidden;
    sequences_ = int64_t{shape_.directions} * shape_.batch;
    h_states_ = sequences_ * outputs_, c_states_ = sequences_ * shape_.hidden;
    if (const std::vector<int64_t> sizes = in_.integers("batch_sizes"); !sizes.empty()) {
      std::vector<int64_t> offsets{0};
      for (const int64_t size : sizes) offsets.push_back(offsets.back() + size);
      write_offsets(offsets);
      shape_.rows = offsets.back();
    }
  }

  RowBytes row_bytes() const { return row_bytes_of(shape_, cell_, outputs_, static_cast<DType>(in_.integer("dtype"))); }

  void make_norms() {
    norms_.eps = *static_cast<const double*>(in_.find("norm_eps"));
    for (int kind = 0; kind < kNormKinds; ++kind)
      for (int d = 0; d < shape_.directions; ++d) {
        norms_.weights[kind][d] = in_.find(of(kWeightNames[kNormWeights[kind][0]], d));
        norms_.biases[kind][d] = in_.find(of(kWeightNames[kNormWeights[kind][1]], d));
      }
  }

  void write_offsets(const std::vector<int64_t>& offsets) {
    constexpr int64_t kPart = 4;  // more than one part, even of few
    const auto kernel = function<void(OffsetsPart, int64_t*)>(write_offsets_kernel());
    offsets_ = Memory(offsets.size() * sizeof(int64_t));
    int64_t* const to = static_cast<int64_t*>(offsets_.data());
    for (int64_t first = 0; first < static_cast<int64_t>(offsets.size()); first += kPart) {
      OffsetsPart part{};
      part.first = first;
      for (; part.count < kPart && first + part.count < static_cast<int64_t>(offsets.size()); ++part.count)
        part.values[part.count] = offsets[first + part.count];
      emulator::launch({.blocks = 1, .threads = kWarpSize, .seed = seed_++}, [&] { kernel(part, to); });
    }
    shape_.offsets = to;
  }

  void make_partition() {
    const std::vector<int64_t> fields = in_.integers("partition");
    expect(fields.size() == 6, "partition");
    const auto field = [&](int i) { return static_cast<int>(fields[i]); };
    part_ = {field(5), field(0), field(1), kWarps / field(1), field(2), field(3), field(4), 0, nullptr};
    expect(kernels_->forward.persistent, "dtype without persistent kernels");
    expect(part_.unit_groups * part_.splits == kWarps, "unit_groups");
    expect(part_.units() >= most_units(), "too few units");
    expect(part_.units() % kernels_->forward.chunk == 0, "units that are no whole chunks");
    expect(part_.teams >= 1 && part_.teams <= kMaxTeams && part_.column_groups % part_.teams == 0, "teams");
    expect(part_.columns % kTileColumns == 0 && part_.columns * part_.column_groups >= shape_.batch, "columns");
    expect(part_.column_tiles <= kernels_->backward.column_tiles &&
               part_.column_tiles * kTileColumns <= part_.columns &&
               part_.column_tiles * part_.unit_groups <= kernels_->backward.block_tiles,
           "column_tiles");
  }

  // ---------------------------------------------------------------- launches

  template <class Function>
  static Function* function(const void* kernel) {
    return reinterpret_cast<Function*>(const_cast<void*>(kernel));
  }

  // Calls a kernel whose first argument is as much of the problem as its cell takes.
  template <class Problem, class... Others>
  void call(const void* kernel, const Projected<Problem>& problem, const Others&... others) const {
    if (cell_.is_projected())
      function<void(Projected<Problem>, Others...)>(kernel)(problem, others...);
    else
      function<void(Problem, Others...)>(kernel)(problem, others...);
  }

  template <class Problem>
  void run_persistent(const PassKernels& kernels, const Problem& problem) {
    const bool is_cluster = plan_ == Plan::kCluster;
    const int groups = shape_.directions * part_.column_groups;
    Partition part = part_;
    part.column_tiles = std::min(part.column_tiles, kernels.column_tiles);
    Memory ring;
    part.ring = is_cluster ? nullptr : &part;  // not in shared memory
    if (!is_cluster) ring = Memory(groups * kernels.layout(part, outputs_).ring_words() * sizeof(uint32_t));
    part.ring = ring.data();
    expect(kernels.persistent(part), "partition without a kernel");
    const SharedLayout layout = kernels.layout(part, outputs_);
    emulator::launch({.blocks = groups / part.teams * part.members,
                      .threads = kThreads * part.teams,
                      .cluster = is_cluster ? part.members : 1,
                      .shared_bytes = static_cast<size_t>(layout.bytes()),
                      .seed = seed_++},
                     [&] { call(kernels.persistent(part), problem, part, layout); });
  }

  // active(step): sequences that have the step, as the pass counts them, in some direction.
  template <class Problem, class Active>
  void run_stepwise(const PassKernels& kernels, const Problem& problem, int64_t steps, const Active& active) {
    const int64_t states = sequences_ * most_units();
    const Memory product = reals(kernels.most(&StageKernels::tiles) * states, 0),
                 published = elements(kernels.most(&StageKernels::published) * states), h = reals(states),
                 c = reals(states), carried = reals(std::max(cell_.carried, 2) * states);
    const StepBuffers buffers{product.data(), published.data(), h.data(), c.data(), carried.data()};
    for (int64_t i = 0; i <= steps * kernels.stages; ++i) {
      const StageKernels& stage = kernels.stage[kernels.stage_of(i)];
      if (i > 0) multiply(stage, kernels.is_backward, buffers, active((i - 1) / kernels.stages));
      const bool is_normalized = kernels.is_normalized();
      const size_t shared_bytes = is_normalized ? kSumsBytes : 0;
      emulator::launch({.blocks = 2, .threads = kStepThreads, .shared_bytes = shared_bytes, .seed = seed_++}, [&] {
        if (is_normalized)
          call(stage.stepwise, problem, buffers, i, norms_);
        else
          call(stage.stepwise, problem, buffers, i);
      });
    }
    product.check("product"), published.check("published"), h.check("h"), c.check("c"), carried.check("carried");
  }

  // product [D, :sequences, tiles of units] = published [D, :sequences, blocks of units] times a stage's matrix, transposed
  // going forward
  void multiply(const StageKernels& stage, bool is_backward, const StepBuffers& buffers, int sequences) const {
    const int made = stage.makes_outputs ? outputs_ : shape_.hidden;
    const int read_units = stage.reads_outputs ? outputs_ : shape_.hidden;
    const int inner = stage.published * read_units, outer = stage.tiles * made, pitch = stage.tiles * most_units();
    for (int d = 0; d < shape_.directions; ++d) {
      const T* const w = stage_matrix(stage, d);
      for (int b = 0; b < sequences; ++b)
        for (int u = 0; u < outer; ++u) {
          const int64_t sequence = int64_t{d} * shape_.batch + b;
          static_cast<R*>(buffers.product)[sequence * pitch + u] = static_cast<R>(sum(inner, [&](int64_t k) {
            return double{read<T>(buffers.published, sequence * inner + k)} *
                   read<T>(w, is_backward ? k * made + u : u * int64_t{read_units} + k);
          }));
        }
    }
  }

  // A stage's rows of W_hh, or W_hr.
  const T* stage_matrix(const StageKernels& stage, int direction) const {
    if (stage.is_projection) return static_cast<const T*>(in_.find(of("w_hr", direction)));
    const T* const w = static_cast<const T*>(in_.find(of("w_hh", direction)));
    return w + stage.first_gate * int64_t{shape_.hidden} * outputs_;
  }

  int most_units() const { return std::max(outputs_, shape_.hidden); }

  int most_active(int64_t step) const {
    int most = 0;
    for (int d = 0; d < shape_.directions; ++d)
      if (const int active = shape_.active(shape_.time_of(d, step)); active > most) most = active;
    return most;
  }

  void say(const char* pass) const {
    const char* const plans[] = {"stepwise", "cluster", "grid"};
    std::printf("%s %s\n", pass, plans[static_cast<int>(plan_)]);
  }

  // ---------------------------------------------------------------- forward

  void forward() {
    const bool saves = in_.integer("saves") != 0;
    const int64_t saved_values = int64_t{shape_.directions} * shape_.rows * padded_units(shape_.hidden);
    output_ = elements(shape_.rows * shape_.directions * outputs_);
    h_n_ = elements(h_states_);
    if (saves && cell_.saved > 0) gates_ = elements(cell_.saved * saved_values);
    Memory c_carry;
    if (cell_.has_cell_state) c_n_ = elements(c_states_), c_carry = reals(c_states_);
    if (saves && cell_.has_cell_state) cells_ = reals(saved_values);
    if (saves && cell_.is_normalized()) scales_ = reals(shape_.directions * shape_.rows * cell_.norms);
    norms_.scales = scales_.data();

    Projected<ForwardProblem> p{};
    p.shape = shape_, p.projection.outputs = outputs_, p.row_bytes = row_bytes();
    for (int d = 0; d < shape_.directions; ++d) {
      if (plan_ != Plan::kStepwise) {
        p.weights[d] = in_.find(of("w_hh", d));
        p.projection.weights[d] = in_.find(of("w_hr", d));
      }
      p.b_ih[d] = in_.find(of("b_ih", d)), p.b_hh[d] = in_.find(of("b_hh", d));
    }
    p.h0 = in_.find("h0"), p.c0 = in_.find("c0");
    p.output = output_.data(), p.h_n = h_n_.data(), p.c_n = c_n_.data(), p.c_carry = c_carry.data();
    p.gates = gates_.data(), p.cells = cells_.data();
    for (const int64_t steps : in_.integers("launches")) {
      p.steps = steps;
      Memory input_gates[2];
      for (int d = 0; d < shape_.directions; ++d) {
        input_gates[d] = make_input_gates(d, d == 0 ? p.first_step : shape_.seq_len - p.first_step - steps, steps);
        p.input_gates[d] = input_gates[d].data();
      }
      if (plan_ == Plan::kStepwise)
        run_stepwise(kernels_->forward, p, steps, [&](int64_t step) { return most_active(p.first_step + step); });
      else
        run_persistent(kernels_->forward, p);
      p.first_step += steps;
    }
    expect(p.first_step == shape_.seq_len, "launches");
    say("forward");

    output_.check("output"), h_n_.check("h_n"), gates_.check("gates"), cells_.check("cells"), scales_.check("scales");
    c_n_.check("c_n"), c_carry.check("c_carry");
    write("output", output_), write("h_n", h_n_);
    if (cell_.has_cell_state) write("c_n", c_n_);
  }

  // x W_ih^T of `steps` times from `begin` on
  Memory make_input_gates(int direction, int64_t begin, int64_t steps) const {
    const int64_t first = shape_.first_row(begin), rows = shape_.first_row(begin + steps) - first;
    Memory gates = reals(rows * gate_units_);
    const void *const x = in_.find("x"), *const w = in_.find(of("w_ih", direction));
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = 0; j < gate_units_; ++j)
        static_cast<R*>(gates.data())[row * gate_units_ + j] = static_cast<R>(sum(input_, [&](int64_t i) {
          return double{read<T>(x, (first + row) * input_ + i)} * read<T>(w, j * input_ + i);
        }));
    gates.make_constant();
    return gates;
  }

  // ---------------------------------------------------------------- backward

  void backward() {
    const int64_t dgates = shape_.rows * shape_.directions * gate_units_;
    input_dgates_ = elements(dgates);
    if (cell_.has_hidden_dgates) hidden_dgates_ = elements(dgates);
    if (cell_.is_projected()) output_dgates_ = elements(shape_.rows * shape_.directions * outputs_);
    const Memory grad_h0 = elements(h_states_), grad_c0 = cell_.has_cell_state ? elements(c_states_) : Memory();
    output_.make_constant();
    if (gates_.data()) gates_.make_constant();
    if (cells_.data()) cells_.make_constant();
    if (scales_.data()) scales_.make_constant();
    if (cell_.is_normalized()) norm_dgates_ = elements(shape_.rows * shape_.directions * cell_.dgates * shape_.hidden);
    norms_.dgates = norm_dgates_.data();

    Projected<BackwardProblem> p{};
    p.shape = shape_, p.projection.outputs = outputs_, p.projection.dgates = output_dgates_.data();
    p.row_bytes = row_bytes();
    Memory weights[2], projections[2];
    for (int d = 0; d < shape_.directions && plan_ != Plan::kStepwise; ++d) {
      weights[d] = transposed(in_.find(of("w_hh", d)), gate_units_, outputs_), p.weights[d] = weights[d].data();
      if (!cell_.is_projected()) continue;
      projections[d] = transposed(in_.find(of("w_hr", d)), outputs_, shape_.hidden);
      p.projection.weights[d] = projections[d].data();
    }
    p.grad_output = in_.find("grad_output"), p.grad_h_n = in_.find("grad_h_n"), p.grad_c_n = in_.find("grad_c_n");
    p.h0 = in_.find("h0"), p.c0 = in_.find("c0");
    p.output = output_.data(), p.gates = gates_.data(), p.cells = cells_.data();
    p.input_dgates = input_dgates_.data(), p.hidden_dgates = hidden_dgates_.data();
    p.grad_h0 = grad_h0.data(), p.grad_c0 = grad_c0.data();
    if (plan_ == Plan::kStepwise)
      run_stepwise(kernels_->backward, p, shape_.seq_len,
                   [&](int64_t step) { return most_active(shape_.seq_len - 1 - step); });
    else
      run_persistent(kernels_->backward, p);
    say("backward");

    input_dgates_.check("input_dgates"), hidden_dgates_.check("hidden_dgates"), output_dgates_.check("output_dgates");
    norm_dgates_.check("norm_dgates");
    grad_h0.check("grad_h0"), grad_c0.check("grad_c0");
    write("grad_h0", grad_h0);
    if (cell_.has_cell_state) write("grad_c0", grad_c0);
  }

  // [columns, rows] of `matrix` [rows, columns]
  Memory transposed(const void* matrix, int64_t rows, int64_t columns) const {
    Memory transposed = elements(rows * columns);
    const T* const from = static_cast<const T*>(matrix);
    T* to = static_cast<T*>(transposed.data());
    for (int64_t k = 0; k < columns; ++k)
      for (int64_t j = 0; j < rows; ++j) *to++ = from[j * columns + k];
    transposed.make_constant();
    return transposed;
  }

  void make_parameter_gradients() {
    const int64_t directions = shape_.directions, rows = shape_.rows, hidden = shape_.hidden;
    const Memory previous = elements(directions * rows * outputs_);
    const auto kernel = function<void(Shape, const void*, const void*, void*, Transition)>(
        row_kernels(static_cast<DType>(in_.integer("dtype"))).previous_states);
    emulator::launch({.blocks = shape_.seq_len > 1 ? 2 : 1, .threads = kRowThreads, .seed = seed_++}, [&] {
      Shape shape = shape_;
      shape.hidden = outputs_;
      kernel(shape, output_.data(), in_.find("h0"), previous.data(), {});
    });
    previous.check("previous");
    std::vector<Memory> operands;  // of the stages after the first one
    const int stages = kernels_->backward.stages;
    for (int s = 1; s < stages; ++s) {
      operands.push_back(elements(directions * rows * hidden));
      const auto kernel =
          function<void(Shape, const void*, const void*, const void*, const void*, const void*, void*, Transition)>(
              kernels_->backward.stage[s].operands);
      emulator::launch({.blocks = 2, .threads = kRowThreads, .seed = seed_++}, [&] {
        kernel(shape_, gates_.data(), output_.data(), in_.find("h0"), cells_.data(), in_.find("c0"),
               operands.back().data(), {});
      });
      operands.back().check("operands");
    }
    const auto operand_of = [&](int64_t gate) {
      int stage = 0;
      while (stage + 1 < stages && gate >= kernels_->forward.stage[stage + 1].first_gate) ++stage;
      return stage == 0 ? previous.data() : operands[stage - 1].data();
    };

    const void *const x = in_.find("x"), *const input_dgates = input_dgates_.data(),
                      *const hidden_dgates = cell_.has_hidden_dgates ? hidden_dgates_.data() : input_dgates;
    for (int64_t d = 0; d < directions; ++d) {
      const auto input_dgate = [&](int64_t row, int64_t j) {
        return double{read<T>(input_dgates, (row * directions + d) * gate_units_ + j)};
      };
      const auto hidden_dgate = [&](int64_t row, int64_t j) {
        return double{read<T>(hidden_dgates, (row * directions + d) * gate_units_ + j)};
      };
      const auto sum_rows = [&](const char* name, int64_t units, int64_t columns, const auto& term) {
        std::vector<double> grad;
        for (int64_t j = 0; j < units; ++j)
          for (int64_t i = 0; i < columns; ++i) grad.push_back(sum(rows, [&](int64_t row) { return term(row, j, i); }));
        result_.write("grad_" + of(name, static_cast<int>(d)), grad);
      };
      sum_rows("w_ih", gate_units_, input_,
               [&](int64_t row, int64_t j, int64_t i) { return input_dgate(row, j) * read<T>(x, row * input_ + i); });
      sum_rows("w_hh", gate_units_, outputs_, [&](int64_t row, int64_t j, int64_t i) {
        return hidden_dgate(row, j) * read<T>(operand_of(j / hidden), (d * rows + row) * outputs_ + i);
      });
      if (cell_.is_normalized()) {
        make_norm_gradients(static_cast<int>(d));
        continue;
      }
      sum_rows("b_ih", gate_units_, 1, [&](int64_t row, int64_t j, int64_t) { return input_dgate(row, j); });
      sum_rows("b_hh", gate_units_, 1, [&](int64_t row, int64_t j, int64_t) { return hidden_dgate(row, j); });
      if (!cell_.is_projected()) continue;
      sum_rows("w_hr", outputs_, hidden, [&](int64_t row, int64_t j, int64_t i) {
        return double{read<T>(output_dgates_.data(), (row * directions + d) * outputs_ + j)} *
               read<T>(operands.back().data(), (d * rows + row) * hidden + i);
      });
    }
    std::vector<double> grad_x;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < input_; ++i)
        grad_x.push_back(sum(directions * gate_units_, [&](int64_t j) {
          return double{read<T>(input_dgates, row * directions * gate_units_ + j)} *
                 read<T>(in_.find(of("w_ih", static_cast<int>(j / gate_units_))), j % gate_units_ * input_ + i);
        }));
    result_.write("grad_x", grad_x);
  }

  void make_norm_gradients(int direction) {
    const auto kernel = function<void(Shape, NormGradients)>(kernels_->backward.norm_gradients);
    constexpr int kParts = 3;
    for (int kind = 0; kind < kNormKinds; ++kind) {
      const int64_t numbers = kind == kNormOfCell ? shape_.hidden : gate_units_;
      Memory sums[2];
      for (int i = 0; i < 2; ++i)
        if (cell_.has_weight[kNormWeights[kind][i]]) sums[i] = reals(kParts * numbers);
      if (!sums[1].data()) continue;
      const NormGradients gradients{NormKind(kind), direction,      norm_dgates_.data(), gates_.data(),
                                    kParts,         sums[0].data(), sums[1].data()};
      emulator::launch(
          {.blocks = 2 * kParts, .threads = kRowThreads, .shared_bytes = 2 * kRowThreads * sizeof(R), .seed = seed_++},
          [&] { kernel(shape_, gradients); });
      for (int i = 0; i < 2; ++i) {
        const std::string name = of((std::string("grad_") + kWeightNames[kNormWeights[kind][i]]).c_str(), direction);
        sums[i].check(name);
        if (!sums[i].data()) continue;
        std::vector<double> grad;
        for (int64_t n = 0; n < numbers; ++n)
          grad.push_back(sum(kParts, [&](int64_t part) {
            return static_cast<double>(static_cast<const R*>(sums[i].data())[part * numbers + n]);
          }));
        result_.write(name, grad);
      }
    }
  }

  // ---------------------------------------------------------------- memory

  static Memory elements(int64_t count) { return Memory(static_cast<size_t>(count) * sizeof(T)); }
  static Memory reals(int64_t count, unsigned char fill = Memory::kPoison) {
    return Memory(static_cast<size_t>(count) * sizeof(R), fill);
  }
  static std::string of(const char* name, int direction) { return name + ("[" + std::to_string(direction) + "]"); }

  void write(const char* name, const Memory& memory) {
    std::vector<double> values(memory.bytes() / sizeof(T));
    for (size_t i = 0; i < values.size(); ++i) values[i] = read<T>(memory.data(), static_cast<int64_t>(i));
    result_.write(name, values);
  }

  const Records& in_;
  RecordWriter& result_;
  const CellInfo& cell_;
  const Plan plan_;
  const int64_t input_;
  uint64_t seed_;
  const CellKernels* kernels_ = nullptr;
  Shape shape_{};
  Partition part_{};
  int outputs_ = 0;                      // units of h
  int64_t gate_units_ = 0;               // values of a row's gates in one direction
  int64_t sequences_ = 0;                // of both directions
  int64_t h_states_ = 0, c_states_ = 0;  // values of the states
  Norms norms_{};
  Memory offsets_, output_, h_n_, c_n_, gates_, cells_, scales_, input_dgates_, hidden_dgates_, output_dgates_,
      norm_dgates_;
};

}  // namespace seqkernels::cuda
