// The forward pass of a normalised row, whose terms are those of normalized.cuh.
#pragma once
#include "forward.cuh"
#include "normalized.cuh"

namespace seqkernels::cuda {

template <class Cell, class T>
class NormalizedForward : NormalizedRow<Cell, T, Cell::kGates, 1> {
  using Base = NormalizedRow<Cell, T, Cell::kGates, 1>;
  using typename Base::R, typename Base::V;
  using Pass = Forward<Cell, T>;
  using Base::at, Base::for_units, Base::group, Base::make_gates, Base::normalized, Base::size;
  using Base::c_, Base::carried_, Base::carried_apart_, Base::h_, Base::norms_, Base::product_, Base::published_,
      Base::sequence_, Base::sums_;
  using Base::kGates, Base::kAllGates, Base::kSides, Base::kGroups, Base::kReserved;
  static_assert(Cell::kCarried <= 1);

 public:
  using Problem = ForwardProblem;
  using Element = T;

  SEQKERNELS_DEVICE NormalizedForward(const Problem& p, const StepBuffers& buffers, const Norms& norms,
                                      BlockSums<R>& sums, int64_t sequence)
      : Base(p.shape, buffers, norms, sums, sequence), p_(p) {}

  // Iteration 0 publishes the initial state. A sequence without a step keeps its own, and what it has published.
  SEQKERNELS_DEVICE void run(int64_t iteration) {
    if (iteration == 0)
      for_units([&](int u) {
        const typename Pass::State state = Pass::initial(p_, at(u));
        c_[u] = state.c;
        publish(u, state.h);
      });
    if (iteration > 0) step(p_.first_step + iteration - 1);
    if (iteration == p_.steps)
      for_units([&](int u) {
        typename Pass::State state{};
        state.h = h_[u], state.c = c_[u];
        Pass::finish(p_, at(u), state);
      });
  }

 private:
  struct Scaling {
    R mean, scale;
    SEQKERNELS_DEVICE R operator()(R number) const { return (number - mean) * scale; }
  };

  // h, and what of it meets W_hh.
  SEQKERNELS_DEVICE T publish(int u, R h) {
    const T rounded = from_real<T>(h);
    h_[u] = to_real(rounded);
    published_[u] = from_real<T>(h_[u] * mask_at<typename Pass::Units, T>(p_, at(u)));
    return rounded;
  }

  SEQKERNELS_DEVICE void step(int64_t step) {
    const Walk walk = Pass::walk(p_, sequence_.direction, step);
    time_ = walk.time();
    if (!has_step(p_.shape, p_.transition, time_, sequence_.column)) return;
    const bool is_new = is_reset(p_.shape, p_.transition, sequence_.direction, time_, sequence_.column);
    if (is_new) for_units([&](int u) { h_[u] = 0, c_[u] = 0; });
    const int64_t row = Base::row_at(walk.time());
    const typename Pass::Reader reader(p_, sequence_, walk.time());
    output_ = static_cast<T*>(p_.output) + Pass::Units::output_index(p_, sequence_, row);
    saved_ = p_.gates ? static_cast<T*>(p_.gates) + saved_index(p_.shape, sequence_, row, kReserved) : nullptr;
    cells_ = static_cast<R*>(p_.cells) + saved_index(p_.shape, sequence_, row, 1);

    // What is normalised of a unit: f(norm, gate, number).
    const auto for_numbers = [&](int u, const auto& f) {
      const auto inputs = Pass::inputs_of(p_, reader.template load<0>(p_, walk, sequence_, u));
      SEQKERNELS_UNROLL
      for (int g = 0; g < kGates; ++g) {
        const R product = is_new ? R(0) : product_[g * p_.shape.hidden + u];
        if constexpr (kSides == 2) f(0, g, inputs.gates[g]);
        f(kSides - 1, g, kSides == 2 ? product : product + inputs.gates[g]);
      }
    };
    Scaling scalings[kSides * kGroups];
    find_scalings<0>(row, for_numbers, scalings);
    for_units([&](int u) {
      R values[kSides * kGates];
      for_numbers(u, [&](int norm, int g, R number) {
        values[norm * kGates + g] = save(norm, g, u, scalings[group(norm, g)](number));
      });
      V input_gates[kAllGates], hidden_gates[kAllGates], saved[Cell::kSaved];
      make_gates(u, [&](int norm, int g) { return values[norm * kGates + g]; }, input_gates, hidden_gates);
      const cells::State<V> prev{h_[u], c_[u]};
      const cells::State<V> state = Cell::forward(cells::Stage<0>(), input_gates, hidden_gates, prev, saved);
      if constexpr (Cell::kNormalizesCell) {
        carried_[carried_apart_ + u] = c_[u];  // zoneout may want it
        c_[u] = state.c.v;
        if constexpr (Cell::kCarried > 0) carried_[u] = saved[0].v;
      } else {
        end_step(u, state);
      }
    });
    if constexpr (Cell::kNormalizesCell) normalize_cell(row);
  }

  SEQKERNELS_DEVICE void normalize_cell(int64_t row) {
    Scaling scaling[1];
    find_scalings<kSides>(row, [&](int u, const auto& f) { f(kSides, 0, c_[u]); }, scaling);
    for_units([&](int u) {
      V input_gates[kAllGates], hidden_gates[kAllGates], saved[Cell::kSaved];
      const R c = c_[u];
      hidden_gates[kGates] = normalized(kSides, 0, u, save(kSides, 0, u, scaling[0](c)));
      if constexpr (Cell::kCarried > 0) saved[0] = carried_[u];
      const cells::State<V> made{h_[u], c};
      end_step(u, Cell::forward(cells::Stage<1>(), input_gates, hidden_gates, made, saved));
    });
  }

  // Of the groups of norms from `norm` on.
  template <int norm, int kCount, class Numbers>
  SEQKERNELS_DEVICE void find_scalings(int64_t row, const Numbers& for_numbers, Scaling (&scalings)[kCount]) {
    constexpr int kFirst = norm * kGroups;
    R sums[kCount] = {}, squares[kCount] = {};
    for_units([&](int u) { for_numbers(u, [&](int of, int g, R number) { sums[group(of, g) - kFirst] += number; }); });
    sums_.add_up(sums);
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) scalings[i].mean = sums[i] / size(norm + i / kGroups, kFirst + i);
    for_units([&](int u) {
      for_numbers(u, [&](int of, int g, R number) {
        const int i = group(of, g) - kFirst;
        squares[i] += (number - scalings[i].mean) * (number - scalings[i].mean);
      });
    });
    sums_.add_up(squares);
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const R variance = squares[i] / size(norm + i / kGroups, kFirst + i);
      scalings[i].scale = 1 / sqrt_of(variance + static_cast<R>(norms_.eps));
      if (norms_.scales && thread_index() == 0)
        static_cast<R*>(norms_.scales)[Base::scales_at(row) + kFirst + i] = scalings[i].scale;
    }
  }

  SEQKERNELS_DEVICE R save(int norm, int gate, int unit, R value) const {
    if (saved_) saved_[(norm * kGates + gate) * p_.shape.padded + unit] = from_real<T>(value);
    return value;
  }

  SEQKERNELS_DEVICE void end_step(int u, const cells::State<V>& state) {
    const auto crossing = crossing_at<typename Pass::Units, R>(p_, at(u), time_);
    output_[u] = publish(u, crossing.zoneout_h.mix(h_[u], state.h.v));
    if constexpr (Cell::kHasCellState) {
      const R before = Cell::kNormalizesCell ? carried_[carried_apart_ + u] : c_[u];
      c_[u] = crossing.zoneout_c.mix(before, state.c.v);
      if (saved_) cells_[u] = c_[u];
      if (p_.cell_states) write<T>(p_.cell_states, c_row_index(p_, at(u), Base::row_at(time_)), c_[u]);
    }
  }

  const Problem& p_;
  int64_t time_;
  T *output_, *saved_;
  R* cells_;
};

}  // namespace seqkernels::cuda
