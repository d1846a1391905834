// The forward time loop. Compiled once per ISA.
//
// Per direction: pack the weights into panels that hold all gates of some units (those of W_ih when they are used, if that is
// but once or twice); then per chunk of steps
//   1. input_gates = x W_ih^T + b_ih for all its rows, into a buffer that stays in cache;
//   2. step by step and stage by stage, hidden_gates = operand W_hh^T + b_hh for one tile of rows and one panel, and at once
//      the cell. The operand of the first stage is h_prev, that of any later one what the stage before it has made.
// What is done for a chunk is in forward_inputs-inl.h, the cell in forward_cell-inl.h, normalisation in forward_norm-inl.h.
//
// Type parameters: Cell is one of cells/*.h, S the storage type of tensors, F the format of operands
// (gemm/formats-inl.h). In the class T = Compute<S> is the type of sums and states, V a vector of them, E = F::Element
// the type of operands where they lie.
#pragma once
#include "gate_product-inl.h"
#include "norm-inl.h"
#include "transition-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// Input gates of a chunk aim at this many bytes, to stay in the cache of the cores that make and use them, or at those
// of W_ih, which every chunk reads once.
constexpr int64_t kInputGatesBytes = 1 << 20;
constexpr int64_t kMinChunkRows = 48;
// No more rows are multiplied one or two at a time.
constexpr int64_t kMaxGemvRows = 16;

template <class Cell, class S, class F = ScalarFormat<Compute<S>>>
class ForwardLoop {
  using T = Compute<S>;
  using E = typename F::Element;
  using V = Vec<T>;
  // Stages that have a product, and that have one with x; the last one may normalise c, in panels of the stage before it.
  static constexpr int kLanes = V::kLanes, kStages = Cell::kStages;
  static constexpr int kProducts = kStages - Cell::kNormalizesCell, kOperands = kProducts - 1;
  static constexpr int kInputStages = cells::kInputStages<Cell>;
  // Gates of all stages, and those that have a product with x.
  static constexpr int kGates = cells::first_gate<Cell>(kStages), kInputGates = Cell::kGates;
  static constexpr bool kNormalizes = Cell::kNorm != cells::Norm::kNone;
  static constexpr int kGroups = Cell::kNormGroups;
  static constexpr bool kNormalizesInputs = Cell::kNorm == cells::Norm::kSides;
  static constexpr int kReserved = cells::kReserved<Cell>, kNormsOfRow = cells::kNormsOfRow<Cell>;
  static_assert(!kNormalizes || kProducts == 1, "the gates that are normalised are those of one stage");
  template <int stage>
  using Product = GateProduct<Cell::kStageGates[cells::is_norm<Cell>(stage) ? stage - 1 : stage], S, F>;

  // Scratch of one direction.
  struct Buffers {
    GateWeights<S> w_ih[kProducts];  // packed: [panels or threads], see packs_when_needed; not of a projection
    GateWeights<S> w_hh[kProducts];  // or W_hr, of a projection
    T* input_gates[kProducts];       // [panels][chunk rows][panel width]
    E* h[2];                         // [B][h_stride], previous and current step in turn
    E* masked_h[2];                  // the same as W_hh meets it, with recurrent dropout another one
    E* operands[kOperands + 1];      // [B][operand_stride], of the stages after the first one
    T* carried;                      // [B][kCarried][padded], from stage to stage
    T* c;                            // [B][padded]
    T* c_before;                     // [B][padded], of zoneout where a stage has overwritten it
    const E** x_rows;                // [chunk rows]
    E* x_copy;                       // [chunk rows][x_stride], where x is not read where it lies
    T* x_columns;                    // the chunk's rows of x as columns, if that is how they are multiplied
    T* h_columns;                    // [threads][h_columns_size], likewise rows of an operand
    // Of normalised cells:
    T* hidden_gates;               // [panels][B][panel width], products that wait for their moments
    Moments<T>* moments[kStages];  // [unit parts][B][groups]
    Scaling<T>* scalings;          // [threads][B][groups]
    T *norm_c, *norm_c_bias;       // [padded]
  };

 public:
  ForwardLoop(const ForwardArguments& arguments, char* workspace)
      : p_(arguments),
        shape_(arguments.shape),
        size_(arguments.shape),
        zoneout_h_(p_.transition.zoneout_h, shape_, size_.outputs),
        zoneout_c_(p_.transition.zoneout_c, shape_, size_.hidden),
        rows_(shape_.offsets[shape_.seq_len]),
        small_m_(is_small_m()),
        input_packs_(packs<F>(size_.inputs)),
        chunk_rows_(chunk_capacity(shape_, target_rows())),
        h_stride_(row_stride<F>(size_.outputs)),
        operand_stride_(row_stride<F>(size_.hidden)),
        columns_rows_(small_m_ && has_columns() && rows_ >= kMinColumns<F> ? rows_ : 0),
        h_columns_size_(columns_size<F>(min(columns_rows_, shape_.batch), max(size_.outputs, size_.hidden))) {
    Arena arena(workspace);
    const int64_t batch = shape_.batch;
    for (int d = 0; d < shape_.directions; ++d) {
      Buffers& buffers = buffers_[d];
      for_indices<kProducts>([&](auto stage) { take_stage<stage.value>(arena, p_.weights[d], buffers); });
      for (int i = 0; i < 2; ++i) {
        buffers.h[i] = arena.take<E>(batch * h_stride_);
        buffers.masked_h[i] = p_.transition.recurrent_mask ? arena.take<E>(batch * h_stride_) : buffers.h[i];
      }
      for (int i = 0; i < kOperands; ++i) buffers.operands[i] = arena.take<E>(batch * operand_stride_);
      buffers.carried = arena.take<T>(batch * Cell::kCarried * size_.padded);
      buffers.c = arena.take<T>(Cell::kHasCellState ? batch * size_.padded : 0);
      buffers.c_before = arena.take<T>(Cell::kNormalizesCell && zoneout_c_.is_on() ? batch * size_.padded : 0);
      buffers.x_rows = arena.take<const E*>(chunk_rows_);
      buffers.x_copy = arena.take<E>(reads_x_in_place() ? 0 : chunk_rows_ * x_stride());
      buffers.x_columns = arena.take<T>(columns_size<F>(columns_rows_, size_.inputs));
      buffers.h_columns = arena.take<T>(p_.threads * h_columns_size_);
      if constexpr (kNormalizes) take_norms(arena, buffers);
    }
    workspace_ = arena.used();
  }

  int64_t workspace() const { return workspace_; }

  void run(Member member) const {
    const FlushDenormals flush;
    [[maybe_unused]] const typename F::Setup setup;
    for_directions(shape_, member, [&](int d, int rank, int size) {
      SplitRequest products[kProducts];
      for_indices<kProducts>([&](auto stage) {
        using Of = Product<stage.value>;
        products[stage.value] = {size,
                                 shape_.batch,
                                 Of::panels(size_.units(stage.value)),
                                 Of::kVectors,
                                 packs<F>(size_.operands(stage.value)),
                                 Cell::kStageGates[stage.value],
                                 1 + kNormalizes + Cell::kNormalizesCell};
      });
      run_direction({d, rank, size, choose_split<F>(products)}, member.size);
    });
  }

 private:
  void run_direction(const ThreadSlice& slice, int threads) const {
    const Steps steps(shape_, slice.direction);
    const int all = direction_barrier(slice.direction), group = group_barrier(slice, threads);
    pack_weights(slice);
    start_states(slice, steps);
    for (int64_t begin = 0; rows_ > 0 && begin < steps.count();) {
      const Chunk chunk = next_chunk(steps, begin, chunk_rows_, false);
      gather_inputs(slice, steps, chunk);
      barrier_wait(p_.team, all, slice.size);
      if (as_columns(chunk.rows)) {
        pack_inputs(slice, chunk);
        barrier_wait(p_.team, all, slice.size);
      }
      for_indices<kInputStages>([&](auto stage) { project_inputs<stage.value>(slice, chunk); });
      barrier_wait(p_.team, all, slice.size);
      if constexpr (kNormalizesInputs) {
        normalize_inputs(slice, chunk);
        barrier_wait(p_.team, all, slice.size);
      }
      const auto wait_for_group = [&] { barrier_wait(p_.team, group, slice.split.unit_parts); };
      if (slice.recurs())
        for (int64_t i = chunk.begin; i < chunk.end; ++i)
          for_indices<kStages>([&](auto stage) {
            if constexpr (kNormalizes)
              run_normalized_stage<stage.value>(slice, steps, chunk, i, wait_for_group);
            else
              run_stage<stage.value>(slice, steps, chunk, i);
            // A norm is one of units that the member has made itself.
            if (!cells::is_norm<Cell>(stage.value + 1)) wait_for_group();
          });
      begin = chunk.end;
    }
    copy_states(slice, steps);
  }

  // ---- set-up ----

  // Takes a stage's weights and the memory that they need.
  template <int stage>
  void take_stage(Arena& arena, const Weights& weights, Buffers& buffers) const {
    constexpr bool kIsProjection = cells::is_projection<Cell>(stage);
    constexpr int kWidth = Product<stage>::kPanelWidth;
    const int64_t panels = Product<stage>::panels(size_.units(stage));
    const int64_t first_row = kIsProjection ? 0 : cells::first_gate<Cell>(stage) * size_.hidden;
    const auto take = [&](const char* weight, const char* bias, const char* norm, int64_t k_size, int64_t kept_panels) {
      const auto from = [&](const char* vector) {
        return vector ? reinterpret_cast<const S*>(vector) + first_row : nullptr;
      };
      GateWeights<S> taken{
          reinterpret_cast<const S*>(weight) + first_row * k_size, from(bias), k_size, {}, {}, from(norm), {}};
      taken.packed = arena.take<T>(small_m_ ? 0 : kept_panels * kWidth * packs<F>(k_size));
      taken.packed_bias = arena.take<T>(panels * kWidth);
      taken.packed_norm = arena.take<T>(norm ? panels * kWidth : 0);
      return taken;
    };
    const int64_t operands = size_.operands(stage);
    if (kIsProjection) {
      buffers.w_hh[stage] = take(weights[kProjection], nullptr, nullptr, operands, panels);
      return;
    }
    const int64_t input_panels = packs_when_needed<stage>() ? p_.threads : panels;
    buffers.w_hh[stage] = take(weights[kHiddenWeight], weights[kHiddenBias], weights[kHiddenNorm], operands, panels);
    buffers.w_ih[stage] =
        take(weights[kInputWeight], weights[kInputBias], weights[kInputNorm], size_.inputs, input_panels);
    buffers.input_gates[stage] = arena.take<T>(panels * kWidth * chunk_rows_);
  }

  // Whether weights are read where they lie instead of being packed: there are so few rows that packing would take longer
  // than it saves. They are multiplied as columns (gemm/columns-inl.h), or each row's sums are transposed, which takes
  // longer than to transpose the weights once there are more rows than vectors along K, or widens them each time.
  bool is_small_m() const {
    if (sizeof(S) != sizeof(E)) return rows_ <= 8;
    if (F::kInTiles)
      return (has_columns() && fill_columns<F>(rows_)) || (rows_ <= 8 && shape_.batch <= kMinTileRegisterRows);
    if (rows_ <= max(8, min(kMaxGemvRows, size_.outputs / (kLanes * F::kPack)))) return true;
    return has_columns() && shape_.seq_len == 1 && (F::kPack == 1 || fill_columns<F>(rows_));
  }
  // Whether rows are multiplied as columns, if they are enough: there are weights enough to spare.
  bool has_columns() const {
    return sizeof(S) == sizeof(E) && rows_ <= kMaxColumns<F> &&
           kInputGates * size_.hidden * (size_.inputs + size_.outputs) * int64_t(sizeof(S)) > kColumnsBytes<F>;
  }
  bool as_columns(int64_t rows) const {
    return small_m_ && has_columns() && (rows > kMaxGemvRows || fill_columns<F>(rows));
  }

  // The tiles of so many rows of a stage's products.
  template <int stage>
  RowTiles tiles_of(int64_t rows) const {
    return as_columns(rows) ? RowTiles(rows, kMaxColumns<F>) : row_tiles<F>(rows, Product<stage>::kProductVectors);
  }

  // A member's rows of an operand as columns of its own, if that is how they are multiplied, else null.
  const T* pack_operand(const ThreadSlice& slice, const EvenRows<E>& operand, int64_t rows, int64_t k_size) const {
    if (!as_columns(rows)) return nullptr;
    T* const columns = buffers_[slice.direction].h_columns + slice.rank * h_columns_size_;
    pack_columns<F>(rows, {0, ceil_div(rows, kLanes)}, operand, k_size, columns);
    return columns;
  }

  int64_t target_rows() const {
    const int64_t row_bytes = kInputGates * size_.padded * int64_t(sizeof(T));
    return max(kMinChunkRows, max(kInputGatesBytes / row_bytes, input_packs_));
  }

  bool reads_x_in_place() const { return sizeof(S) == sizeof(E) && !F::kInTiles && size_.inputs % F::kPack == 0; }
  int64_t x_stride() const { return row_stride<F>(size_.inputs); }

  // Whether W_ih is packed panel by panel, each into the space of the thread that needs it: there are but two chunks to
  // use it.
  template <int stage>
  bool packs_when_needed() const {
    return rows_ <= 2 * chunk_rows_ && p_.threads < Product<stage>::panels(size_.hidden);
  }

  template <int stage>
  Product<stage> input_product(int direction) const {
    return {buffers_[direction].w_ih[stage], size_.hidden, small_m_};
  }
  template <int stage>
  Product<stage> hidden_product(int direction) const {
    return {buffers_[direction].w_hh[stage], size_.units(stage), small_m_};
  }

  void pack_weights(const ThreadSlice& slice) const {
    for_indices<kProducts>([&](auto stage) {
      const auto pack = [&](const auto& product, bool keeps) {
        const Range own = share(product.panels(), slice.rank, slice.size);
        for (int64_t panel = own.begin; panel < own.end; ++panel) {
          if (keeps && !small_m_) product.pack(panel, product.packed(panel));
          product.pack_bias(panel);
        }
      };
      if constexpr (stage.value < kInputStages)
        pack(input_product<stage.value>(slice.direction), !packs_when_needed<stage.value>());
      pack(hidden_product<stage.value>(slice.direction), true);
    });
    if constexpr (Cell::kNormalizesCell) pack_norm_of_cell(slice);
  }

  // The row of sequence b in a [D, B, units] tensor: `outputs` units of h, `hidden` of c.
  S* state_row(char* state, int64_t units, int direction, int64_t b) const {
    return reinterpret_cast<S*>(state) + (direction * shape_.batch + sequence_of(shape_, b)) * units;
  }
  V initial(char* state, int64_t units, int direction, int64_t b, int64_t u) const {
    return state ? load(state_row(state, units, direction, b) + u, units - u) : V(0);
  }
  // h as W_hh meets it.
  V masked(int direction, int64_t b, int64_t u, V h) const {
    return h * load(state_row(p_.transition.recurrent_mask, size_.outputs, direction, b) + u, size_.outputs - u);
  }

  void start_states(const ThreadSlice& slice, const Steps& steps) const {
    const Buffers& buffers = buffers_[slice.direction];
    const Range own = share(shape_.batch, slice.rank, slice.size);
    const ResetRow resets = steps.reverse() ? ResetRow{} : resets_before(p_.transition.resets, shape_, false, 0);
    for (int64_t b = own.begin; b < own.end; ++b) {
      const bool is_new = is_reset(resets, shape_, b);
      const auto start = [&](char* state, int64_t units, int64_t u) {
        return is_new ? V(0) : initial(state, units, slice.direction, b, u);
      };
      for (int64_t u = 0; u < h_stride_; u += kLanes) {
        const V h = start(p_.h0, size_.outputs, u);
        for (E* buffer : buffers.h) store(buffer + b * h_stride_ + u, h);
        if (p_.transition.recurrent_mask)
          for (E* buffer : buffers.masked_h) store(buffer + b * h_stride_ + u, masked(slice.direction, b, u, h));
      }
      for (int i = 0; i < kOperands; ++i)
        for (int64_t u = 0; u < operand_stride_; u += kLanes)
          store(buffers.operands[i] + b * operand_stride_ + u, V(0));
      for (int64_t u = 0; Cell::kHasCellState && u < size_.padded; u += kLanes)
        store(buffers.c + b * size_.padded + u, start(p_.c0, size_.hidden, u));
    }
    clear_padding(slice, p_.output, size_.outputs);
    clear_padding(slice, p_.cell_states, size_.hidden);
  }

  // Rows of a result that belong to no sequence are zero.
  void clear_padding(const ThreadSlice& slice, const RowTensor& result, int64_t units) const {
    if (!shape_.order || !result.data) return;
    for_padding(shape_, share(shape_.padded_len, slice.rank, slice.size), [&](int64_t t, int64_t b) {
      __builtin_memset(row_of<S>(result, shape_, t, b) + slice.direction * units, 0, size_t(units) * sizeof(S));
    });
  }

  // Of sequences without steps the final states are the initial ones.
  void copy_states(const ThreadSlice& slice, const Steps& steps) const {
    const int64_t first = steps.active(0);
    const Range own = share(shape_.batch - first, slice.rank, slice.size);
    for (int64_t b = first + own.begin; b < first + own.end; ++b) {
      const auto copy_state = [&](char* from, char* to, int64_t units) {
        const S* const row = state_row(from, units, slice.direction, b);
        __builtin_memcpy(state_row(to, units, slice.direction, b), row, size_t(units) * sizeof(S));
      };
      copy_state(p_.h0, p_.h_n, size_.outputs);
      if (Cell::kHasCellState) copy_state(p_.c0, p_.c_n, size_.hidden);
    }
  }

  // ---- a chunk (forward_inputs-inl.h) ----

  void gather_inputs(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk) const;
  void pack_inputs(const ThreadSlice& slice, const Chunk& chunk) const;
  auto input_rows(const Buffers& buffers, int64_t row) const;
  template <int stage>
  const T* input_panel(const ThreadSlice& slice, int64_t panel) const;
  template <int stage>
  void project_inputs(const ThreadSlice& slice, const Chunk& chunk) const;

  // Where a stage's input gates of a panel lie for a row of the chunk.
  template <int stage>
  T* input_gates(int direction, const Chunk& chunk, int64_t panel, int64_t row) const {
    return buffers_[direction].input_gates[stage] + panel * Product<stage>::kPanelWidth * chunk.rows +
           row * hidden_product<stage>(direction).panel_width(panel);
  }

  // ---- a step ----

  // Where the rows of one step are; b counts from sequence 0.
  struct Step {
    int direction;
    int64_t time;
    int64_t chunk_row;                // of sequence 0, in the chunk's input gates
    int64_t ending;                   // sequences at or beyond this one end here
    ResetRow resets;                  // of the next step
    const E *h_prev, *masked_h_prev;  // [B][h_stride]
    E *h, *masked_h;                  // [B][h_stride]
    S *output, *cell_states;          // rows of the results, as sequences follow each other there; the latter or null
    S* gates;                         // [B][saved][padded] or null
    T* cells;                         // [B][padded] or null
    T* norms;                         // [B][norms] or null
  };

  Step step_at(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk, int64_t i) const {
    const Buffers& buffers = buffers_[slice.direction];
    const int64_t t = steps.time(i), first_row = steps.first_row(t), reserve_row = slice.direction * rows_ + first_row;
    const int64_t reserve = reserve_row * size_.padded;
    return {slice.direction,
            t,
            first_row - chunk.first_row,
            steps.ending(t),
            resets_before(p_.transition.resets, shape_, steps.reverse(), steps.next(t)),
            buffers.h[i % 2],
            buffers.masked_h[i % 2],
            buffers.h[(i + 1) % 2],
            buffers.masked_h[(i + 1) % 2],
            first_row_of<S>(p_.output, shape_, t) + slice.direction * size_.outputs,
            p_.cell_states.data ? first_row_of<S>(p_.cell_states, shape_, t) + slice.direction * size_.hidden : nullptr,
            p_.gates ? reinterpret_cast<S*>(p_.gates) + reserve * kReserved : nullptr,
            p_.cells ? reinterpret_cast<T*>(p_.cells) + reserve : nullptr,
            p_.norms ? reinterpret_cast<T*>(p_.norms) + reserve_row * kNormsOfRow : nullptr};
  }

  // What a member multiplies in a stage: its panels, and tiles of its own sequences' rows.
  struct StageOperand {
    Range panels;
    RowTiles tiles;
    EvenRows<E> rows;
    const T* columns;  // the same, if that is how they are multiplied, else null
  };
  template <int stage>
  SEQKERNELS_INLINE StageOperand stage_operand(const ThreadSlice& slice, const Steps& steps, int64_t i,
                                               const Step& step) const {
    const int64_t sequences = slice.sequences(steps.active(steps.time(i)));
    const E* const all = stage == 0 ? step.masked_h_prev : buffers_[slice.direction].operands[max(stage - 1, 0)];
    const int64_t row_stride = stage == 0 ? h_stride_ : operand_stride_;
    const EvenRows<E> rows{all + slice.sequence(0) * row_stride, row_stride * slice.split.batch_parts};
    return {slice.units(hidden_product<stage>(slice.direction).panels()), tiles_of<stage>(sequences), rows,
            pack_operand(slice, rows, sequences, size_.operands(stage))};
  }

  template <int stage>
  void run_stage(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk, int64_t i) const {
    const Step step = step_at(slice, steps, chunk, i);
    const auto product = hidden_product<stage>(slice.direction);
    const StageOperand operand = stage_operand<stage>(slice, steps, i, step);
    constexpr int kMaxRows = max(kMaxColumns<F>, max_rows_in_parts<F>(Product<stage>::kProductVectors));
    alignas(64) T tile[kMaxRows * Product<stage>::kPanelWidth];
    for (int64_t n = 0; n < operand.panels.size(); ++n) {
      // Alternating (serpentine) traversal: what the last step read last is what the cache still holds.
      const int64_t panel = i % 2 ? operand.panels.end - 1 - n : operand.panels.begin + n;
      const int64_t width = product.panel_width(panel);
      for (int64_t j = 0; j < operand.tiles.count(); ++j) {
        const Range rows = operand.tiles[j];
        prefetch<stage>(step, chunk, slice, panel, rows);
        product.multiply(operand.rows.from(rows.begin), operand.columns, rows.size(), panel, product.packed(panel),
                         tile);
        const auto cell_row = [&](int64_t r) {
          const int64_t b = slice.sequence(rows.begin + r);
          const T* input = nullptr;
          if constexpr (stage < kInputStages)
            input = input_gates<stage>(slice.direction, chunk, panel, step.chunk_row + b);
          return row_at(step, b, input, tile + r * width, nullptr);
        };
        pointwise_rows<stage>(step, panel, {0, rows.size()}, cell_row);
      }
    }
  }

  // ---- the cell (forward_cell-inl.h) ----

  // What the cell reads of one row of a tile.
  struct CellRow {
    int64_t b;                   // sequence
    const T *input, *hidden;     // gates [panel width]
    const Scaling<T>* scalings;  // of its groups of gates, where they are normalised
    S *output, *cell_states;     // the latter null where nobody asks for c of every step
    bool restarts;               // whether its next step starts from zeros
  };
  CellRow row_at(const Step& step, int64_t b, const T* input, const T* hidden, const Scaling<T>* scalings) const {
    S* const cell_states = step.cell_states ? cell_states_row(step, b) : nullptr;
    const bool restarts = b < step.ending && is_reset(step.resets, shape_, b);
    return {b, input, hidden, scalings, output_row(step, b), cell_states, restarts};
  }

  template <int stage>
  void prefetch(const Step& step, const Chunk& chunk, const ThreadSlice& slice, int64_t panel, Range rows) const;
  template <int stage, int kRows = kSideBySide, class Row>
  void pointwise_rows(const Step& step, int64_t panel, Range range, const Row& cell_row) const;
  template <int stage, int kRows>
  void pointwise(const Step& step, int64_t panel, const CellRow (&rows)[kRows]) const;
  static void store_operand(E* row, int64_t u, int64_t units, V value);
  S* output_row(const Step& step, int64_t b) const {
    return step.output + sequence_of(shape_, b) * p_.output.batch_stride;
  }
  S* cell_states_row(const Step& step, int64_t b) const {
    return step.cell_states + sequence_of(shape_, b) * p_.cell_states.batch_stride;
  }
  template <class Vectors>
  void zone(const Step& step, const ZoneoutOf<T>& zoneout, int64_t units, int64_t u, const CellRow* rows,
            const Vectors& before, Vectors& made) const;
  void finish_h(const Step& step, const CellRow& row, int64_t u, V h) const;
  void finish_c(const Step& step, const CellRow& row, int64_t u, V c) const;
  template <class P>
  void save(P* row, int64_t u, V value) const;

  // ---- normalisation (forward_norm-inl.h) ----

  void take_norms(Arena& arena, Buffers& buffers) const;
  void pack_norm_of_cell(const ThreadSlice& slice) const;
  void normalize_inputs(const ThreadSlice& slice, const Chunk& chunk) const;
  template <int stage, class Wait>
  void run_normalized_stage(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk, int64_t i,
                            const Wait& wait) const;
  template <int stage, int kRows>
  VecN<T, kRows> normalized_gate(const Step& step, int64_t panel, const CellRow (&rows)[kRows], int g, int column,
                                 int64_t u) const;

  const ForwardArguments& p_;
  const LayerShape& shape_;
  const LayerSizes<Cell> size_;
  const ZoneoutOf<T> zoneout_h_, zoneout_c_;
  const int64_t rows_;  // R
  const bool small_m_;
  const int64_t input_packs_;
  const int64_t chunk_rows_, h_stride_, operand_stride_;
  const int64_t columns_rows_, h_columns_size_;
  Buffers buffers_[kMaxDirections];
  int64_t workspace_;
};

}  // namespace seqkernels::SEQKERNELS_ISA
