// The forward pass of the pointwise part, whose terms are those of pointwise.cuh: from input gates and a product to the next
// state, which it publishes, or the operand of the next stage.
#pragma once
#include "pointwise.cuh"

namespace seqkernels::cuda {

template <class CellType, class T>
struct Forward {
  using Cell = CellType;
  using Element = T;
  using Problem = typename ProblemOf<Cell, ForwardProblem>::type;
  using Units = UnitsOf<Cell>;
  using R = Real<T>;
  using V = Value<R, is_short<T>>;
  static constexpr bool kIsBackward = false, kHasTransition = false;
  static constexpr int kStages = Cell::kStages, kCarried = Cell::kCarried;
  static constexpr int kSaved = Cell::kSaved == 0 ? 1 : Cell::kSaved;
  static constexpr int kHiddenGates = cells::first_gate<Cell>(kStages);  // that of a projection, too

  static constexpr int kFinalStage = kStages - 1;
  template <int stage>
  struct Iteration {
    using Stage = StageOf<Cell, stage>;
    static constexpr int kTiles = Stage::kGates, kFirstTile = Stage::kIsProjection ? 0 : Stage::kFirstGate;
    static constexpr int kReads = 1, kFirstBlock = 0, kRowBlocks = 1;
    static constexpr int kFollows = stage, kPublisher = (stage + kStages - 1) % kStages, kNext = (stage + 1) % kStages;
  };

  using State = UnitState<R, kCarried>;  // h as the element type has it

  // Where the two sides of a gate simply add up, so do their biases, and `hidden` has none.
  struct Biases {
    R input[Cell::kGates], hidden[Cell::kGates];
  };
  SEQKERNELS_DEVICE static constexpr bool adds_up(int gate) {
    return Cell::input_dgate(gate) == Cell::hidden_dgate(gate);
  }

  struct Inputs {
    R gates[Cell::kGates];
  };
  using Loaded = Inputs;
  static SEQKERNELS_DEVICE Inputs inputs_of(const Problem&, const Loaded& loaded) { return loaded; }

  static SEQKERNELS_DEVICE int64_t steps(const Problem& p) { return p.steps; }
  static SEQKERNELS_DEVICE int64_t step_of(const Problem& p, int64_t iteration) {
    return p.first_step + (iteration + kStages - 1) / kStages - 1;
  }
  static SEQKERNELS_DEVICE bool has_step(const Problem&, int64_t iteration) { return iteration > 0; }
  static SEQKERNELS_DEVICE int64_t time_of(const Problem& p, int direction, int64_t step) {
    return p.shape.time_of(direction, step);
  }
  // The steps from `step` on.
  static SEQKERNELS_DEVICE Walk walk(const Problem& p, int direction, int64_t step) {
    const int sign = p.shape.is_reverse(direction) ? -1 : 1;
    return {p.shape, time_of(p, direction, step), sign, p.first_step + p.steps - step};
  }

  static SEQKERNELS_DEVICE Biases load_biases(const Problem& p, int direction, int unit) {
    Biases biases;
    SEQKERNELS_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) {
      const int64_t row = static_cast<int64_t>(g) * p.shape.hidden + unit;
      biases.input[g] = p.b_ih[direction] ? read<T>(p.b_ih[direction], row) : R(0);
      biases.hidden[g] = p.b_hh[direction] ? read<T>(p.b_hh[direction], row) : R(0);
      if (adds_up(g)) biases.input[g] += biases.hidden[g], biases.hidden[g] = 0;
    }
    return biases;
  }

  // The state that these steps begin with.
  static SEQKERNELS_DEVICE State initial(const Problem& p, const UnitCoord& at) {
    const int64_t h = Units::h_index(p, at), c = Units::c_index(p, at);
    State state{Units::has_h(p, at) ? read<T>(p.first_step == 0 ? p.h0 : p.h_n, h) : R(0), R(0)};
    if constexpr (Cell::kHasCellState)
      if (Units::has_c(p, at)) state.c = p.first_step == 0 ? read<T>(p.c0, c) : static_cast<const R*>(p.c_carry)[c];
    return state;
  }

  class Reader {
   public:
    SEQKERNELS_DEVICE Reader(const Problem& p, const UnitCoord& at, int64_t time) {
      // The rows at hand begin with the earliest time of these steps.
      const int64_t last = p.first_step + p.steps;
      const int64_t begin = p.shape.is_reverse(at.direction) ? p.shape.seq_len - last : p.first_step;
      const int64_t row = p.shape.first_row(time) - p.shape.first_row(begin) + at.column;
      gates_ = static_cast<const R*>(p.input_gates[at.direction]) + row * Cell::kGates * p.shape.hidden + at.unit;
    }
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) { move_rows(gates_, rows, p.row_bytes.input_gates); }
    SEQKERNELS_DEVICE void move_across(const Problem& p, int sequences) { move(p, sequences); }
    SEQKERNELS_DEVICE void hold() {}

    // Loads the inputs of a stage for the unit that is `unit` further.
    template <int stage>
    SEQKERNELS_DEVICE Loaded load(const Problem& p, const Walk&, const UnitCoord&, int unit, bool = false) const {
      using Stage = StageOf<Cell, stage>;
      Loaded loaded{};
      if constexpr (!Stage::kIsProjection) {
        SEQKERNELS_UNROLL
        for (int g = Stage::kFirstGate; g < Stage::kGatesEnd; ++g) loaded.gates[g] = gates_[g * p.shape.hidden + unit];
      }
      return loaded;
    }
    // Has L2 fetch what a later step loads, all its stages that make the same units as this one.
    template <int stage>
    SEQKERNELS_DEVICE void prefetch(const Problem& p, int unit) const {
      if constexpr (!StageOf<Cell, stage>::kIsProjection) {
        SEQKERNELS_UNROLL
        for (int g = 0; g < Cell::kGates; ++g) cuda::prefetch(gates_ + g * p.shape.hidden + unit);
      }
    }

   private:
    const R* gates_;
  };

  struct Results {  // but for the state
    R saved[kSaved];
  };

  template <int stage>
  static SEQKERNELS_DEVICE Results step(const Biases& biases, const Inputs& inputs,
                                        const R (&product)[StageOf<Cell, stage>::kGates], State& state,
                                        R (&published)[1]) {
    using Stage = StageOf<Cell, stage>;
    V input_gates[Cell::kGates], hidden_gates[kHiddenGates], saved[kSaved];
    SEQKERNELS_UNROLL
    for (int g = Stage::kFirstGate; g < Stage::kGatesEnd; ++g) {
      const int tile = g - Stage::kFirstGate;
      if constexpr (Stage::kIsProjection) {
        hidden_gates[g] = product[tile];
      } else {
        input_gates[g] = inputs.gates[g] + biases.input[g];
        hidden_gates[g] = adds_up(g) ? product[tile] : product[tile] + biases.hidden[g];
      }
    }
    if constexpr (kCarried > 0) {
      SEQKERNELS_UNROLL
      for (int k = 0; k < kCarried && k < Stage::kFirstSaved; ++k) saved[k] = state.carried[k];
    }
    const cells::State<V> now =
        Cell::forward(cells::Stage<stage>(), input_gates, hidden_gates, cells::State<V>{state.h, state.c}, saved);
    Results results{};
    published[0] = to_real(from_real<T>(now.h.v));
    if constexpr (Stage::kIsLast) state.h = published[0];
    if constexpr (Stage::kMakesC) state.c = now.c.v;
    if constexpr (kCarried > 0) {
      SEQKERNELS_UNROLL
      for (int k = Stage::kFirstSaved; k < kCarried && k < Stage::kSavedEnd; ++k) state.carried[k] = saved[k].v;
    }
    SEQKERNELS_UNROLL
    for (int k = Stage::kFirstSaved; k < Stage::kSavedEnd; ++k) results.saved[k] = saved[k].v;
    return results;
  }

  class Writer {
   public:
    SEQKERNELS_DEVICE Writer(const Problem& p, const UnitCoord& at, int64_t time) {
      const int64_t row = p.shape.first_row(time) + at.column;
      output_ = static_cast<T*>(p.output) + Units::output_index(p, at, row);
      saves_ = p.gates != nullptr;
      gates_ = static_cast<T*>(p.gates) + saved_index(p.shape, at, row, Cell::kSaved);
      if constexpr (Cell::kHasCellState) cells_ = static_cast<R*>(p.cells) + saved_index(p.shape, at, row, 1);
    }
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) {
      move_rows(output_, rows, p.row_bytes.output);
      if constexpr (Cell::kSaved > 0) move_rows(gates_, rows, p.row_bytes.saved);
      if constexpr (Cell::kHasCellState) move_rows(cells_, rows, p.row_bytes.cells);
    }
    SEQKERNELS_DEVICE void move_across(const Problem& p, int sequences) { move(p, sequences); }

    SEQKERNELS_DEVICE void hold() { saves_ = launder(saves_); }

    // Writes the results of a stage.
    template <int stage>
    SEQKERNELS_DEVICE void write(const Problem& p, int unit, const State& state, const Results& results) const {
      using Stage = StageOf<Cell, stage>;
      if constexpr (Stage::kIsLast) output_[unit] = from_real<T>(state.h);
      if constexpr (Cell::kSaved > 0) {
        if (!saves_) return;  // no cell states either
        SEQKERNELS_UNROLL
        for (int k = Stage::kFirstSaved; k < Stage::kSavedEnd; ++k)
          gates_[k * p.shape.padded + unit] = from_real<T>(results.saved[k]);
        if constexpr (Stage::kMakesC) cells_[unit] = state.c;
      }
    }

   private:
    int saves_;
    T *output_, *gates_;
    R* cells_ = nullptr;
  };

  template <int stage>
  static SEQKERNELS_DEVICE void idle(const R (&)[StageOf<Cell, stage>::kGates], State& state, R (&published)[1]) {
    published[0] = StageOf<Cell, stage>::kHasH ? state.h : 0;
  }

  static SEQKERNELS_DEVICE void finish(const Problem& p, const UnitCoord& at, const State& state) {
    const int64_t h = Units::h_index(p, at), c = Units::c_index(p, at);
    if (Units::has_h(p, at)) write<T>(p.h_n, h, state.h);
    if constexpr (Cell::kHasCellState)
      if (Units::has_c(p, at)) {
        write<T>(p.c_n, c, state.c);
        static_cast<R*>(p.c_carry)[c] = state.c;
      }
  }
};

}  // namespace seqkernels::cuda
