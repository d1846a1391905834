// The backward time loop. Compiled once per ISA.
//
// Per direction: pack W_hh and W_ih as they lie (not for small M); then per chunk of steps, last step first,
//   1. step by step and stage by stage, the last one first, the cell turns dh and dc into dgates; then the gradient of the
//      stage's operand is dgates W_hh, which for the first stage adds to dh_prev;
//   2. dW += dgates^T [x | operands], db += sum of dgates, dx = dgates W_ih for all rows of the chunk.
// Memory of dgates is that of a chunk, whatever the length of the sequence. The cell is in backward_cell-inl.h, normalisation in
// backward_norm-inl.h, the products of 2 in backward_products-inl.h, what comes before and after all chunks in
// backward_ends-inl.h.
//
// Type parameters: Cell is one of cells/*.h, S the storage type of tensors, F the format of operands
// (gemm/formats-inl.h). In the class T = Compute<S> is the type of sums and states, V a vector of them, E = F::Element
// the type of operands where they lie.
#pragma once
#include "gemm/packing-inl.h"
#include "norm-inl.h"
#include "transition-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class Cell, class S, class F = ScalarFormat<Compute<S>>>
class BackwardLoop {
  using T = Compute<S>;
  using E = typename F::Element;
  using V = Vec<T>;
  static constexpr int kGates = Cell::kGates, kDgates = Cell::kDgates, kLanes = V::kLanes;
  static constexpr int kStages = Cell::kStages, kProducts = kStages - Cell::kNormalizesCell, kSides = 1 + kProducts;
  // What is normalised: the input side, the hidden side or the sum of both, c. The first two follow each other in blocks of
  // dgates of their own, which hold the gradients of what products have made.
  static constexpr bool kNormalizes = Cell::kNorm != cells::Norm::kNone;
  static constexpr int kNormSides = cells::kNormSides<Cell>, kNorms = kNormSides + Cell::kNormalizesCell;
  static constexpr int kHiddenNormSide = kNormSides - 1, kGroups = Cell::kNormGroups;
  static constexpr int kAllDgates = kDgates + kNormSides * kGates, kReserved = cells::kReserved<Cell>;
  static_assert(kStages == 1 || kDgates == cells::first_gate<Cell>(kStages), "a stage writes its own gates' dgates");
  static_assert(!Cell::kIsProjected || kStages == 2, "what is left of dh has no other place than grad_operand");
  static constexpr int kTileRows = max_rows_in_parts<F>(kPanelVectors);
  static constexpr bool kMixedPrecision = sizeof(S) != sizeof(T);  // computes in wider numbers than it stores
  // K of the weight gradients' products: enough that adding to dW costs little beside them.
  static constexpr int64_t kChunkRows = F::kInTiles ? 512 : 256;
  static constexpr int64_t kSmallM = 8;  // so many or fewer: weights are read where they lie instead of being packed
  static constexpr int64_t kMaxK = 512;  // of one block of dgates, on the stack
  static constexpr int kSlack = 8;       // values that may be written beyond its end
  static_assert(F::kInTiles || kTileRows <= kSlack);
  static_assert(kSlack <= kUnitPadding && kLanes <= kUnitPadding, "rows of dgates end in kUnitPadding spare values");

  // One of the products of a step, with W_ih, with a stage's rows of W_hh or with W_hr: which dgates blocks it reads and the
  // weight it multiplies them with. Side 0 is the input side, side 1 + i that of stage i.
  struct Side {
    const char* weight;  // [gates units, columns]
    char* grad;          // the same, or null
    char* bias_grad;     // [gates units] or null
    int64_t units, columns;
    int first_gate, gates;
    int dgates[kGates];  // the block of each of its gates
    int biases[kGates];  // and that whose sums are the gradients of its biases
    int first_dgate;     // the lowest block of a gate
    Panels<T> panels() const { return {columns}; }
    // Whether its weight is read where it lies: it must not be widened, and whole vectors must end where rows do.
    bool in_place(int64_t rows) const { return rows <= kSmallM && !kMixedPrecision && columns % kLanes == 0; }
  };

  // Scratch of one direction.
  struct Buffers {
    T* w[kSides];          // panels of [packs of a side][panel width], rows in the order of dgates
    T* operand[kSides];    // x, h_prev and what stages make, of the chunk: panels of [packs of chunk rows][panel width]
    T* grad_w[kSides];     // [gates units, columns], only where S is not T and chunks add up
    T* grad_b[kSides];     // [gates units], only where S is not T
    E* dgates;             // [chunk rows][dgates_stride], each gate in a block of whole packs
    T* dh;                 // [B][outputs_padded]
    T* dc;                 // [B][padded]
    T* grad_operand;       // [B][padded], of a stage's operand
    T *kept_h, *kept_c;    // [B][outputs_padded], [B][padded]: what zoneout lets pass by the cell
    S* operand_row;        // [threads][padded], one row of an operand
    T* grad_x;             // [R, I]: the second direction's share
    S** grad_x_rows;       // [chunk rows], where they do not follow each other
    S* zeros;              // [units], the state after a reset
    T* norms[kNorms + 1];  // [gates][padded], the factors
    T* norm_biases[kNorms + 1];          // likewise
    T* input_biases;                     // [gates][padded], of Norm::kSum
    T* grad_norms[kNorms + 1];           // [gates H] as grad_b; of the last one also its bias
    T* grad_norm_bias;                   // [H], of c
    NormSums<T>* norm_sums[kNorms + 1];  // [unit parts][B][groups]
  };

 public:
  BackwardLoop(const BackwardArguments& arguments, char* workspace)
      : p_(arguments),
        shape_(arguments.shape),
        size_(arguments.shape),
        zoneout_h_(p_.transition.zoneout_h, shape_, size_.outputs),
        zoneout_c_(p_.transition.zoneout_c, shape_, size_.hidden),
        rows_(shape_.offsets[shape_.seq_len]),
        block_(packs<F>(max(size_.hidden, size_.outputs)) * F::kPack),
        chunk_rows_(chunk_capacity(shape_, kChunkRows)),
        dgates_stride_(row_stride<F>(kAllDgates * block_)) {
    Arena arena(workspace);
    const int64_t batch = shape_.batch;
    for (int d = 0; d < shape_.directions; ++d) {
      Buffers& buffers = buffers_[d];
      for (int s = 0; s < kSides; ++s) {
        const Side& side = sides_[d][s] = side_of(d, s);
        const bool packed = needs_product(s) && !side.in_place(rows_);
        const int64_t panels = packs_when_needed(s) ? p_.threads : side.panels().count();
        const int64_t gate_rows = side.gates * side.units;
        buffers.w[s] = arena.take<T>(packed ? panels * Panels<T>::kWidth * packs_of(side) : 0);
        buffers.operand[s] = arena.take<T>(side.grad ? side.panels().size(packs<F>(chunk_rows_)) : 0);
        buffers.grad_w[s] =
            kMixedPrecision ? arena.take<T>(side.grad && adds_up() ? gate_rows * side.columns : 0) : (T*)side.grad;
        buffers.grad_b[s] = kMixedPrecision ? arena.take<T>(side.bias_grad ? gate_rows : 0) : (T*)side.bias_grad;
      }
      buffers.dgates = arena.take<E>(chunk_rows_ * dgates_stride_);
      buffers.dh = arena.take<T>(batch * size_.outputs_padded);
      buffers.dc = arena.take<T>(Cell::kHasCellState ? batch * size_.padded : 0);
      buffers.grad_operand = arena.take<T>(kStages > 1 ? batch * size_.padded : 0);
      const bool is_masked = p_.transition.recurrent_mask != nullptr;
      buffers.kept_h = arena.take<T>(zoneout_h_.is_on() ? batch * size_.outputs_padded : 0);
      buffers.kept_c = arena.take<T>(zoneout_c_.is_on() ? batch * size_.padded : 0);
      buffers.operand_row =
          arena.take<S>(kStages > 1 || is_masked ? p_.threads * max(size_.padded, size_.outputs_padded) : 0);
      buffers.grad_x = arena.take<T>(d > 0 && p_.grad_x ? rows_ * size_.inputs : 0);
      buffers.zeros = arena.take<S>(p_.transition.resets.data ? max(size_.padded, size_.outputs_padded) : 0);
      buffers.grad_x_rows = arena.take<S*>(d == 0 && p_.grad_x && shape_.order ? chunk_rows_ : 0);
      if constexpr (kNormalizes) take_norms(arena, d);
    }
    workspace_ = arena.used();
  }

  int64_t workspace() const { return workspace_; }

  void run(Member member) const {
    const FlushDenormals flush;
    [[maybe_unused]] const typename F::Setup setup;
    for_directions(shape_, member, [&](int d, int rank, int size) {
      SplitRequest products[kProducts];
      for (int i = 0; i < kProducts; ++i)
        products[i] = {size,
                       shape_.batch,
                       sides_[d][1 + i].panels().count(),
                       kPanelVectors,
                       packs_of(sides_[d][1 + i]),
                       kProducts == 1 ? kDgates : Cell::kStageGates[i],
                       1 + kNormalizes + Cell::kNormalizesCell};
      run_direction({d, rank, size, choose_split<F>(products)}, member.size);
    });
    if (shape_.directions > 1 && p_.grad_x) {
      barrier_wait(p_.team, everybody(), member.size);
      add_grad_x(member);
    }
  }

 private:
  Side side_of(int direction, int s) const {
    const Weights& weights = p_.weights[direction];
    const WeightGrads& grads = p_.grads[direction];
    const auto side_with = [&](WeightKind kind, WeightKind bias, int stage, int64_t columns) {
      const bool is_projection = cells::is_projection<Cell>(stage);
      const int first = s == 0 ? 0 : cells::first_gate<Cell>(stage), first_row = is_projection ? 0 : first;
      const auto from = [&](auto* p, int64_t width) {
        return p ? p + first_row * size_.hidden * width * int64_t(sizeof(S)) : nullptr;
      };
      return Side{from(weights[kind], columns),
                  from(grads[kind], columns),
                  is_projection ? nullptr : from(grads[bias], 1),
                  size_.units(stage),
                  columns,
                  first,
                  s == 0 ? kGates : Cell::kStageGates[stage],
                  {},
                  {},
                  kAllDgates};
    };
    Side side = s == 0 ? side_with(kInputWeight, kInputBias, 0, size_.inputs)
                       : side_with(cells::is_projection<Cell>(s - 1) ? kProjection : kHiddenWeight, kHiddenBias, s - 1,
                                   size_.operands(s - 1));
    const int own_blocks = kDgates + (s == 0 ? 0 : kHiddenNormSide) * kGates;  // where it is normalised
    for (int g = 0; g < side.gates; ++g) {
      side.biases[g] = s == 0 ? Cell::input_dgate(g) : Cell::hidden_dgate(side.first_gate + g);
      side.dgates[g] = kNormalizes ? own_blocks + g : side.biases[g];
      side.first_dgate = int(min(side.first_dgate, side.dgates[g]));
    }
    return side;
  }
  // K of a side's product with dgates, in packs: whole blocks, and of the last one its units.
  int64_t packs_of(const Side& side) const { return (side.gates - 1) * (block_ / F::kPack) + packs<F>(side.units); }

  // Whether W of that side is multiplied with dgates at all: for dx, for dh of every step but the first, and for what a later
  // stage gives to the one before it.
  bool needs_product(int side) const {
    return side == 0 ? p_.grad_x != nullptr : side > 1 || shape_.seq_len > 1 || p_.grad_h0;
  }

  // Whether a weight is packed panel by panel, each into the space of the thread that needs it. W_ih where there are but
  // two chunks to use it, or it is large beside what a training step keeps of each row; W_hh where a single thread uses it
  // in a single step.
  bool packs_when_needed(int side) const {
    if (p_.threads >= sides_[0][side].panels().count()) return false;
    return side == 0 ? rows_ <= 2 * max(chunk_rows_, size_.inputs) : shape_.seq_len == 1 && p_.threads == 1;
  }

  // Whether dW is a sum of several products, or of none.
  bool adds_up() const { return rows_ == 0 || rows_ > min(chunk_rows_, kMaxK); }

  void run_direction(const ThreadSlice& slice, int threads) const {
    const Steps steps(shape_, slice.direction);
    const int all = direction_barrier(slice.direction), group = group_barrier(slice, threads);
    pack_weights(slice);
    start_gradients(slice);
    for (int64_t begin = 0; rows_ > 0 && begin < steps.count();) {
      const Chunk chunk = next_chunk(steps, begin, chunk_rows_, true);
      pack_operands(slice, steps, chunk);
      barrier_wait(p_.team, all, slice.size);
      const auto wait_for_group = [&] { barrier_wait(p_.team, group, slice.split.unit_parts); };
      if (slice.recurs())
        for (int64_t i = chunk.begin; i < chunk.end; ++i) {
          const int64_t t = steps.time(steps.count() - 1 - i);
          for_indices<kStages>([&](auto index) {
            constexpr int stage = kStages - 1 - index.value;
            if constexpr (kNormalizes)
              normalized_step<stage>(slice, steps, chunk, t, wait_for_group);
            else
              pointwise_step<stage>(slice, steps, chunk, t);
            if constexpr (!cells::is_norm<Cell>(stage)) {
              wait_for_group();
              if (stage > 0 || i + 1 < steps.count() || p_.grad_h0) operand_gradient<stage>(slice, steps, chunk, t);
            }
          });
        }
      barrier_wait(p_.team, all, slice.size);
      for_indices<kProducts>([&](auto stage) { weight_gradients<stage.value>(slice, chunk); });
      if constexpr (kNormalizes)
        norm_weight_gradients(slice, chunk);
      else
        for (int s = 0; s < kSides; ++s) bias_gradient(slice, chunk, s);
      input_gradient(slice, chunk);
      barrier_wait(p_.team, all, slice.size);
      begin = chunk.end;
    }
    finish(slice);
  }

  // ---- set-up and end ----

  void pack_weights(const ThreadSlice& slice) const {
    for (int s = 0; s < kSides; ++s) {
      const Side& side = sides_[slice.direction][s];
      if (!needs_product(s) || side.in_place(rows_) || packs_when_needed(s)) continue;
      const Range own = share_of_packs<F>(side.units, slice.rank, slice.size);
      T* const packed = buffers_[slice.direction].w[s];
      for (int64_t u = own.begin; u < own.end; u += F::kPack)
        for (int g = 0; g < side.gates; ++g)
          pack_whole_packs<S, F>(weight_row(side, g, u), min(F::kPack, own.end - u), k_of(side, g, u), side.panels(),
                                 packs_of(side), packed);
      for (int g = 0; g < side.gates && slice.rank == 0; ++g)
        pack_zeros(k_padding(side, g), side.panels(), packs_of(side), packed);
    }
    if constexpr (kNormalizes) pack_norms(slice);
  }

  // The row of W for gate g of unit u.
  const S* weight_row(const Side& side, int g, int64_t u) const {
    return reinterpret_cast<const S*>(side.weight) + (g * side.units + u) * side.columns;
  }
  // Where that row goes in K.
  int64_t k_of(const Side& side, int g, int64_t u) const { return (side.dgates[g] - side.first_dgate) * block_ + u; }
  // The packs of gate g that have no unit.
  Range k_padding(const Side& side, int g) const {
    return {ceil_div(k_of(side, g, side.units), F::kPack), min(k_of(side, g, block_) / F::kPack, packs_of(side))};
  }

  // The row of sequence b in a [D, B, units] state or its gradient: `outputs` units of h, `hidden` of c.
  const S* state_row(const char* state, int64_t units, int direction, int64_t b) const {
    return reinterpret_cast<const S*>(state) + (direction * shape_.batch + sequence_of(shape_, b)) * units;
  }
  S* state_row(char* state, int64_t units, int direction, int64_t b) const {
    return const_cast<S*>(state_row(const_cast<const char*>(state), units, direction, b));
  }
  const S* initial_h(int direction, int64_t b) const { return state_row(p_.h0, size_.outputs, direction, b); }

  // Whether sequence b starts from zeros at step t: it has been reset.
  bool is_new(const Steps& steps, int64_t t, int64_t b) const {
    return (!steps.reverse() || b < steps.starting(t)) &&
           is_reset(resets_before(p_.transition.resets, shape_, steps.reverse(), t), shape_, b);
  }
  // The state h that a step began with.
  const S* previous_h(int direction, const Steps& steps, int64_t t, int64_t b) const {
    if (is_new(steps, t, b)) return buffers_[direction].zeros;
    return b >= steps.starting(t) ? initial_h(direction, b) : output_row(steps.previous(t), b, direction);
  }
  // The factors of recurrent dropout.
  V mask_of(int direction, int64_t b, int64_t u) const {
    return load(state_row(p_.transition.recurrent_mask, size_.outputs, direction, b) + u, size_.outputs - u);
  }

  // ---- the beginning and the end (backward_ends-inl.h) ----

  void start_gradients(const ThreadSlice& slice) const;
  static void zero(T* p, int64_t n);
  void finish(const ThreadSlice& slice) const;
  void narrow_all(const ThreadSlice& slice, const T* from, char* to, int64_t n) const;
  S* grad_x_row(int64_t t, int64_t b) const;
  void add_grad_x(Member member) const;

  // ---- the recurrence; the cell (backward_cell-inl.h) ----

  // What the cell reads and writes of one sequence at one step, from its first unit on.
  struct CellRow {
    const Buffers* buffers;
    const S* saved;                                  // [saved][padded]
    const S *h_prev, *h, *grad_output, *grad_cells;  // the last two may be null
    const S* c0;                                     // where the sequence starts, else null
    const T *c_prev, *c;
    T *dh, *dc;
    bool is_cut;  // nothing flows back from the next step
    const T* grad_operand;
    ZoneoutRow<T> zoneout_h, zoneout_c;
    T *kept_h, *kept_c;
    E* dgates;
  };

  CellRow cell_row(int d, const Steps& steps, const Chunk& chunk, int64_t t, int64_t b) const;
  template <int stage>
  Range own_vectors(const ThreadSlice& slice) const;
  template <int stage>
  void pointwise_step(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk, int64_t t) const;
  template <int stage, int kVectors = kSideBySide>
  void pointwise_vectors(const CellRow& row, Range range) const;
  template <int stage, int kVectors>
  void pointwise(const CellRow& row, int64_t u) const;

  // ---- normalisation (backward_norm-inl.h) ----

  struct NormRow;
  void take_norms(Arena& arena, int direction);
  void pack_norms(const ThreadSlice& slice) const;
  template <class Visit>
  void for_norm_gradients(int direction, const Visit& f) const;
  template <class Vectors, class Read>
  void remake_saved(const CellRow& row, const cells::State<Vectors>& prev, const Read& read, Vectors* saved) const;
  template <int norm>
  NormRow norm_row(int direction, const Chunk& chunk, int64_t row) const;
  template <int norm, class Visit>
  void for_unit_values(const NormRow& row, Range vectors, const Visit& f) const;
  template <int norm>
  void sum_units(const NormRow& row, Range vectors, NormSums<T>* sums) const;
  template <int norm, class P>
  void unit_gradients(const NormRow& row, Range vectors, const NormSums<T>* sums, int parts, int64_t stride,
                      P* out) const;
  template <int stage, class Wait>
  void normalized_step(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk, int64_t t,
                       const Wait& wait) const;
  void norm_weight_gradients(const ThreadSlice& slice, const Chunk& chunk) const;

  const S* output_row(int64_t t, int64_t b, int direction) const {
    return row_of<const S>(p_.output, shape_, t, b) + direction * size_.outputs;
  }

  // Makes tile = start + dgates W for one panel of a side's weight, of which `columns` columns may be written.
  SEQKERNELS_INLINE void multiply(const Side& side, const T* packed_panel, int64_t rows, int64_t panel, int64_t columns,
                                  const EvenRows<E>& dgates, const Tile<T>& tile) const {
    const int vectors = side.panels().vectors(panel);
    if constexpr (!kMixedPrecision)
      if (side.in_place(rows_)) {
        // Gate by gate: the weight's order of gates is not that of dgates.
        const T* const weight = reinterpret_cast<const T*>(side.weight) + panel * Panels<T>::kWidth;
        for (int g = 0; g < side.gates; ++g)
          gemm<F>(rows, vectors, EvenRows<E>{dgates.data + side.dgates[g] * block_, dgates.stride},
                  weight + g * side.units * side.columns, side.columns, side.units,
                  g == 0 ? tile : Tile<T>::accumulate(tile.data, tile.stride));
        return;
      }
    gemm_edge<F>(rows, vectors, columns, EvenRows<E>{dgates.data + side.first_dgate * block_, dgates.stride},
                 packed_panel, packs_of(side), tile);
  }

  // Makes the gradient of a stage's operand at step t, dgates W_hh, for the units and sequences of this thread. That of the
  // first stage is added to dh.
  template <int stage>
  void operand_gradient(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk, int64_t t) const {
    const Buffers& buffers = buffers_[slice.direction];
    const Side& side = sides_[slice.direction][1 + stage];
    const Range panels = slice.units(side.panels().count());
    const RowTiles tiles = row_tiles<F>(slice.sequences(steps.active(t)), kPanelVectors);
    if (tiles.count() == 0) return;
    const E* const dgates = buffers.dgates + (steps.first_row(t) - chunk.first_row) * dgates_stride_;
    for (int64_t n = 0; n < panels.size(); ++n) {
      // Alternating (serpentine) traversal: what the last step read last is what the cache still holds.
      const int64_t panel = t % 2 ? panels.end - 1 - n : panels.begin + n;
      const T* const w = weight_panel(slice, 1 + stage, panel);
      for (int64_t j = 0; j < tiles.count(); ++j) {
        const Range rows = tiles[j];
        const int64_t b = slice.sequence(rows.begin), stride = slice.split.batch_parts;
        const int64_t padded = stage == 0 ? size_.outputs_padded : size_.padded;
        const int64_t at = b * padded + panel * Panels<T>::kWidth;
        const auto product = [&](const Tile<T>& tile) {
          multiply(side, w, rows.size(), panel, Panels<T>::kWidth,
                   {dgates + b * dgates_stride_, stride * dgates_stride_}, tile);
        };
        T* const out = (stage == 0 ? buffers.dh : buffers.grad_operand) + at;
        if (p_.transition.recurrent_mask && !cells::is_projection<Cell>(stage))
          visit_product(rows.size(), side.panels().vectors(panel), product, [&](int64_t r, int64_t column, V grad) {
            T* const to = out + r * stride * padded + column;
            const V masked = grad * mask_of(slice.direction, b + r * stride, panel * Panels<T>::kWidth + column);
            store(to, stage == 0 ? load(to) + masked : masked);
          });
        else
          product(stage == 0 ? Tile<T>::accumulate(out, stride * padded) : Tile<T>::from_zero(out, stride * padded));
      }
    }
  }

  // ---- the products over a chunk (backward_products-inl.h) ----

  template <int stage>
  const S* operand_row(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk, int64_t t, int64_t b) const;
  void pack_operands(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk) const;
  template <int stage>
  void weight_gradients(const ThreadSlice& slice, const Chunk& chunk) const;
  static auto left_operand(const T* block, int64_t k_size);
  void pack_dgates(const E* dgates, int64_t k_size, int64_t columns, T* block) const;
  void pack_columns(const E* dgates, int64_t k_size, int64_t columns, T* out) const;
  void pack_rows(const E* dgates, int64_t k_size, int64_t columns, T* out) const;
  void weight_gradient(const ThreadSlice& slice, const Chunk& chunk, int s, int64_t first, int64_t rows, int64_t k0,
                       int64_t k_size, const T* block) const;
  template <class Multiply, class Visit>
  static void visit_product(int64_t rows, int vectors, const Multiply& multiply, const Visit& visit);
  void bias_gradient(const ThreadSlice& slice, const Chunk& chunk, int s) const;
  const T* weight_panel(const ThreadSlice& slice, int s, int64_t panel) const;
  void input_gradient(const ThreadSlice& slice, const Chunk& chunk) const;

  const BackwardArguments& p_;
  const LayerShape& shape_;
  const LayerSizes<Cell> size_;
  const ZoneoutOf<T> zoneout_h_, zoneout_c_;
  const int64_t rows_;   // R
  const int64_t block_;  // units of a gate in dgates, padded to whole packs
  const int64_t chunk_rows_, dgates_stride_;
  Side sides_[kMaxDirections][kSides];
  Buffers buffers_[kMaxDirections];
  int64_t workspace_;
};

}  // namespace seqkernels::SEQKERNELS_ISA
