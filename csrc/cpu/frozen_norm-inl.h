// Layers whose weights were packed once and whose gates are normalised. Compiled once per ISA.
//
// A step takes three passes, between which members wait for each other: products of their panels, for which rows of gates are kept
// in scratch memory; gates and c, after each member has found the mean and variance of whole rows for itself; the norm of c, and
// h. The panels of the first stage hold, before the packs of I and H, its vectors [gates][lanes]: b_ih, b_hh, then the norms
// of its sides; those of the norm of c hold its factor and bias alone.
//
// Type parameters: those of frozen-inl.h.
#pragma once
#include "frozen-inl.h"
#include "norm-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class Cell, class W>
class FrozenNormForward : FrozenForward<Cell, W> {
  using Base = FrozenForward<Cell, W>;
  using V = VecF;
  using Base::kLanes, Base::kStages, Base::p_, Base::input_packs_;
  static constexpr int kGates = Cell::kGates, kSides = cells::kNormSides<Cell>, kGroups = Cell::kNormGroups;
  static constexpr int kVectors = 2 + kSides;              // of a gate, before its packs
  static constexpr int64_t kPackStride = kGates * kLanes;  // from one k to the next
  static constexpr int kMaxRows = Base::template kMaxRows<0>;

 public:
  explicit FrozenNormForward(const FrozenArguments& arguments)
      : Base(arguments),
        panels_(ceil_div(p_.hidden_size, kLanes)),
        padded_(panels_ * kLanes),
        panel_size_((kVectors + input_packs_ + ceil_div(p_.hidden_size, Base::kPack)) * kPackStride),
        rows_(p_.directions * p_.batch),
        sides_(p_.scratch),
        c_(sides_ + rows_ * kSides * kGates * padded_),
        carried_(c_ + rows_ * padded_) {}

  // Numbers of scratch memory.
  int64_t scratch() const { return rows_ * (kSides * kGates + 1 + Cell::kCarried) * padded_; }

  void run(Member member) const {
    const FlushDenormals flush;
    const Range own = share(p_.directions * panels_, member.rank, member.size);
    const auto wait = [&] { barrier_wait(p_.team, 0, member.size); };
    for (int64_t i = 0; i < p_.seq_len; ++i) {
      multiply_panels(own, i);
      wait();
      for_rows(own, [&](int64_t row, Range panels) { pointwise<0>(row, panels, i, gate_moments(row)); });
      if constexpr (Cell::kNormalizesCell) {
        wait();
        for_rows(own, [&](int64_t row, Range panels) { pointwise<1>(row, panels, i, cell_moments(row)); });
      }
      wait();
    }
  }

 private:
  // The scalings of a row: of every group of each side, or of c.
  struct Scalings {
    Scaling<float> of[kSides * kGroups];
  };

  // Calls f(row, panels) for the panels [own), numbered through all directions, of each sequence; a row is one of [D, B].
  template <class Visit>
  void for_rows(Range own, const Visit& f) const {
    for (int64_t d = 0; d < p_.directions; ++d) {
      const Range panels{max(own.begin - d * panels_, 0), min(own.end - d * panels_, panels_)};
      for (int64_t b = 0; b < p_.batch && panels.size() > 0; ++b) f(d * p_.batch + b, panels);
    }
  }

  void multiply_panels(Range own, int64_t i) const {
    const RowTiles tiles(p_.batch, kMaxRows);
    for (int64_t n = 0; n < own.size(); ++n) {
      // Alternating (serpentine) traversal: what the last step read last is what the cache still holds.
      const int64_t item = i % 2 ? own.end - 1 - n : own.begin + n;
      for (int64_t j = 0; j < tiles.count(); ++j) multiply_rows(item / panels_, item % panels_, i, tiles[j]);
    }
  }

  // Products of a tile of rows whose number is known at run time.
  template <int kRows = kMaxRows>
  SEQKERNELS_INLINE void multiply_rows(int64_t direction, int64_t panel, int64_t i, Range range) const {
    if constexpr (kRows > 0) {
      if (range.size() == kRows) return multiply<kRows>(direction, panel, i, range.begin);
      multiply_rows<kRows - 1>(direction, panel, i, range);
    }
  }

  template <int kRows>
  __attribute__((noinline)) void multiply(int64_t direction, int64_t panel, int64_t i, int64_t b) const {
    const int64_t t = this->time(direction, i);
    const EvenRows<float> x{Base::row(p_.x, t, b), p_.x.batch_stride}, h_prev = this->previous(direction, i, b);
    const float* const packs = panel_of(direction, panel) + kVectors * kPackStride;
    V sums[2][kRows][Base::kAllGates];
    for (auto& side : sums)
      for (auto& row : side)
        for (V& sum : row) sum = V(0);
    Base::template multiply_add<0, kRows>(sums[0], x.template make<kRows>(), packs, p_.input_size);
    if (h_prev.data)
      Base::template multiply_add<0, kRows>(sums[1], h_prev.template make<kRows>(), packs + input_packs_ * kPackStride,
                                            p_.hidden_size);
    for (int r = 0; r < kRows; ++r)
      for (int g = 0; g < kGates; ++g) {
        const int64_t row = direction * p_.batch + b + r;
        if constexpr (Cell::kNorm == cells::Norm::kSum) {
          store(gate_row(row, 0, g) + panel * kLanes, sums[0][r][g] + sums[1][r][g]);
        } else {
          store(gate_row(row, 0, g) + panel * kLanes, sums[0][r][g]);
          store(gate_row(row, 1, g) + panel * kLanes, sums[1][r][g]);
        }
      }
  }

  const float* panel_of(int64_t direction, int64_t panel) const { return p_.packed[direction] + panel * panel_size_; }
  // Products of a gate of one side, or their sum, of all units.
  float* gate_row(int64_t row, int side, int g) const {
    return sides_ + ((row * kSides + side) * kGates + g) * padded_;
  }

  Scalings gate_moments(int64_t row) const {
    Scalings scalings;
    for (int side = 0; side < kSides; ++side) {
      Moments<float> moments[kGroups];
      find_moments<kGroups, kGates>(
          [&](const auto& f) {
            for (int64_t u = 0; u < padded_; u += kLanes)
#pragma GCC unroll 4
              for (int g = 0; g < kGates; ++g) f(g, load(gate_row(row, side, g) + u), p_.hidden_size - u);
          },
          Cell::norm_group, moments);
      for (int j = 0; j < kGroups; ++j)
        scalings.of[side * kGroups + j] = scaling_of(moments + j, 1, 0, float(p_.norm_eps));
    }
    return scalings;
  }

  Scalings cell_moments(int64_t row) const {
    Moments<float> moments;
    find_moments<1, 1>(
        [&](const auto& f) {
          for (int64_t u = 0; u < padded_; u += kLanes) f(0, load(c_ + row * padded_ + u), p_.hidden_size - u);
        },
        [](int) { return 0; }, &moments);
    return {{scaling_of(&moments, 1, 0, float(p_.norm_eps))}};
  }

  template <int stage>
  void pointwise(int64_t row, Range panels, int64_t i, const Scalings& scalings) const {
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const int64_t direction = row / p_.batch, b = row % p_.batch, u = panel * kLanes, valid = p_.hidden_size - u;
      const float* const packs = panel_of(direction, panel);
      float *const c = c_ + row * padded_ + u, *const carried = carried_ + row * Cell::kCarried * padded_ + u;
      V input_gates[Base::kAllGates], hidden_gates[Base::kAllGates], saved[Cell::kSaved + 1];
      if constexpr (stage == 0) {
        // A gate of a side: its norm, times the factor, plus the bias.
        const auto gate = [&](int side, int g) {
          const float* const vectors = packs + g * kLanes;
          const V unit = scalings.of[side * kGroups + Cell::norm_group(g)](load(gate_row(row, side, g) + u));
          return load(vectors + (2 + side) * kPackStride) * unit + load(vectors + (side + 2 - kSides) * kPackStride);
        };
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) {
          input_gates[g] = Cell::kNorm == cells::Norm::kSum ? load(packs + g * kLanes) : gate(0, g);
          hidden_gates[g] = gate(kSides - 1, g);
        }
      } else {
        const float* const vectors = p_.packed[direction] + panels_ * panel_size_ + panel * 2 * kLanes;
        hidden_gates[kGates] = load(vectors) * scalings.of[0](load(c)) + load(vectors + kLanes);
        for (int s = 0; s < Cell::kCarried; ++s) saved[s] = load(carried + s * padded_);
      }
      const EvenRows<float> h_prev = this->previous(direction, i, b);
      cells::State<V> prev{V(0), V(0)};
      if (h_prev.data) prev.h = load(h_prev.data + u, valid);
      if constexpr (Cell::kHasCellState) prev.c = c_before<stage>(row, i, c, u, valid);

      const cells::State<V> made = Cell::forward(cells::Stage<stage>(), input_gates, hidden_gates, prev, saved);

      if constexpr (Cell::kHasCellState)
        stage == 0 ? store(c, made.c) : store(p_.c_n + row * p_.hidden_size + u, made.c, valid);
      if constexpr (stage < kStages - 1) {
        for (int s = 0; s < Cell::kCarried; ++s) store(carried + s * padded_, saved[s]);
      } else {
        const int64_t t = this->time(direction, i);
        store(Base::row(p_.output, t, b) + direction * p_.hidden_size + u, made.h, valid);
        if (i == p_.seq_len - 1) store(p_.h_n + row * p_.hidden_size + u, made.h, valid);
      }
    }
  }

  // The c that a stage starts from: that of the step before, or in the second stage what the first one has left.
  template <int stage>
  V c_before(int64_t row, int64_t i, const float* c, int64_t u, int64_t valid) const {
    if (stage > 0) return load(c);
    const float* const before = i == 0 ? p_.c0 : p_.c_n;
    return before ? load(before + row * p_.hidden_size + u, valid) : V(0);
  }

  const int64_t panels_, padded_;
  const int64_t panel_size_;  // of the first stage, in packs
  const int64_t rows_;        // [D, B]
  float* const sides_;        // [rows][sides][gates][padded]
  float* const c_;            // [rows][padded]
  float* const carried_;      // [rows][carried][padded]
};

}  // namespace seqkernels::SEQKERNELS_ISA
