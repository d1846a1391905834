// What the forward and the backward time loop share: who does what, and where the rows of a step lie.
//
// A layer runs in chunks of steps. Within a chunk, products that do not depend on the recurrence (the input gates,
// the weight and input gradients) are shared out as matrix products; between them the recurrence goes step by step,
// with its members split by sequences (no barrier) or by hidden units (one barrier a step).
//
// Type parameters: S is the storage type of tensors, F the format of operands (gemm/formats-inl.h).
#pragma once
#include "activations-inl.h"
#include "gemm/gemm-inl.h"
#include "plan-inl.h"
#include "team.h"

namespace seqkernels::SEQKERNELS_ISA {

// Hands out parts of the workspace; with a null base it only counts.
class Arena {
 public:
  explicit Arena(char* base) : base_(reinterpret_cast<uintptr_t>(base)) {}
  template <class T>
  T* take(int64_t n) {
    T* const p = reinterpret_cast<T*>(base_ + uintptr_t(used_));
    used_ += round_up(n * int64_t(sizeof(T)), 64);
    return p;
  }
  int64_t used() const { return used_; }

 private:
  uintptr_t base_;
  int64_t used_ = 0;
};

// The steps of one direction in the order it visits them. `Row` below is a row of the layer: offsets[t] + b.
class Steps {
 public:
  Steps(const LayerShape& shape, int direction) : shape_(shape), reverse_(direction == 1 || shape.reverse) {}

  bool reverse() const { return reverse_; }
  int64_t count() const { return shape_.seq_len; }
  int64_t time(int64_t i) const { return reverse_ ? shape_.seq_len - 1 - i : i; }
  int64_t first_row(int64_t t) const { return shape_.offsets[t]; }
  int64_t active(int64_t t) const {
    return t < 0 || t >= shape_.seq_len ? 0 : shape_.offsets[t + 1] - shape_.offsets[t];
  }
  int64_t previous(int64_t t) const { return reverse_ ? t + 1 : t - 1; }
  int64_t next(int64_t t) const { return reverse_ ? t - 1 : t + 1; }
  // Sequences at or beyond this one start (have no previous step) or end (have no next step) at t.
  int64_t starting(int64_t t) const { return active(previous(t)); }
  int64_t ending(int64_t t) const { return active(next(t)); }

 private:
  const LayerShape& shape_;
  bool reverse_;
};

// Consecutive steps (in visiting order) whose rows are processed together; rows [first_row, first_row + rows).
struct Chunk {
  int64_t begin, end;  // visiting order
  int64_t first_row, rows;
};

inline Chunk next_chunk(const Steps& steps, int64_t begin, int64_t target_rows, bool backward) {
  const auto time = [&](int64_t i) { return steps.time(backward ? steps.count() - 1 - i : i); };
  Chunk chunk{begin, begin, steps.first_row(time(begin)), 0};
  while (chunk.end < steps.count()) {
    const int64_t t = time(chunk.end), active = steps.active(t);
    if (chunk.end > begin && chunk.rows + active > target_rows) break;
    chunk.first_row = min(chunk.first_row, steps.first_row(t));
    chunk.rows += active;
    ++chunk.end;
  }
  return chunk;
}

// Rows of the largest chunk: at least one step, at most `target_rows` where steps are smaller, and no more than chunks
// of equal size need.
inline int64_t chunk_capacity(const LayerShape& shape, int64_t target_rows) {
  const int64_t rows = shape.offsets[shape.seq_len], most = max(target_rows, shape.batch);
  if (rows <= most) return rows;
  return min(most, round_up(ceil_div(rows, ceil_div(rows, most)), shape.batch));
}

// Which sequence of the tensors b is.
SEQKERNELS_INLINE int64_t sequence_of(const LayerShape& shape, int64_t b) { return shape.order ? shape.order[b] : b; }

// The row of the tensors' first sequence at step t, and of sequence b.
template <class S>
SEQKERNELS_INLINE S* first_row_of(const RowTensor& tensor, const LayerShape& shape, int64_t t) {
  const int64_t step = shape.packed ? shape.offsets[t] * tensor.batch_stride : t * tensor.step_stride;
  return reinterpret_cast<S*>(tensor.data) + step;
}
template <class S>
SEQKERNELS_INLINE S* row_of(const RowTensor& tensor, const LayerShape& shape, int64_t t, int64_t b) {
  return first_row_of<S>(tensor, shape, t) + sequence_of(shape, b) * tensor.batch_stride;
}

// Calls f(t, b) for the rows of padded tensors that belong to no sequence, of the steps [range) of theirs.
template <class Visit>
SEQKERNELS_INLINE void for_padding(const LayerShape& shape, Range range, const Visit& f) {
  for (int64_t t = range.begin; t < range.end; ++t)
    for (int64_t b = t < shape.seq_len ? shape.offsets[t + 1] - shape.offsets[t] : 0; b < shape.batch; ++b) f(t, b);
}

// Calls f(t, b, row of the chunk) for the chunk's rows [range), in row order.
template <class Visit>
SEQKERNELS_INLINE void for_rows(const LayerShape& shape, const Steps& steps, const Chunk& chunk, Range range,
                                bool backward, const Visit& f) {
  const int64_t last = chunk.end - 1;
  const int64_t ta = steps.time(backward ? shape.seq_len - 1 - chunk.begin : chunk.begin);
  const int64_t tb = steps.time(backward ? shape.seq_len - 1 - last : last);
  for (int64_t t = min(ta, tb); t <= max(ta, tb); ++t) {
    const int64_t first = shape.offsets[t] - chunk.first_row;
    const int64_t begin = max(range.begin, first), end = min(range.end, first + steps.active(t));
    for (int64_t row = begin; row < end; ++row) f(t, row - first, row);
  }
}

// The limits of this ISA and the format F as constants, for products of panels that are `vectors` wide.
template <class F>
struct FormatLimits {
  static constexpr int vector_bytes = kVectorBytes, multiply_adds = F::kMultiplyAdds, rows_lost = F::kRowsLost;
  int vectors;
  SEQKERNELS_INLINE int64_t tiles(int64_t rows) const { return row_tiles<F>(rows, product_vectors(vectors)).count(); }
  // The same as plain numbers.
  ProductLimits numbers() const {
    const int most = max_rows_in_parts<F>(product_vectors(vectors));
    return {vector_bytes, multiply_adds, rows_lost, F::kInTiles ? most : max_rows(product_vectors(vectors)), most};
  }
};

// The split whose step takes the fewest cycles: one request for each of its products.
template <class F, int kProducts>
Split choose_split(const SplitRequest (&products)[kProducts]) {
  FormatLimits<F> limits[kProducts];
  for (int i = 0; i < kProducts; ++i) limits[i] = {products[i].vectors};
  return fastest_split(limits, products);
}

// What one thread of a direction works on: its rank in the products that are shared out, its part of the recurrence.
struct ThreadSlice {
  int direction, rank, size;
  Split split;
  int group, part;  // of the sequences, and within the group of the units

  ThreadSlice(int direction, int rank, int size, Split split)
      : direction(direction),
        rank(rank),
        size(size),
        split(split),
        group(rank / split.unit_parts),
        part(rank % split.unit_parts) {}

  bool recurs() const { return group < split.batch_parts; }
  Range units(int64_t n) const { return share(n, part, split.unit_parts); }

  // Sequences are dealt out in turn, so that the shares stay equal as the short ones of a packed batch end: this
  // member's r-th sequence, and how many of the first `active` it has.
  int64_t sequence(int64_t r) const { return group + r * split.batch_parts; }
  int64_t sequences(int64_t active) const { return max(0, ceil_div(active - group, split.batch_parts)); }
  // How many of `batch` are those of the groups before this one.
  int64_t first_row(int64_t batch) const {
    return group * (batch / split.batch_parts) + min(group, batch % split.batch_parts);
  }
};

// Barriers of a team: one for everybody, one per direction, one per group of a split by units.
constexpr int kMaxDirections = 2;
inline int everybody() { return 0; }
inline int direction_barrier(int direction) { return 1 + direction; }
inline int group_barrier(const ThreadSlice& slice, int threads) {
  return 1 + kMaxDirections + slice.direction * threads + slice.group;
}

// Runs f(direction, rank, size) for the directions of a member: side by side where there are threads enough.
template <class Visit>
SEQKERNELS_INLINE void for_directions(const LayerShape& shape, Member member, const Visit& f) {
  const int directions = int(shape.directions);
  if (member.size < directions) {
    for (int d = 0; d < directions; ++d) f(d, member.rank, member.size);
  } else {
    const int d = member.rank % directions;
    f(d, member.rank / directions, (member.size - d + directions - 1) / directions);
  }
}

// Sizes of a layer of that cell. Where h is a projection it has units of its own, `outputs`; else these are the hidden units.
template <class Cell>
struct LayerSizes {
  explicit LayerSizes(const LayerShape& shape)
      : inputs(shape.input_size),
        hidden(shape.hidden_size),
        outputs(Cell::kIsProjected ? shape.output_size : shape.hidden_size),
        padded(round_up(hidden, kUnitPadding)),
        outputs_padded(round_up(outputs, kUnitPadding)) {}

  int64_t inputs, hidden, outputs, padded, outputs_padded;

  // Units that a stage makes, and those of what it multiplies.
  int64_t units(int stage) const { return cells::is_projection<Cell>(stage) ? outputs : hidden; }
  int64_t operands(int stage) const { return stage == 0 ? outputs : hidden; }
};

}  // namespace seqkernels::SEQKERNELS_ISA
