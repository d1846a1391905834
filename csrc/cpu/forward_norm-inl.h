// Layer normalisation in the forward time loop. Compiled once per ISA.
//
// A stage's products must be there for a whole row before one of its gates is: members make those of their units, find the
// moments of their part of each row, wait for each other, and go on with the cell. The norm of c is of units that a member has
// made itself. Input gates are normalised once for a chunk, where they lie.
//
// Members of ForwardLoop, which names the types.
#pragma once
#include "forward_cell-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class Cell, class S, class F>
inline void ForwardLoop<Cell, S, F>::take_norms(Arena& arena, Buffers& buffers) const {
  const int64_t batch = shape_.batch;
  buffers.hidden_gates = arena.take<T>(Product<0>::panels(size_.hidden) * Product<0>::kPanelWidth * batch);
  for (Moments<T>*& moments : buffers.moments) moments = arena.take<Moments<T>>(p_.threads * batch * kGroups);
  buffers.scalings = arena.take<Scaling<T>>(p_.threads * batch * kGroups);
  const int64_t units = Cell::kNormalizesCell ? size_.padded : 0;
  buffers.norm_c = arena.take<T>(units);
  buffers.norm_c_bias = arena.take<T>(units);
}

template <class Cell, class S, class F>
inline void ForwardLoop<Cell, S, F>::pack_norm_of_cell(const ThreadSlice& slice) const {
  if (slice.rank > 0) return;
  const auto pack = [&](WeightKind kind, T* packed) {
    const S* const weight = reinterpret_cast<const S*>(p_.weights[slice.direction][kind]);
    for (int64_t u = 0; u < size_.padded; u += kLanes) store(packed + u, load(weight + u, size_.hidden - u));
  };
  pack(kCellNorm, buffers_[slice.direction].norm_c);
  pack(kCellNormBias, buffers_[slice.direction].norm_c_bias);
}

// Normalises the chunk's input gates, and saves what backward reads of that.
template <class Cell, class S, class F>
inline void ForwardLoop<Cell, S, F>::normalize_inputs(const ThreadSlice& slice, const Chunk& chunk) const {
  const auto product = input_product<0>(slice.direction);
  const Range own = share(chunk.rows, slice.rank, slice.size);
  for (int64_t r = own.begin; r < own.end; ++r) {
    const auto for_vectors = [&](const auto& f) {
      for (int64_t panel = 0; panel < product.panels(); ++panel) {
        T* const gates = input_gates<0>(slice.direction, chunk, panel, r);
        product.for_columns(panel, [&](int g, int64_t u, int64_t column) { f(panel, g, u, column, gates + column); });
      }
    };
    Moments<T> moments[kGroups];
    find_moments<kGroups, kInputGates>(
        [&](const auto& f) {
          for_vectors([&](int64_t, int g, int64_t u, int64_t, const T* gates) { f(g, load(gates), size_.hidden - u); });
        },
        Cell::norm_group, moments);
    const int64_t row = slice.direction * rows_ + chunk.first_row + r;
    S* const saved = p_.gates ? reinterpret_cast<S*>(p_.gates) + row * kReserved * size_.padded : nullptr;
    Scaling<T> scalings[kGroups];
    for (int i = 0; i < kGroups; ++i) {
      scalings[i] = scaling_of(moments + i, 1, 0, T(p_.norm_eps));
      if (p_.norms) reinterpret_cast<T*>(p_.norms)[row * kNormsOfRow + i] = scalings[i].scale;
    }
    for_vectors([&](int64_t panel, int g, int64_t u, int64_t column, T* gates) {
      const V unit = scalings[Cell::norm_group(g)](load(gates));
      if (saved) save(saved + g * size_.padded, u, unit);
      store(gates, load(product.packed_norm(panel) + column) * unit + load(product.packed_bias(panel) + column));
    });
  }
}

template <class Cell, class S, class F>
template <int stage, class Wait>
inline void ForwardLoop<Cell, S, F>::run_normalized_stage(const ThreadSlice& slice, const Steps& steps,
                                                          const Chunk& chunk, int64_t i, const Wait& wait) const {
  constexpr bool kOfCell = cells::is_norm<Cell>(stage);
  constexpr int kStageGroups = kOfCell ? 1 : Cell::kNormGroups;
  // The first of the numbers that backward wants of each row.
  constexpr int kFirstNorm = kOfCell ? kNormsOfRow - 1 : (cells::kNormSides<Cell> - 1) * kGroups;
  const Buffers& buffers = buffers_[slice.direction];
  const Step step = step_at(slice, steps, chunk, i);
  const auto product = hidden_product<0>(slice.direction);
  const Range panels = slice.units(product.panels());
  const int64_t sequences = slice.sequences(steps.active(steps.time(i)));
  // Rows are counted among the member's own, as those of the operand.
  const auto hidden_gates = [&](int64_t panel, int64_t r) {
    return buffers.hidden_gates + panel * Product<0>::kPanelWidth * shape_.batch +
           (slice.first_row(shape_.batch) + r) * product.panel_width(panel);
  };
  const auto input = [&](int64_t panel, int64_t r) {
    return input_gates<0>(slice.direction, chunk, panel, step.chunk_row + slice.sequence(r));
  };
  if constexpr (!kOfCell) {
    const StageOperand operand = stage_operand<stage>(slice, steps, i, step);
    for (int64_t n = 0; n < panels.size(); ++n) {
      const int64_t panel = i % 2 ? panels.end - 1 - n : panels.begin + n;  // as run_stage
      for (int64_t j = 0; j < operand.tiles.count(); ++j) {
        const Range rows = operand.tiles[j];
        product.template multiply<false>(operand.rows.from(rows.begin), operand.columns, rows.size(), panel,
                                         product.packed(panel), hidden_gates(panel, rows.begin));
      }
    }
  }

  const int64_t numbers = shape_.batch * kGroups;  // of one part of the units
  for (int64_t r = 0; r < sequences; ++r) {
    const int64_t b = slice.sequence(r);
    const T* const c = buffers.c + b * size_.padded;
    const auto visit = [&](const auto& f) {
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const T* const gates = kOfCell ? nullptr : hidden_gates(panel, r);
        if constexpr (kOfCell)
          for (int v = 0; v < product.panel_unit_vectors(panel); ++v) {
            const int64_t u = (panel * Product<0>::kUnitVectors + v) * kLanes;
            f(0, load(c + u), size_.hidden - u);
          }
        else
          product.for_columns(panel,
                              [&](int g, int64_t u, int64_t column) { f(g, load(gates + column), size_.hidden - u); });
      }
    };
    if constexpr (Cell::kNorm == cells::Norm::kSum && !kOfCell)
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        T* const sum = hidden_gates(panel, r);
        const T* const added = input(panel, r);
        for (int64_t j = 0; j < product.panel_width(panel); j += kLanes)
          store(sum + j, load(sum + j) + load(added + j));
      }
    find_moments<kStageGroups, Cell::kStageGates[stage]>(
        visit, [](int g) { return kOfCell ? 0 : Cell::norm_group(g); },
        buffers.moments[stage] + slice.part * numbers + b * kGroups);
  }
  wait();

  Scaling<T>* const scalings = buffers.scalings + slice.rank * numbers;
  for (int64_t r = 0; r < sequences; ++r) {
    const int64_t b = slice.sequence(r);
    for (int j = 0; j < kStageGroups; ++j) {
      const int64_t at = b * kGroups + j;
      scalings[at] = scaling_of(buffers.moments[stage] + at, slice.split.unit_parts, numbers, T(p_.norm_eps));
      if (step.norms && slice.part == 0) step.norms[b * kNormsOfRow + kFirstNorm + j] = scalings[at].scale;
    }
  }
  for (int64_t panel = panels.begin; panel < panels.end; ++panel)
    pointwise_rows<stage>(step, panel, {0, sequences}, [&](int64_t r) {
      const int64_t b = slice.sequence(r);
      return row_at(step, b, input(panel, r), hidden_gates(panel, r), scalings + b * kGroups);
    });
}

// A gate of some rows: of a product, or the norm of c.
template <class Cell, class S, class F>
template <int stage, int kRows>
SEQKERNELS_INLINE VecN<Compute<S>, kRows> ForwardLoop<Cell, S, F>::normalized_gate(const Step& step, int64_t panel,
                                                                                   const CellRow (&rows)[kRows], int g,
                                                                                   int column, int64_t u) const {
  constexpr bool kOfCell = cells::is_norm<Cell>(stage);
  const Buffers& buffers = buffers_[step.direction];
  const int group = kOfCell ? 0 : Cell::norm_group(g);
  const int at = kOfCell ? kReserved - 1 : (cells::kNormSides<Cell> - 1) * Cell::kGates + g;
  const int64_t packed = panel * Product<stage>::kPanelWidth + column;
  const V weight = load(kOfCell ? buffers.norm_c + u : buffers.w_hh[0].packed_norm + packed);
  const V bias = load(kOfCell ? buffers.norm_c_bias + u : buffers.w_hh[0].packed_bias + packed);
  return VecN<T, kRows>::each([&](int i) {
    const int64_t b = rows[i].b;
    const V unit = rows[i].scalings[group](load(kOfCell ? buffers.c + b * size_.padded + u : rows[i].hidden + column));
    if (step.gates) save(step.gates + (b * kReserved + at) * size_.padded, u, unit);
    return weight * unit + bias;
  });
}

}  // namespace seqkernels::SEQKERNELS_ISA
