// Steps of cells with layer normalisation (cells/cell.h), in the stepwise plan: one launch a step, with all of its stages, after the
// product with W_hh. A block has a row, a step of one sequence in one direction, for each unit of it needs the mean and variance
// of all. Input gates are normalised here too, so that both sides wait for the same sums.
//
// With unit values v = (a - mean a) / sqrt(var a + eps) of n numbers a, y = w v + b, and the gradients g = w dy of v:
//
//   da = (g - mean g - v mean(g v)) / sqrt(var a + eps)        dw = sum over rows of dy v        db = sum over rows of dy
//
// A thread has the same units in all parts of a step and in all steps, so what it leaves in memory it finds there again.
//
// T is the element type, R what its arithmetic is done in (numbers.cuh); `norm` is the index of a norm, as in cells/cell.h.
#pragma once
#include "backward.cuh"
#include "forward.cuh"

namespace seqkernels::cuda {

// The kind of a norm by its index, and the other way; where only the sum is normalised, that of the input side is the same one.
template <class Cell>
SEQKERNELS_DEVICE constexpr NormKind norm_kind(int norm) {
  return NormKind(norm + kNormOfHidden + 1 - cells::kNormSides<Cell>);
}
template <class Cell>
SEQKERNELS_DEVICE constexpr int norm_of(NormKind kind) {
  return kind == kNormOfInput ? 0 : kind - (kNormOfHidden + 1 - cells::kNormSides<Cell>);
}

// Adds up numbers of all threads of a block of kStepThreads. The sums are the same in every thread, and in every run.
template <class R>
class BlockSums {
 public:
  template <int kCount>
  SEQKERNELS_DEVICE void add_up(R (&numbers)[kCount]) {
    static_assert(kCount <= kMostSums);
    R* const partials = static_cast<R*>(static_cast<void*>(shared_memory())) + (is_odd_ ? kMostSums * kWarps : 0);
    is_odd_ = !is_odd_;  // the others may still read the sums before
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      SEQKERNELS_UNROLL
      for (int mask = kWarpSize / 2; mask > 0; mask /= 2) numbers[i] += shuffle_xor(numbers[i], mask);
      if (thread_index() % kWarpSize == 0) partials[i * kWarps + thread_index() / kWarpSize] = numbers[i];
    }
    block_barrier();
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      numbers[i] = partials[i * kWarps];
      SEQKERNELS_UNROLL
      for (int warp = 1; warp < kWarps; ++warp) numbers[i] += partials[i * kWarps + warp];
    }
  }

 private:
  static constexpr int kWarps = kStepThreads / kWarpSize;
  bool is_odd_ = false;
};

// What both passes need of a row: where its numbers are, and its gates from unit values.
template <class CellType, class T, int kTiles, int kPublished>
class NormalizedRow {
 public:
  using Cell = CellType;
  using Element = T;
  using R = Real<T>;
  using V = Value<R, is_short<T>>;
  static constexpr int kGates = Cell::kGates, kAllGates = kGates + Cell::kNormalizesCell;
  static constexpr int kReserved = cells::kReserved<Cell>;
  // A norm's groups are numbered from norm * kGroups on.
  static constexpr int kSides = cells::kNormSides<Cell>, kGroups = Cell::kNormGroups, kAllGroups = cells::kNormsOfRow<Cell>;

 protected:
  SEQKERNELS_DEVICE NormalizedRow(const Shape& shape, const StepBuffers& buffers, const Norms& norms, BlockSums<R>& sums,
                                  int64_t sequence)
      : shape_(shape),
        norms_(norms),
        sums_(sums),
        sequence_{static_cast<int>(sequence / shape.batch), static_cast<int>(sequence % shape.batch), 0},
        h_(static_cast<R*>(buffers.h) + sequence * shape.hidden),
        c_(static_cast<R*>(buffers.c) + sequence * shape.hidden),
        carried_(static_cast<R*>(buffers.carried) + sequence * shape.hidden),
        product_(static_cast<R*>(buffers.product) + sequence * kTiles * shape.hidden),
        published_(static_cast<T*>(buffers.published) + sequence * kPublished * shape.hidden) {}

  template <class Visit>
  SEQKERNELS_DEVICE void for_units(const Visit& visit) const {
    for (int u = thread_index(); u < shape_.hidden; u += block_threads()) visit(u);
  }
  SEQKERNELS_DEVICE UnitCoord at(int unit) const { return {sequence_.direction, sequence_.column, unit}; }
  SEQKERNELS_DEVICE int64_t row_at(int64_t time) const { return shape_.first_row(time) + sequence_.column; }

  // What backward reads of a row: unit values [kReserved, Hp], and the factors that made them [kAllGroups].
  SEQKERNELS_DEVICE int64_t scales_at(int64_t row) const {
    return (static_cast<int64_t>(sequence_.direction) * shape_.rows + row) * kAllGroups;
  }

  SEQKERNELS_DEVICE static constexpr int group(int norm, int gate) {
    return norm * kGroups + cells::norm_group<Cell>(norm, gate);
  }
  // How many numbers of a row a group has.
  SEQKERNELS_DEVICE R size(int norm, int group) const {
    int gates = 0;
    SEQKERNELS_UNROLL
    for (int g = 0; g < cells::norm_gates<Cell>(norm); ++g) gates += NormalizedRow::group(norm, g) == group;
    return static_cast<R>(gates) * static_cast<R>(shape_.hidden);
  }

  SEQKERNELS_DEVICE R weight(int norm, int gate, int unit) const {
    return read<T>(norms_.weights[norm_kind<Cell>(norm)][sequence_.direction], gate * shape_.hidden + unit);
  }
  SEQKERNELS_DEVICE R bias(NormKind kind, int gate, int unit) const {
    const void* const biases = norms_.biases[kind][sequence_.direction];
    return biases ? read<T>(biases, gate * shape_.hidden + unit) : R(0);
  }
  SEQKERNELS_DEVICE V normalized(int norm, int gate, int unit, R value) const {
    return weight(norm, gate, unit) * value + bias(norm_kind<Cell>(norm), gate, unit);
  }
  // The gates of the first stage from value(norm, gate), the unit values.
  template <class Values>
  SEQKERNELS_DEVICE void make_gates(int unit, const Values& value, V* input_gates, V* hidden_gates) const {
    SEQKERNELS_UNROLL
    for (int g = 0; g < kGates; ++g) {
      if constexpr (Cell::kNorm == cells::Norm::kSum)
        input_gates[g] = bias(kNormOfInput, g, unit);
      else
        input_gates[g] = normalized(0, g, unit, value(0, g));
      hidden_gates[g] = normalized(kSides - 1, g, unit, value(kSides - 1, g));
    }
  }

  const Shape& shape_;
  const Norms& norms_;
  BlockSums<R>& sums_;
  const UnitCoord sequence_;  // its first unit
  R *const h_, *const c_, *const carried_, *const product_;
  T* const published_;
};

template <class Cell, class T>
class NormalizedForward : NormalizedRow<Cell, T, Cell::kGates, 1> {
  using Base = NormalizedRow<Cell, T, Cell::kGates, 1>;
  using typename Base::R, typename Base::V;
  using Pass = Forward<Cell, T>;
  using Base::kGates, Base::kSides, Base::kGroups, Base::kAllGroups, Base::kReserved;
  static_assert(Cell::kCarried <= 1);

 public:
  using Problem = ForwardProblem;
  using Element = T;

  SEQKERNELS_DEVICE NormalizedForward(const Problem& p, const StepBuffers& buffers, const Norms& norms, BlockSums<R>& sums,
                                      int64_t sequence)
      : Base(p.shape, buffers, norms, sums, sequence), p_(p) {}

  // Iteration 0 publishes the initial state. A sequence without a step keeps its own, and what it has published.
  SEQKERNELS_DEVICE void run(int64_t iteration) {
    if (iteration == 0)
      this->for_units([&](int u) {
        const typename Pass::State state = Pass::initial(p_, this->at(u));
        this->c_[u] = state.c;
        publish(u, state.h);
      });
    if (iteration > 0) step(p_.first_step + iteration - 1);
    if (iteration == p_.steps)
      this->for_units([&](int u) {
        typename Pass::State state{};
        state.h = this->h_[u], state.c = this->c_[u];
        Pass::finish(p_, this->at(u), state);
      });
  }

 private:
  struct Scaling {
    R mean, scale;
    SEQKERNELS_DEVICE R operator()(R number) const { return (number - mean) * scale; }
  };

  SEQKERNELS_DEVICE void publish(int u, R h) {
    this->published_[u] = from_real<T>(h);
    this->h_[u] = to_real(this->published_[u]);
  }

  SEQKERNELS_DEVICE void step(int64_t step) {
    const Walk walk = Pass::walk(p_, this->sequence_.direction, step);
    if (this->sequence_.column >= walk.active()) return;
    const int64_t row = this->row_at(walk.time());
    const typename Pass::Reader reader(p_, this->sequence_, walk.time());
    output_ = static_cast<T*>(p_.output) + output_index(p_.shape, this->sequence_, row);
    saved_ = p_.gates ? static_cast<T*>(p_.gates) + saved_index(p_.shape, this->sequence_, row, kReserved) : nullptr;
    cells_ = static_cast<R*>(p_.cells) + saved_index(p_.shape, this->sequence_, row, 1);

    // What is normalised of a unit: f(norm, gate, number).
    const auto for_numbers = [&](int u, const auto& f) {
      const auto inputs = reader.template load<0>(p_, walk, this->sequence_, u);
      SEQKERNELS_UNROLL
      for (int g = 0; g < kGates; ++g) {
        const R product = this->product_[g * p_.shape.hidden + u];
        if constexpr (kSides == 2) f(0, g, inputs.gates[g]);
        f(kSides - 1, g, kSides == 2 ? product : product + inputs.gates[g]);
      }
    };
    Scaling scalings[kSides * kGroups];
    find_scalings<0>(row, for_numbers, scalings);
    this->for_units([&](int u) {
      R values[kSides * kGates];
      for_numbers(u, [&](int norm, int g, R number) {
        values[norm * kGates + g] = save(norm, g, u, scalings[this->group(norm, g)](number));
      });
      V input_gates[Base::kAllGates], hidden_gates[Base::kAllGates], saved[Cell::kSaved];
      this->make_gates(u, [&](int norm, int g) { return values[norm * kGates + g]; }, input_gates, hidden_gates);
      const cells::State<V> prev{this->h_[u], this->c_[u]};
      const cells::State<V> state = Cell::forward(cells::Stage<0>(), input_gates, hidden_gates, prev, saved);
      if constexpr (Cell::kNormalizesCell) {
        this->c_[u] = state.c.v;
        if constexpr (Cell::kCarried > 0) this->carried_[u] = saved[0].v;
      } else {
        end_step(u, state);
      }
    });
    if constexpr (Cell::kNormalizesCell) normalize_cell(row);
  }

  SEQKERNELS_DEVICE void normalize_cell(int64_t row) {
    Scaling scaling[1];
    find_scalings<kSides>(row, [&](int u, const auto& f) { f(kSides, 0, this->c_[u]); }, scaling);
    this->for_units([&](int u) {
      V input_gates[Base::kAllGates], hidden_gates[Base::kAllGates], saved[Cell::kSaved];
      const R c = this->c_[u];
      hidden_gates[kGates] = this->normalized(kSides, 0, u, save(kSides, 0, u, scaling[0](c)));
      if constexpr (Cell::kCarried > 0) saved[0] = this->carried_[u];
      const cells::State<V> made{this->h_[u], c};
      end_step(u, Cell::forward(cells::Stage<1>(), input_gates, hidden_gates, made, saved));
    });
  }

  // Of the groups of norms from `norm` on.
  template <int norm, int kCount, class Numbers>
  SEQKERNELS_DEVICE void find_scalings(int64_t row, const Numbers& for_numbers, Scaling (&scalings)[kCount]) {
    constexpr int kFirst = norm * kGroups;
    R sums[kCount] = {}, squares[kCount] = {};
    this->for_units([&](int u) {
      for_numbers(u, [&](int of, int g, R number) { sums[this->group(of, g) - kFirst] += number; });
    });
    this->sums_.add_up(sums);
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) scalings[i].mean = sums[i] / this->size(norm + i / kGroups, kFirst + i);
    this->for_units([&](int u) {
      for_numbers(u, [&](int of, int g, R number) {
        const int i = this->group(of, g) - kFirst;
        squares[i] += (number - scalings[i].mean) * (number - scalings[i].mean);
      });
    });
    this->sums_.add_up(squares);
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const R variance = squares[i] / this->size(norm + i / kGroups, kFirst + i);
      scalings[i].scale = 1 / sqrt_of(variance + static_cast<R>(this->norms_.eps));
      if (this->norms_.scales && thread_index() == 0)
        static_cast<R*>(this->norms_.scales)[this->scales_at(row) + kFirst + i] = scalings[i].scale;
    }
  }

  SEQKERNELS_DEVICE R save(int norm, int gate, int unit, R value) const {
    if (saved_) saved_[(norm * kGates + gate) * p_.shape.padded + unit] = from_real<T>(value);
    return value;
  }

  SEQKERNELS_DEVICE void end_step(int u, const cells::State<V>& state) {
    publish(u, state.h.v);
    output_[u] = this->published_[u];
    if constexpr (Cell::kHasCellState) {
      this->c_[u] = state.c.v;
      if (saved_) cells_[u] = state.c.v;
    }
  }

  const Problem& p_;
  T *output_, *saved_;
  R* cells_;
};

template <class Cell, class T>
class NormalizedBackward : NormalizedRow<Cell, T, 1, Cell::kGates> {
  using Base = NormalizedRow<Cell, T, 1, Cell::kGates>;
  using typename Base::R, typename Base::V;
  using Pass = Backward<Cell, T>;
  using Inputs = typename Pass::Inputs;
  using Base::kGates, Base::kSides, Base::kGroups, Base::kAllGroups, Base::kReserved;
  static constexpr int kLastStage = Cell::kStages - 1;

 public:
  using Problem = BackwardProblem;
  using Element = T;

  SEQKERNELS_DEVICE NormalizedBackward(const Problem& p, const StepBuffers& buffers, const Norms& norms,
                                       BlockSums<R>& sums, int64_t sequence)
      : Base(p.shape, buffers, norms, sums, sequence), p_(p) {}

  SEQKERNELS_DEVICE void run(int64_t iteration) {
    if (iteration == 0)
      this->for_units([&](int u) {
        const typename Pass::State state = Pass::initial(p_, this->at(u));
        this->h_[u] = state.h, this->c_[u] = state.c;
      });
    const int64_t time = Pass::time_of(p_, this->sequence_.direction, iteration);
    if (iteration < p_.shape.seq_len && this->sequence_.column < p_.shape.active(time))
      step(Pass::walk(p_, this->sequence_.direction, iteration));
    else
      idle();
    if (iteration == p_.shape.seq_len)
      this->for_units([&](int u) { Pass::finish(p_, this->at(u), {this->h_[u], this->c_[u]}); });
  }

 private:
  // Of the numbers of a group: the mean of the gradients of their unit values, and that of the products of both.
  struct Means {
    R grad, product;
  };

  SEQKERNELS_DEVICE void idle() {
    this->for_units([&](int u) {
      this->h_[u] += this->product_[u];  // of a step ago
      this->product_[u] = 0;             // the next product may leave out rows that have no step
      for (int g = 0; g < kGates; ++g) this->published_[g * p_.shape.hidden + u] = from_real<T>(0);
    });
  }

  SEQKERNELS_DEVICE void step(const Walk& walk) {
    const int64_t row = this->row_at(walk.time());
    const typename Pass::Reader reader(p_, this->sequence_, walk.time());
    const auto load = [&](int u) { return reader.template load<kLastStage>(p_, walk, this->at(u), u); };
    const int64_t of_row = row * p_.shape.directions + this->sequence_.direction;
    dgates_ = static_cast<T*>(this->norms_.dgates) + of_row * Cell::kDgates * p_.shape.hidden;
    scales_ = static_cast<const R*>(this->norms_.scales) + this->scales_at(row);
    // The gradient of this step's state: of h, of c.
    const auto grad_of = [&](int u, const Inputs& inputs) {
      return cells::State<V>{this->h_[u] + this->product_[u] + inputs.grad_output, this->c_[u]};
    };

    Means of_cell[1], means[kSides * kGroups];
    if constexpr (Cell::kNormalizesCell)
      find_means<kSides>(of_cell, [&](int u, const auto& add) {
        const Inputs inputs = load(u);
        V saved[Cell::kSaved], dgates[Cell::kDgates];
        make_saved(u, inputs, saved);
        keep(u, Cell::backward(cells::Stage<1>(), saved, inputs.prev, inputs.now, grad_of(u, inputs), dgates));
        write_dgates(u, kGates, dgates);
        add(kSides, 0, inputs.saved[kReserved - 1], dgates);
      });
    find_means<0>(means, [&](int u, const auto& add) {
      const Inputs inputs = load(u);
      V saved[Cell::kSaved], dgates[Cell::kDgates];
      make_saved(u, inputs, saved);
      if constexpr (Cell::kNormalizesCell) {
        const V operand = gradient(kSides, 0, u, inputs.saved[kReserved - 1], of_cell);
        const cells::State<V> grad{this->h_[u], this->c_[u]};
        keep(u, Cell::backward(cells::Stage<0>(), saved, inputs.prev, inputs.now, grad, operand, dgates));
      } else {
        keep(u, Cell::backward(cells::Stage<0>(), saved, inputs.prev, inputs.now, grad_of(u, inputs), dgates));
      }
      write_dgates(u, 0, dgates);
      SEQKERNELS_UNROLL
      for (int i = 0; i < kSides * kGates; ++i) add(i / kGates, i % kGates, inputs.saved[i], dgates);
    });

    T* const results[] = {static_cast<T*>(p_.input_dgates), static_cast<T*>(p_.hidden_dgates)};
    this->for_units([&](int u) {
      const Inputs inputs = load(u);
      SEQKERNELS_UNROLL
      for (int i = 0; i < kSides * kGates; ++i) {
        const int side = i / kGates, at = i % kGates * p_.shape.hidden + u;
        const T da = from_real<T>(gradient(side, i % kGates, u, inputs.saved[i], means + side * kGroups));
        results[side][of_row * kGates * p_.shape.hidden + at] = da;
        if (side == kSides - 1) this->published_[at] = da;
      }
    });
  }

  // Makes what the cell had saved once more.
  SEQKERNELS_DEVICE void make_saved(int u, const Inputs& inputs, V* saved) const {
    V input_gates[Base::kAllGates], hidden_gates[Base::kAllGates];
    const auto value = [&](int norm, int g) { return inputs.saved[norm * kGates + g]; };
    this->make_gates(u, value, input_gates, hidden_gates);
    Cell::forward(cells::Stage<0>(), input_gates, hidden_gates, inputs.prev, saved);
    if constexpr (Cell::kNormalizesCell) {
      hidden_gates[kGates] = this->normalized(kSides, 0, u, value(kSides, 0));
      Cell::forward(cells::Stage<1>(), input_gates, hidden_gates, inputs.prev, saved);
    }
  }

  // What is left of the gradients for the stage or the step before.
  SEQKERNELS_DEVICE void keep(int u, const cells::State<V>& left) {
    this->h_[u] = left.h.v;
    if constexpr (Cell::kHasCellState) this->c_[u] = left.c.v;
  }

  // Leaves the gradients of gates in `dgates` as what is written of them.
  SEQKERNELS_DEVICE void write_dgates(int u, int first, V (&dgates)[Cell::kDgates]) {
    const int end = first == 0 ? Cell::kDgates - Cell::kNormalizesCell : Cell::kDgates;
    SEQKERNELS_UNROLL
    for (int k = first; k < end; ++k) {
      const T dgate = from_real<T>(dgates[k].v);
      dgates_[k * p_.shape.hidden + u] = dgate;
      dgates[k] = to_real(dgate);
    }
  }

  // Of the groups of norms from `norm` on. `visit` makes a unit's dgates and calls add(norm, gate, unit value, dgates).
  template <int norm, int kCount, class Visit>
  SEQKERNELS_DEVICE void find_means(Means (&means)[kCount], const Visit& visit) {
    R sums[2 * kCount] = {};
    this->for_units([&](int u) {
      visit(u, [&](int of, int g, R value, const V* dgates) {
        const int i = this->group(of, g) - norm * kGroups;
        const R grad = this->weight(of, g, u) * dgates[cells::norm_dgate<Cell>(of, g)].v;
        sums[i] += grad, sums[kCount + i] += grad * value;
      });
    });
    this->sums_.add_up(sums);
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const R size = this->size(norm + i / kGroups, norm * kGroups + i);
      means[i] = {sums[i] / size, sums[kCount + i] / size};
    }
  }

  // The gradient of what was normalised; `means` are those of the norm's groups.
  SEQKERNELS_DEVICE R gradient(int norm, int gate, int u, R value, const Means* means) const {
    const Means& mean = means[cells::norm_group<Cell>(norm, gate)];
    const R dgate = to_real(dgates_[cells::norm_dgate<Cell>(norm, gate) * p_.shape.hidden + u]);
    const R grad = this->weight(norm, gate, u) * dgate;
    return scales_[this->group(norm, gate)] * (grad - mean.grad - value * mean.product);
  }

  const Problem& p_;
  T* dgates_;  // [kDgates, H] of the row
  const R* scales_;
};

template <class Row>
SEQKERNELS_KERNEL SEQKERNELS_LAUNCH_BOUNDS(kStepThreads, 1)
    normalized_kernel(const typename Row::Problem p, const StepBuffers buffers, const int64_t iteration, const Norms norms) {
  BlockSums<Real<typename Row::Element>> sums;
  const int64_t sequences = static_cast<int64_t>(p.shape.directions) * p.shape.batch;
  for (int64_t i = block_index(); i < sequences; i += grid_threads() / block_threads())
    Row(p, buffers, norms, sums, i).run(iteration);
}

// The gradients of the weights and biases of a norm, sums over all rows. A block has 32 numbers at a time, one a lane, and each of
// its warps some of the rows.
template <class Cell, class T>
SEQKERNELS_KERNEL norm_gradients_kernel(const Shape shape, const NormGradients n) {
  using R = Real<T>;
  constexpr int kReserved = cells::kReserved<Cell>;
  const int norm = norm_of<Cell>(n.kind), warps = block_threads() / kWarpSize;
  const int warp = thread_index() / kWarpSize, lane = thread_index() % kWarpSize;
  const int numbers = cells::norm_gates<Cell>(norm) * shape.hidden;
  R* const partials = static_cast<R*>(static_cast<void*>(shared_memory()));  // [2, warps, 32]
  for (int64_t first = int64_t{block_index()} * kWarpSize; first < numbers; first += grid_threads() / warps) {
    const int i = static_cast<int>(first) + lane;
    R of_weight = 0, of_bias = 0;
    if (i < numbers) {
      const int gate = i / shape.hidden, u = i % shape.hidden;
      const int64_t dgate = cells::norm_dgate<Cell>(norm, gate) * int64_t{shape.hidden} + u;
      const int64_t value = (norm * Cell::kGates + gate) * int64_t{shape.padded} + u;
      SEQKERNELS_UNROLL_BY(4)
      for (int64_t row = warp; row < shape.rows; row += warps) {
        const int64_t of_row = row * shape.directions + n.direction, saved_row = n.direction * shape.rows + row;
        const R dy = read<T>(n.dgates, of_row * Cell::kDgates * shape.hidden + dgate);
        of_weight += dy * read<T>(n.values, saved_row * kReserved * shape.padded + value);
        of_bias += dy;
      }
    }
    partials[warp * kWarpSize + lane] = of_weight;
    partials[(warps + warp) * kWarpSize + lane] = of_bias;
    block_barrier();
    if (warp == 0 && i < numbers) {
      for (int other = 1; other < warps; ++other) {
        of_weight += partials[other * kWarpSize + lane];
        of_bias += partials[(warps + other) * kWarpSize + lane];
      }
      if (n.weight) write<T>(n.weight, i, of_weight);
      if (n.bias) write<T>(n.bias, i, of_bias);
    }
    block_barrier();  // before others' sums come in the place of these
  }
}

}  // namespace seqkernels::cuda
