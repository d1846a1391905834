// What the backward pass does before its first chunk and after its last one. Compiled once per ISA.
//
// Members of BackwardLoop, which names the types.
#pragma once
#include "backward-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// Gradients of states begin with those of the final ones; what no step writes is set to zero.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::start_gradients(const ThreadSlice& slice) const {
  const Buffers& buffers = buffers_[slice.direction];
  const Range own = share(shape_.batch, slice.rank, slice.size);
  const auto start = [&](T* row, const char* grad, int64_t units, int64_t b) {
    for (int64_t u = 0; u < round_up(units, kUnitPadding); u += kLanes)
      store(row + u, grad ? load(state_row(grad, units, slice.direction, b) + u, units - u) : V(0));
  };
  for (int64_t b = own.begin; b < own.end; ++b) {
    start(buffers.dh + b * size_.outputs_padded, p_.grad_h_n, size_.outputs, b);
    if (Cell::kHasCellState) start(buffers.dc + b * size_.padded, p_.grad_c_n, size_.hidden, b);
  }
  if (slice.rank == 0 && p_.transition.resets.data)
    for (int64_t u = 0; u < max(size_.padded, size_.outputs_padded); ++u) buffers.zeros[u] = S{};
  if (slice.direction == 0 && p_.grad_x && shape_.order)  // rows that belong to no sequence
    for_padding(shape_, share(shape_.padded_len, slice.rank, slice.size),
                [&](int64_t t, int64_t b) { __builtin_memset(grad_x_row(t, b), 0, size_t(size_.inputs) * sizeof(S)); });
  // No step writes what fills the last packs of a gate.
  const Range rows = share(chunk_rows_, slice.rank, slice.size);
  const int64_t fewest = min(size_.hidden, size_.outputs);
  for (int64_t row = rows.begin; row < rows.end && block_ > fewest; ++row)
    for (int g = 0; g < kAllDgates; ++g)
      for (int64_t u = fewest; u < block_; ++u) buffers.dgates[row * dgates_stride_ + g * block_ + u] = E{};
  if (rows_ > 0) {
    if (p_.transition.resets.data)  // what comes next reads the zeros
      barrier_wait(p_.team, direction_barrier(slice.direction), slice.size);
    return;
  }
  // Without rows, no product writes the gradients of weights.
  for (int s = 0; s < kSides && slice.rank == 0; ++s) {
    const Side& side = sides_[slice.direction][s];
    if (side.grad) zero(buffers.grad_w[s], side.gates * side.units * side.columns);
    if (side.bias_grad) zero(buffers.grad_b[s], side.gates * side.units);
  }
  if constexpr (kNormalizes)
    if (slice.rank == 0) for_norm_gradients(slice.direction, [](T* grad, char*, int64_t n) { zero(grad, n); });
  barrier_wait(p_.team, direction_barrier(slice.direction), slice.size);
}

template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::zero(T* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = 0;
}

// Writes the gradients of initial states, and those of weights that were added up in wider numbers.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::finish(const ThreadSlice& slice) const {
  const Buffers& buffers = buffers_[slice.direction];
  const Range own = share(shape_.batch, slice.rank, slice.size);
  const Steps steps(shape_, slice.direction);
  const auto write = [&](char* grad, const T* row, int64_t units, int64_t b) {
    // A first step that starts from zeros has not read the initial state.
    const bool is_unread = !steps.reverse() && b < steps.active(0) && is_new(steps, 0, b);
    for (int64_t u = 0; u < units; u += kLanes)
      store(state_row(grad, units, slice.direction, b) + u, is_unread ? V(0) : load(row + u), units - u);
  };
  for (int64_t b = own.begin; b < own.end; ++b) {
    if (p_.grad_h0) write(p_.grad_h0, buffers.dh + b * size_.outputs_padded, size_.outputs, b);
    if (p_.grad_c0) write(p_.grad_c0, buffers.dc + b * size_.padded, size_.hidden, b);
  }
  if constexpr (kMixedPrecision)
    for (int s = 0; s < kSides; ++s) {
      const Side& side = sides_[slice.direction][s];
      if (side.grad && adds_up())
        narrow_all(slice, buffers.grad_w[s], side.grad, side.gates * side.units * side.columns);
      if (side.bias_grad) narrow_all(slice, buffers.grad_b[s], side.bias_grad, side.gates * side.units);
    }
  if constexpr (kMixedPrecision && kNormalizes)
    for_norm_gradients(slice.direction, [&](const T* grad, char* to, int64_t n) { narrow_all(slice, grad, to, n); });
}

template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::narrow_all(const ThreadSlice& slice, const T* from, char* to, int64_t n) const {
  const Range own = share(ceil_div(n, kLanes), slice.rank, slice.size);
  for (int64_t v = own.begin; v < own.end; ++v)
    store(reinterpret_cast<S*>(to) + v * kLanes, load(from + v * kLanes, n - v * kLanes), n - v * kLanes);
}

// Where the gradient of a row of x goes, of sequences with lengths of their own.
template <class Cell, class S, class F>
inline S* BackwardLoop<Cell, S, F>::grad_x_row(int64_t t, int64_t b) const {
  return reinterpret_cast<S*>(p_.grad_x) + (t * shape_.batch + sequence_of(shape_, b)) * size_.inputs;
}

// Adds the second direction's share of the gradient of x.
template <class Cell, class S, class F>
inline void BackwardLoop<Cell, S, F>::add_grad_x(Member member) const {
  const T* const second = buffers_[1].grad_x;
  const auto add = [](S* grad, const T* other, int64_t begin, int64_t end, int64_t n) {
    for (int64_t i = begin; i < end; i += kLanes)
      store(grad + i, load(grad + i, n - i) + load(other + i, n - i), n - i);
  };
  const int64_t n = size_.inputs;
  if (shape_.order) {
    const Range own = share(shape_.seq_len, member.rank, member.size);
    for (int64_t t = own.begin; t < own.end; ++t)
      for (int64_t row = shape_.offsets[t]; row < shape_.offsets[t + 1]; ++row)
        add(grad_x_row(t, row - shape_.offsets[t]), second + row * n, 0, n, n);
    return;
  }
  const Range own = share(ceil_div(rows_ * n, kLanes), member.rank, member.size);
  add(reinterpret_cast<S*>(p_.grad_x), second, own.begin * kLanes, min(own.end * kLanes, rows_ * n), rows_ * n);
}

}  // namespace seqkernels::SEQKERNELS_ISA
