// The kernels of every instruction set against the float64 ones, on a machine that has nothing but a CPU.
//
// Sizes, directions and tolerances are in the manner of tests/test_ops.py: forward with everything saved, then backward.
#include <initializer_list>

#include "cpu/kernels.h"

using namespace seqkernels;

// ---- what there is instead of an operating system ------------------------------------------------------------------

namespace seqkernels {
void barrier_wait(Team*, int, int) {}  // one thread
}  // namespace seqkernels

extern "C" {
void* memcpy(void* to, const void* from, size_t n) {
  for (size_t i = 0; i < n; ++i) static_cast<char*>(to)[i] = static_cast<const char*>(from)[i];
  return to;
}
void* memset(void* to, int byte, size_t n) {
  for (size_t i = 0; i < n; ++i) static_cast<char*>(to)[i] = char(byte);
  return to;
}
void _Unwind_Resume(void*) {}
int __gxx_personality_v0() { return 0; }
}

static void out(uint16_t port, const char* text) {
  for (; *text; ++text) asm volatile("outb %0, %1" ::"a"(*text), "Nd"(port));
}
static void print(const char* text) { out(0xe9, text); }  // Bochs's console
static void print(int64_t n) {
  char text[24], *p = text + 23;
  *p = 0;
  do *--p = char('0' + n % 10);
  while (n /= 10);
  print(p);
}

// Memory from 64 MB on, all of it given back at once.
static char* next_free;
static void give_back_memory() { next_free = reinterpret_cast<char*>(int64_t(64) << 20); }
template <class T>
static T* take(int64_t n, int byte = 0xff) {
  char* const p = next_free;
  const int64_t bytes = (n * int64_t(sizeof(T)) + 127) / 64 * 64;
  next_free += bytes;
  return static_cast<T*>(memset(p, byte, size_t(bytes)));
}

// ---- numbers -------------------------------------------------------------------------------------------------------

static double value(float x) { return x; }
static double value(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

// From -size to size, with no more bits than every type holds.
static uint64_t state;
static void random(double size, double& x) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  x = double(int64_t(state >> 56) - 128) / 128 * size;
}
static void random(double size, float& x) {
  double wide;
  random(size, wide), x = float(wide);
}
static void random(double size, Bf16& x) {
  float wide;
  random(size, wide);
  uint32_t bits;
  memcpy(&bits, &wide, sizeof bits);
  x.bits = uint16_t(bits >> 16);
}
template <class S>
static char* randoms(int64_t n, double size) {
  S* const p = take<S>(n);
  for (int64_t i = 0; i < n; ++i) random(size, p[i]);
  return reinterpret_cast<char*>(p);
}

// ---- a layer and its results -----------------------------------------------------------------------------------------

struct Case {
  CellKind cell;
  int64_t seq_len, batch, inputs, hidden, directions;
};

template <class S>
struct Results {
  S* data[16];
  int64_t size[16];
  int count = 0;
  char* add(int64_t n) {
    size[count] = n;
    return reinterpret_cast<char*>(data[count++] = take<S>(n));
  }
};

template <class S>
static Results<S> run(const LayerKernels& kernels, const Case& c) {
  const bool lstm = cell_info(c.cell).has_cell_state;
  const int64_t gates = cell_info(c.cell).gates, states = c.directions * c.batch * c.hidden;
  const int64_t rows = c.seq_len * c.batch, width = c.directions * c.hidden,
                padded = (c.hidden + kUnitPadding - 1) / kUnitPadding * kUnitPadding;
  const int64_t matrix[2] = {gates * c.hidden * c.inputs, gates * c.hidden * c.hidden};
  int64_t* const offsets = take<int64_t>(c.seq_len + 1);
  for (int64_t t = 0; t <= c.seq_len; ++t) offsets[t] = t * c.batch;
  Results<S> results;
  state = 1;

  const auto row_tensor = [&](char* data, int64_t n) { return RowTensor{data, c.batch * n, n}; };
  LayerArguments arguments{};
  arguments.shape = {c.seq_len, c.batch, c.inputs, c.hidden, c.hidden, c.directions, offsets, false};
  arguments.x = row_tensor(randoms<S>(rows * c.inputs, 2), c.inputs);
  arguments.output = row_tensor(results.add(rows * width), width);
  arguments.h0 = randoms<S>(states, 1);
  if (lstm) arguments.c0 = randoms<S>(states, 1);
  double small = 1;
  while (small * small * double(c.hidden) > 1) small /= 2;  // a step's gain is below 1
  for (int64_t d = 0; d < c.directions; ++d)
    arguments.weights[d] = {randoms<S>(matrix[0], small), randoms<S>(matrix[1], small),
                            randoms<S>(gates * c.hidden, small), randoms<S>(gates * c.hidden, small)};
  arguments.gates = take<char>(c.directions * rows * 4 * padded * int64_t(sizeof(S)));
  if (lstm) arguments.cells = take<char>(c.directions * rows * padded * int64_t(sizeof(double)));
  arguments.threads = 1;

  ForwardArguments forward{};
  static_cast<LayerArguments&>(forward) = arguments;
  forward.h_n = results.add(states);
  if (lstm) forward.c_n = results.add(states);
  forward.workspace = take<char>(kernels.forward_workspace(forward));
  kernels.forward(forward, {0, 1});

  BackwardArguments backward{};
  static_cast<LayerArguments&>(backward) = arguments;
  backward.grad_output = row_tensor(randoms<S>(rows * width, 1), width);
  backward.grad_h_n = randoms<S>(states, 1);
  if (lstm) backward.grad_c_n = randoms<S>(states, 1);
  backward.grad_x = results.add(rows * c.inputs);
  backward.grad_h0 = results.add(states);
  if (lstm) backward.grad_c0 = results.add(states);
  for (int64_t d = 0; d < c.directions; ++d) {
    WeightGrads& grads = backward.grads[d];
    for (const WeightKind kind : {kInputWeight, kHiddenWeight}) grads.of[kind] = results.add(matrix[kind]);
    for (const WeightKind kind : {kInputBias, kHiddenBias}) grads.of[kind] = results.add(gates * c.hidden);
  }
  backward.workspace = take<char>(kernels.backward_workspace(backward));
  kernels.backward(backward, {0, 1});
  return results;
}

// As error_of in tests/conftest.py, squared; below zero where there is NaN.
template <class S>
static double squared_error(const Results<S>& actual, const Results<double>& expected) {
  double worst = 0;
  for (int r = 0; r < expected.count; ++r) {
    double mean = 0;
    for (int64_t i = 0; i < expected.size[r]; ++i)
      mean += expected.data[r][i] * expected.data[r][i] / double(expected.size[r]);
    for (int64_t i = 0; i < expected.size[r]; ++i) {
      const double e = expected.data[r][i], error = value(actual.data[r][i]) - e;
      if (error != error) return -1;
      const double relative = error * error / (e * e > mean ? e * e : mean);
      if (relative > worst) worst = relative;
    }
  }
  return worst;
}

static int failures;
template <class S>
static void check(const char* isa, const LayerKernels& kernels, const Case& c, const Results<double>& expected,
                  double eps, double tolerance) {
  const double error = squared_error(run<S>(kernels, c), expected) / (eps * eps);
  const bool right = error >= 0 && error <= tolerance * tolerance;
  failures += !right;
  int64_t root = 0;
  while (double(root * root) < error) ++root;
  print(right ? "passed " : "FAILED "), print(isa), print(sizeof(S) == 4 ? " float32 " : " bfloat16 ");
  print(cell_info(c.cell).name);
  for (int64_t n : {c.seq_len, c.batch, c.inputs, c.hidden, c.directions}) print(" "), print(n);
  print(": below "), print(root), print(" eps\n");
}

extern "C" int main() {
  constexpr double kEps32 = 1.0 / (1 << 23), kEps16 = 1.0 / (1 << 7);
  constexpr int64_t kSizes[][5] = {{3, 1, 5, 7, 1},    {4, 2, 16, 32, 1},   {3, 3, 33, 31, 2}, {5, 17, 20, 50, 1},
                                   {3, 33, 64, 64, 2}, {9, 64, 32, 100, 1}, {4, 40, 70, 33, 1}};
  for (const auto& n : kSizes)
    for (int cell = 0; cell < kCellKinds; ++cell) {
      const Case c{CellKind(cell), n[0], n[1], n[2], n[3], n[4]};
      const auto of = [&](const KernelTable& table, DType dtype) { return table.cells[cell][int(dtype)]; };
      give_back_memory();
      const Results<double> expected = run<double>(of(baseline_kernels(), DType::kFloat64), c);
      for (const KernelTable* table : {&avx2_kernels(), &avx512_kernels()})
        check<float>(table->isa, of(*table, DType::kFloat32), c, expected, kEps32, 128);
      // A number that rounds to the other side of its kink changes ReLU's gradients by more than any eps.
      if (c.cell == kind_of<cells::RnnRelu>()) continue;
      for (const KernelTable* table : {&avx2_kernels(), &avx512_kernels()})
        check<Bf16>(table->isa, of(*table, DType::kBFloat16), c, expected, kEps16, 12);
      for (const Bf16Kernels* table : {&avx512bf16_kernels(), &amx_kernels()})
        check<Bf16>(table->isa, table->cells[cell], c, expected, kEps16, 12);
    }
  print(failures), print(" failures\n");
  out(0x8900, "Shutdown");
  return 0;
}
