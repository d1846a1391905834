#include "call.h"

#include <algorithm>

namespace seqkernels {

bool find_cell(std::string_view name, CellKind& kind) {
  for (int i = 0; i < kCellKinds; ++i)
    if (name == kCellInfos.of[i].name) return kind = CellKind(i), true;
  return false;
}

WeightSize Form::size_of(WeightKind kind, int64_t layer) const {
  const int64_t inputs = layer == 0 ? sizes.input_size : sizes.directions * sizes.output_size;
  return cell_info(cell).size_of(kind, inputs, sizes.hidden_size, sizes.output_size);
}

bool Call::read(const Form& form, PyObject* x, PyObject* hx, PyObject* reset_mask, bool gradients) {
  form_ = form;
  if (!borrow(x, gradients, x_)) return false;
  const int rows = form.is_cell ? 0 : 1, last = x_.dim - 1;
  batched_ = x_.dim == rows + 2;
  if ((!batched_ && x_.dim != rows + 1) || x_.sizes[last] != form.sizes.input_size) return false;
  if (x_.sizes[last] > 1 && x_.strides[last] != 1) return false;
  const int step = batched_ && form.batch_first ? 1 : 0, sequence = 1 - step;
  seq_len_ = form.is_cell ? 1 : x_.sizes[step];
  batch_ = !batched_ ? 1 : form.is_cell ? x_.sizes[0] : x_.sizes[sequence];
  if (seq_len_ == 0) return false;
  x_rows_ = {x_.data, form.is_cell ? 0 : x_.strides[step],
             !batched_      ? 0
             : form.is_cell ? x_.strides[0]
                            : x_.strides[sequence]};
  return (reset_mask == Py_None || read_resets(reset_mask)) && (hx == Py_None || read_states(hx, gradients));
}

bool Call::read_resets(PyObject* reset_mask) {
  BorrowedTensor& mask = reset_mask_;
  if (!borrow_flags(reset_mask, mask) || mask.dim != x_.dim - 1 ||
      !std::equal(mask.sizes, mask.sizes + mask.dim, x_.sizes))
    return false;
  const int step = batched_ && form_.batch_first ? 1 : 0;
  resets_ = {mask.data, form_.is_cell ? 0 : mask.strides[step],
             !batched_       ? 0
             : form_.is_cell ? mask.strides[0]
                             : mask.strides[1 - step]};
  return true;
}

void Call::make_results() {
  const StackSizes& sizes = form_.sizes;
  const BorrowedTensor& like = has_state_ ? h0_ : x_;
  const auto new_state = [&, states = sizes.layers * sizes.directions](int64_t units) {
    if (form_.is_cell) return batched_ ? new_tensor({batch_, units}, like) : new_tensor({units}, like);
    return batched_ ? new_tensor({states, batch_, units}, like) : new_tensor({states, units}, like);
  };
  h_n_ = new_state(sizes.output_size);
  if (form_.has_c()) c_n_ = new_state(sizes.hidden_size);
  if (form_.is_cell) return;
  output_ = new_rows(sizes.directions * sizes.output_size);
  if (form_.cell_states) cell_states_ = new_rows(sizes.directions * sizes.hidden_size);
}

// One row of so many numbers for each step of each sequence.
BorrowedTensor Call::new_rows(int64_t width) const {
  const bool no_matter = seq_len_ == 1 || batch_ == 1;  // which of them comes first
  return !batched_                        ? new_tensor({seq_len_, width}, h_n_)
         : form_.batch_first && no_matter ? new_tensor({batch_, seq_len_, width}, h_n_)
                                          : new_tensor({seq_len_, batch_, width}, h_n_);
}

pybind11::object Call::results() {
  pybind11::object state = form_.has_c() ? pybind11::make_tuple(h_n_.owner, c_n_.owner) : h_n_.owner;
  if (form_.is_cell) return state;
  const bool is_turned = batched_ && form_.batch_first && seq_len_ > 1 && batch_ > 1;
  const auto turned = [&](const BorrowedTensor& rows) -> pybind11::object {
    return is_turned ? pybind11::object(rows.owner.attr("transpose")(0, 1)) : rows.owner;
  };
  if (form_.cell_states) return pybind11::make_tuple(turned(output_), state, turned(cell_states_));
  return pybind11::make_tuple(turned(output_), state);
}

StackCall Call::stack() const {
  char* const h_n = h_n_.data;
  return {form_.sizes,
          form_.norm_eps,
          x_.dtype,
          seq_len_,
          batch_,
          x_rows_,
          has_state_ ? h0_.data : nullptr,
          has_state_ && form_.has_c() ? c0_.data : nullptr,
          form_.is_cell ? h_n : output_.data,
          h_n,
          form_.has_c() ? c_n_.data : nullptr,
          resets_,
          form_.zoneout_h_rate,
          form_.zoneout_c_rate,
          form_.cell_states ? cell_states_.data : nullptr};
}

bool Call::read_states(PyObject* hx, bool gradients) {
  has_state_ = true;
  const int64_t hidden = form_.sizes.hidden_size, outputs = form_.sizes.output_size;
  if (!form_.has_c()) return read_state(hx, outputs, gradients, h0_);
  if (!(PyTuple_Check(hx) || PyList_Check(hx)) || PySequence_Fast_GET_SIZE(hx) != 2) return false;
  PyObject* const* const states = PySequence_Fast_ITEMS(hx);
  return read_state(states[0], outputs, gradients, h0_) && read_state(states[1], hidden, gradients, c0_);
}

bool Call::read_state(PyObject* object, int64_t units, bool gradients, BorrowedTensor& state) const {
  if (!borrow(object, gradients, state) || state.dtype != x_.dtype || !state.is_contiguous()) return false;
  const int64_t layers = form_.sizes.layers * form_.sizes.directions;
  if (form_.is_cell) return batched_ ? state.has_sizes({batch_, units}) : state.has_sizes({units});
  return batched_ ? state.has_sizes({layers, batch_, units}) : state.has_sizes({layers, units});
}

}  // namespace seqkernels
