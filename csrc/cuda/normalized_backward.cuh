// The backward pass of a normalised row, whose terms are those of normalized.cuh.
#pragma once
#include "backward.cuh"
#include "normalized.cuh"

namespace seqkernels::cuda {

template <class Cell, class T>
class NormalizedBackward : NormalizedRow<Cell, T, 1, Cell::kGates> {
  using Base = NormalizedRow<Cell, T, 1, Cell::kGates>;
  using typename Base::R, typename Base::V;
  using Pass = Backward<Cell, T>;
  using Inputs = typename Pass::Inputs;
  using Base::at, Base::for_units, Base::group, Base::make_gates, Base::normalized, Base::size, Base::weight;
  using Base::c_, Base::carried_, Base::carried_apart_, Base::h_, Base::norms_, Base::product_, Base::published_,
      Base::sequence_, Base::sums_;
  using Base::kGates, Base::kAllGates, Base::kSides, Base::kGroups, Base::kReserved;
  static constexpr int kLastStage = Cell::kStages - 1;

 public:
  using Problem = BackwardProblem;
  using Element = T;

  SEQKERNELS_DEVICE NormalizedBackward(const Problem& p, const StepBuffers& buffers, const Norms& norms,
                                       BlockSums<R>& sums, int64_t sequence)
      : Base(p.shape, buffers, norms, sums, sequence), p_(p) {}

  SEQKERNELS_DEVICE void run(int64_t iteration) {
    if (iteration == 0)
      for_units([&](int u) {
        const typename Pass::State state = Pass::initial(p_, at(u));
        h_[u] = state.h, c_[u] = state.c;
      });
    const int64_t time = Pass::time_of(p_, sequence_.direction, iteration);
    if (iteration < p_.shape.seq_len && has_step(p_.shape, p_.transition, time, sequence_.column))
      step(Pass::walk(p_, sequence_.direction, iteration));
    else
      idle();
    if (iteration < p_.shape.seq_len) return;
    for_units([&](int u) {
      const typename Pass::State state{h_[u], c_[u]};
      Pass::finish(p_, at(u), state);
    });
  }

 private:
  // Of the numbers of a group: the mean of the gradients of their unit values, and that of the products of both.
  struct Means {
    R grad, product;
  };

  SEQKERNELS_DEVICE void idle() {
    for_units([&](int u) {
      h_[u] += product_[u] * mask_at<typename Pass::Units, T>(p_, at(u));  // of a step ago
      product_[u] = 0;  // the next product may leave out rows that have no step
      for (int g = 0; g < kGates; ++g) published_[g * p_.shape.hidden + u] = from_real<T>(0);
    });
  }

  SEQKERNELS_DEVICE void step(const Walk& walk) {
    const int64_t row = Base::row_at(walk.time());
    const typename Pass::Reader reader(p_, sequence_, walk.time());
    is_reset_ = is_reset(p_.shape, p_.transition, sequence_.direction, walk.time(), sequence_.column);
    const int64_t before = p_.shape.time_before(sequence_.direction, walk.time());
    const bool is_first = !has_step(p_.shape, p_.transition, before, sequence_.column);
    const auto load = [&](int u) {
      Inputs inputs = Pass::inputs_of(p_, reader.template load<kLastStage>(p_, walk, at(u), u, is_first));
      if (is_reset_) inputs.prev.h = 0, inputs.prev.c = 0;
      return inputs;
    };
    const int64_t of_row = row * p_.shape.directions + sequence_.direction;
    dgates_ = static_cast<T*>(norms_.dgates) + of_row * Cell::kDgates * p_.shape.hidden;
    scales_ = static_cast<const R*>(norms_.scales) + Base::scales_at(row);
    // The gradient of this step's state, of h and of c, without what zoneout lets pass by the cell.
    const auto grad_of = [&](int u, const Inputs& inputs) {
      const auto crossing = crossing_at<typename Pass::Units, R>(p_, at(u), walk.time());
      R h = h_[u] + product_[u] * mask_at<typename Pass::Units, T>(p_, at(u)), c = c_[u];
      h += inputs.grad_output;
      if (Cell::kHasCellState && p_.grad_cells) c += read<T>(p_.grad_cells, c_row_index(p_, at(u), row));
      carried_[u] = pass_by(crossing.zoneout_h, h);
      if constexpr (Cell::kHasCellState) carried_[carried_apart_ + u] = pass_by(crossing.zoneout_c, c);
      return cells::State<V>{h, c};
    };

    Means of_cell[1], means[kSides * kGroups];
    if constexpr (Cell::kNormalizesCell)
      find_means<kSides>(of_cell, [&](int u, const auto& add) {
        const Inputs inputs = load(u);
        V saved[Cell::kSaved], dgates[Cell::kDgates];
        make_saved(u, inputs, saved);
        keep<1>(u, Cell::backward(cells::Stage<1>(), saved, inputs.prev, inputs.now, grad_of(u, inputs), dgates));
        write_dgates(u, kGates, dgates);
        add(kSides, 0, inputs.saved[kReserved - 1], dgates);
      });
    find_means<0>(means, [&](int u, const auto& add) {
      const Inputs inputs = load(u);
      V saved[Cell::kSaved], dgates[Cell::kDgates];
      make_saved(u, inputs, saved);
      if constexpr (Cell::kNormalizesCell) {
        const V operand = gradient(kSides, 0, u, inputs.saved[kReserved - 1], of_cell);
        const cells::State<V> grad{h_[u], c_[u]};
        keep<0>(u, Cell::backward(cells::Stage<0>(), saved, inputs.prev, inputs.now, grad, operand, dgates));
      } else {
        keep<0>(u, Cell::backward(cells::Stage<0>(), saved, inputs.prev, inputs.now, grad_of(u, inputs), dgates));
      }
      write_dgates(u, 0, dgates);
      SEQKERNELS_UNROLL
      for (int i = 0; i < kSides * kGates; ++i) add(i / kGates, i % kGates, inputs.saved[i], dgates);
    });

    T* const results[] = {static_cast<T*>(p_.input_dgates), static_cast<T*>(p_.hidden_dgates)};
    for_units([&](int u) {
      const Inputs inputs = load(u);
      SEQKERNELS_UNROLL
      for (int i = 0; i < kSides * kGates; ++i) {
        const int side = i / kGates, at = i % kGates * p_.shape.hidden + u;
        const T da = from_real<T>(gradient(side, i % kGates, u, inputs.saved[i], means + side * kGroups));
        results[side][of_row * kGates * p_.shape.hidden + at] = da;
        if (side == kSides - 1) published_[at] = is_reset_ ? from_real<T>(0) : da;
      }
    });
  }

  // Makes what the cell had saved once more.
  SEQKERNELS_DEVICE void make_saved(int u, const Inputs& inputs, V* saved) const {
    V input_gates[kAllGates], hidden_gates[kAllGates];
    const auto value = [&](int norm, int g) { return inputs.saved[norm * kGates + g]; };
    make_gates(u, value, input_gates, hidden_gates);
    Cell::forward(cells::Stage<0>(), input_gates, hidden_gates, inputs.prev, saved);
    if constexpr (Cell::kNormalizesCell) {
      hidden_gates[kGates] = normalized(kSides, 0, u, value(kSides, 0));
      Cell::forward(cells::Stage<1>(), input_gates, hidden_gates, inputs.prev, saved);
    }
  }

  // What is left of the gradients for the stage or the step before: nothing, where a reset is between.
  template <int stage>
  SEQKERNELS_DEVICE void keep(int u, const cells::State<V>& left) {
    const bool ends = stage == 0 && is_reset_;
    h_[u] = ends ? R(0) : left.h.v + (stage == 0 ? carried_[u] : R(0));
    if constexpr (Cell::kHasCellState)
      c_[u] = ends ? R(0) : left.c.v + (stage == 0 ? carried_[carried_apart_ + u] : R(0));
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
    for_units([&](int u) {
      visit(u, [&](int of, int g, R value, const V* dgates) {
        const int i = group(of, g) - norm * kGroups;
        const R grad = weight(of, g, u) * dgates[cells::norm_dgate<Cell>(of, g)].v;
        sums[i] += grad, sums[kCount + i] += grad * value;
      });
    });
    sums_.add_up(sums);
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const R numbers = size(norm + i / kGroups, norm * kGroups + i);
      means[i] = {sums[i] / numbers, sums[kCount + i] / numbers};
    }
  }

  // The gradient of what was normalised; `means` are those of the norm's groups.
  SEQKERNELS_DEVICE R gradient(int norm, int gate, int u, R value, const Means* means) const {
    const Means& mean = means[cells::norm_group<Cell>(norm, gate)];
    const R dgate = to_real(dgates_[cells::norm_dgate<Cell>(norm, gate) * p_.shape.hidden + u]);
    const R grad = weight(norm, gate, u) * dgate;
    return scales_[group(norm, gate)] * (grad - mean.grad - value * mean.product);
  }

  const Problem& p_;
  bool is_reset_ = false;  // the step starts from zeros
  T* dgates_;              // [kDgates, H] of the row
  const R* scales_;
};

}  // namespace seqkernels::cuda
