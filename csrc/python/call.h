// A call of a whole module, without torch's dispatcher: its arguments, borrowed, and its results.
#pragma once
#include <pybind11/pybind11.h>

#include <string_view>

#include "../cpu/stack.h"
#include "borrow.h"

namespace seqkernels {

// How a module is called.
struct Form {
  CellKind cell;
  bool is_cell;  // one of torch's Cells: x is [B, I] or [I], and the result the state alone
  StackSizes sizes;
  bool batch_first;
  double norm_eps;  // of a normalised cell
  double zoneout_h_rate = 0, zoneout_c_rate = 0;
  bool cell_states = false;  // whether c of every step is asked for

  bool has_c() const { return cell_info(cell).has_cell_state; }
  WeightSize size_of(WeightKind kind, int64_t layer) const;
};

// A cell by its name; false where there is none.
bool find_cell(std::string_view name, CellKind& kind);

// One call: what came, what it is in sizes, and what it gives.
class Call {
 public:
  // False where x, hx and the mask are not plain tensors of the sizes that this form takes, or, with `gradients`, require one.
  // hx and the mask may be None.
  bool read(const Form& form, PyObject* x, PyObject* hx, PyObject* reset_mask, bool gradients);
  void make_results();
  pybind11::object results();  // what the module's forward returns

  DType dtype() const { return x_.dtype; }
  int64_t rows() const { return seq_len_ * batch_; }
  StackCall stack() const;

 private:
  bool read_resets(PyObject* reset_mask);
  bool read_states(PyObject* hx, bool gradients);
  BorrowedTensor new_rows(int64_t width) const;
  bool read_state(PyObject* object, int64_t units, bool gradients, BorrowedTensor& state) const;

  Form form_;
  BorrowedTensor x_, h0_, c0_, reset_mask_;
  bool batched_, has_state_ = false;
  int64_t seq_len_, batch_;
  RowTensor x_rows_, resets_{};
  BorrowedTensor output_, h_n_, c_n_, cell_states_;
};

// From this many multiply-adds on, Python's other threads may run meanwhile.
constexpr double kLongWork = 1 << 19;

template <class Kernels>
void run_beside_python(double work, const Kernels& kernels) {
  if (work < kLongWork) return kernels();
  const pybind11::gil_scoped_release others_may_run;
  kernels();
}

}  // namespace seqkernels
