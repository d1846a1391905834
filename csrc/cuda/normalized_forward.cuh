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
  using Base::c_, Base::carried_, Base::h_, Base::norms_, Base::product_, Base::published_, Base::sequence_,
      Base::sums_;
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

  // h as it is published.
  SEQKERNELS_DEVICE T publish(int u, R h) {
    const T published = from_real<T>(h);
    published_[u] = published, h_[u] = to_real(published);
    return published;
  }

  SEQKERNELS_DEVICE void step(int64_t step) {
    const Walk walk = Pass::walk(p_, sequence_.direction, step);
    if (sequence_.column >= walk.active()) return;
    const int64_t row = Base::row_at(walk.time());
    const typename Pass::Reader reader(p_, sequence_, walk.time());
    output_ = static_cast<T*>(p_.output) + Pass::Units::output_index(p_, sequence_, row);
    saved_ = p_.gates ? static_cast<T*>(p_.gates) + saved_index(p_.shape, sequence_, row, kReserved) : nullptr;
    cells_ = static_cast<R*>(p_.cells) + saved_index(p_.shape, sequence_, row, 1);

    // What is normalised of a unit: f(norm, gate, number).
    const auto for_numbers = [&](int u, const auto& f) {
      const auto inputs = reader.template load<0>(p_, walk, sequence_, u);
      SEQKERNELS_UNROLL
      for (int g = 0; g < kGates; ++g) {
        const R product = product_[g * p_.shape.hidden + u];
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
    output_[u] = publish(u, state.h.v);
    if constexpr (Cell::kHasCellState) {
      c_[u] = state.c.v;
      if (saved_) cells_[u] = state.c.v;
    }
  }

  const Problem& p_;
  T *output_, *saved_;
  R* cells_;
};

}  // namespace seqkernels::cuda
