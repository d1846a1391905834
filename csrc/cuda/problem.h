// What a kernel is told: plain structs of sizes and pointers, passed by value. D directions, T steps, B sequences, H
// hidden units, P units of h (H without a projection), R rows (the time steps of all sequences together), G gates; Hp is H
// rounded up to kUnitPadding.
//
// `time` counts the steps of the sequence, `step` those of a direction as it is processed: the same in direction 0, and
// from the end in direction 1. Pointers are to the element type, or to `real`: double for double, else float.
#pragma once
#include <cstdint>

#include "../kinds.h"

#if defined(__CUDACC__)
#define SEQKERNELS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SEQKERNELS_HOST_DEVICE inline
#endif

namespace seqkernels::cuda {

SEQKERNELS_HOST_DEVICE int padded_units(int hidden) {
  return (hidden + kUnitPadding - 1) / kUnitPadding * kUnitPadding;
}

struct Shape {
  int directions;
  int batch;
  int hidden;
  int padded;  // units: Hp
  int64_t seq_len;
  int64_t rows;
  const int64_t* offsets;  // [T + 1] first row of each time of a packed sequence; null: `batch` rows each
  int first_reverse;       // directions from this one on go from the last step to the first

  SEQKERNELS_HOST_DEVICE int64_t first_row(int64_t time) const { return offsets ? offsets[time] : time * batch; }
  // Sequences that are still there at this time: the first ones.
  SEQKERNELS_HOST_DEVICE int active(int64_t time) const {
    return offsets ? static_cast<int>(offsets[time + 1] - offsets[time]) : batch;
  }
  SEQKERNELS_HOST_DEVICE bool is_reverse(int direction) const { return direction >= first_reverse; }
  SEQKERNELS_HOST_DEVICE int64_t time_of(int direction, int64_t step) const {
    return is_reverse(direction) ? seq_len - 1 - step : step;
  }
  // Of the step before, as forward goes.
  SEQKERNELS_HOST_DEVICE int64_t time_before(int direction, int64_t time) const {
    return is_reverse(direction) ? time + 1 : time - 1;
  }
};

// Bytes from a row to the next in what kernels read and write row by row. The host works them out; a kernel would in every
// step.
struct RowBytes {
  int input_gates;  // real [.., G H]
  int output;       // [R, D, P]
  int saved;        // [D, R, saved, Hp]
  int cells;        // real [D, R, Hp]
  int cell_states;  // [R, D, H]
  int dgates;       // [R, D, G H]
};
inline RowBytes row_bytes_of(const Shape& shape, const CellInfo& cell, int outputs, DType dtype) {
  const int64_t element = bytes_of(dtype), real = dtype == DType::kFloat64 ? 8 : 4;
  const int64_t gate_units = cell.gates * shape.hidden;
  return {static_cast<int>(gate_units * real),
          static_cast<int>(shape.directions * outputs * element),
          static_cast<int>(cell.saved * shape.padded * element),
          static_cast<int>(shape.padded * real),
          static_cast<int>(shape.directions * shape.hidden * element),
          static_cast<int>(shape.directions * gate_units * element)};
}

// What happens to states between steps, beside the cell; null where nothing does.
struct Transition {
  const uint8_t* resets;                  // [R] nothing passes from the time before to that of the row
  const int64_t* lengths;                 // [B] of padded sequences, which have no step beyond
  const void* recurrent_mask;             // [D, B, P] factors of h where it meets W_hh
  const uint8_t* zoneout_h;               // [R, D, P] units that keep their value; null: in proportion
  const uint8_t* zoneout_c;               // [R, D, H] likewise
  double zoneout_h_rate, zoneout_c_rate;  // so much of it
};

struct ForwardProblem {
  Shape shape;
  RowBytes row_bytes;
  int64_t first_step, steps;   // of each direction, that this launch is to do; fewer than 2^31
  const void* input_gates[2];  // real [rows of these steps, G H] for each direction, without bias
  const void* weights[2];      // W_hh [G H, P]; stepwise kernels do not read it
  const void* b_ih[2];         // [G H] or null
  const void* b_hh[2];         // [G H] or null
  const void* h0;              // [D, B, P]; read where first_step == 0
  const void* c0;              // [D, B, H] or null; read where first_step == 0
  void* output;                // [R, D, P]
  void* h_n;                   // [D, B, P] the state after these steps; read where first_step > 0
  void* c_n;                   // [D, B, H] or null; written only, c_carry has what is read
  void* c_carry;               // real [D, B, H] c between launches; null where the cell has none
  void* gates;                 // [D, R, saved, Hp] or null
  void* cells;                 // real [D, R, Hp] or null
  void* cell_states;           // [R, D, H] or null
  Transition transition;
};

struct BackwardProblem {
  Shape shape;
  RowBytes row_bytes;
  const void* weights[2];   // W_hh transposed, [P, G H]; stepwise kernels do not read it
  const void* grad_output;  // [R, D, P] or null
  const void* grad_h_n;     // [D, B, P] or null
  const void* grad_c_n;     // [D, B, H] or null
  const void* grad_cells;   // [R, D, H] or null
  const void* h0;           // [D, B, P]
  const void* c0;           // [D, B, H] or null
  const void* output;       // [R, D, P]
  const void* gates;        // [D, R, saved, Hp] or null
  const void* cells;        // real [D, R, Hp] or null
  void* input_dgates;       // [R, D, G H] gradients of the input gates
  void* hidden_dgates;      // [R, D, G H] gradients of the hidden gates; null where they are the same
  void* grad_h0;            // [D, B, P] or null
  void* grad_c0;            // [D, B, H] or null
  Transition transition;
};

// What kernels of a cell with a projection are told beside.
struct Projection {
  int outputs;             // P
  const void* weights[2];  // W_hr [P, H], or going back that transposed, [H, P]; stepwise kernels do not read it
  void* dgates;            // [R, D, P] gradients of h, all that flow to it; null going forward
};
// Begins with the problem, which is all that kernels of other cells take.
template <class Problem>
struct Projected : Problem {
  Projection projection;
};

// Memory that a stepwise launch is given for what a persistent one has on chip. U is the larger one of H and P.
struct StepBuffers {
  void* product;    // real [D, B, tiles U] what was published last, times W_hh; zero before the first product
  void* published;  // [D, B, blocks of H or P]
  void* h;          // real [D, B, U] the pass's State between iterations
  void* c;          // real [D, B, U] of the same State
  void* carried;    // real [carried, D, B, U] likewise, at least two of them
};

constexpr int kStepThreads = 256;

// Of normalised cells (cells/cell.h): what is normalised, and its factors and biases.
enum NormKind : int { kNormOfInput, kNormOfHidden, kNormOfCell, kNormKinds };
constexpr WeightKind kNormWeights[kNormKinds][2] = {
    {kInputNorm, kInputBias}, {kHiddenNorm, kHiddenBias}, {kCellNorm, kCellNormBias}};

// What a step of such a cell is told beside its problem.
struct Norms {
  double eps;
  const void* weights[kNormKinds][2];  // [G H] for each direction, of c [H]; null where it is not normalised
  const void* biases[kNormKinds][2];   // likewise; or null
  void* scales;                        // real [D, R, norms], 1 / sqrt(var + eps); or null
  void* dgates;                        // [R, D, dgates, H] what the cell's backward pass writes
};

// The gradients of a norm's factors and biases, of one direction: sums of so many parts of the rows.
struct NormGradients {
  NormKind kind;
  int direction;
  const void* dgates;  // of Norms
  const void* values;  // [D, R, saved, Hp] that forward has saved
  int parts;           // of which the number of blocks is a multiple
  void* weight;        // real [parts, G H], of c [parts, H]; or null
  void* bias;          // likewise
};

// Numbers that the threads of a step's block add up at once, at most, and the shared memory for two such sums: some
// may still read the one before.
constexpr int kMostSums = 8;
constexpr int kSumsBytes = 2 * kMostSums * (kStepThreads / 32) * int{sizeof(double)};

constexpr int kWarps = 8, kThreads = 256;  // of a team of a persistent kernel's block
constexpr int kMaxTeams = 2;
constexpr int kTileColumns = 8;  // sequences that one MMA takes
constexpr int kMaxCluster = 8;   // blocks: what every device with clusters takes

// How a persistent launch is cut. A group of `members` blocks, each with a slice of the hidden units, does `columns`
// sequences of one direction; groups know nothing of one another. Blocks are numbered member first, then column group,
// then direction. A block's kWarps warps are unit_groups x splits: `splits` warps share 16 units and divide the sum over K.
// Where a block has two teams of so many warps, each is of a group of its own: two groups, one after the other, share blocks,
// their weights and nothing else, and while one waits, the other computes.
struct Partition {
  int teams;  // of a block, 1 or kMaxTeams, of which `column_groups` is a multiple
  int members;
  int unit_groups;  // of 16 hidden units, in a block
  int splits;       // unit_groups * splits == kWarps
  int columns;      // a multiple of 8
  int column_groups;
  int column_tiles;  // of 8 columns, done at a time: 1, 2 or 4
  int first_group;   // of this launch: where not all groups have room at once, one launch follows another
  void* ring;        // the exchange's rings, one for each group, filled with kNotReady; null: in shared memory

  SEQKERNELS_HOST_DEVICE int units_of_block() const { return unit_groups * kUnitPadding; }
  SEQKERNELS_HOST_DEVICE int units() const { return members * units_of_block(); }
};

// Quarters of a tile of 16 units and 8 columns, each of 32 units, one a lane: by these, warps share the pointwise part.
constexpr int kQuarters = kUnitPadding * kTileColumns / 32;
// Whether a warp has one quarter at most, and there is one pass over the columns.
SEQKERNELS_HOST_DEVICE bool has_one_quarter(const Partition& part) {
  return part.columns == part.column_tiles * kTileColumns && part.unit_groups * part.column_tiles * kQuarters <= kWarps;
}

// Column tiles of the pass that begins where so many tiles are left.
SEQKERNELS_HOST_DEVICE int tiles_of_pass(const Partition& part, int left) {
  int tiles = part.column_tiles;
  while (tiles > left) tiles /= 2;
  return tiles;
}

// What kernels are compiled for: one quarter a warp, several, or one, with two teams.
enum class Form { kOneQuarter, kSeveral, kTwoTeams, kCount };
SEQKERNELS_HOST_DEVICE Form form_of(const Partition& part) {
  return part.teams > 1 ? Form::kTwoTeams : has_one_quarter(part) ? Form::kOneQuarter : Form::kSeveral;
}

constexpr int kRingSlots = 4;  // of an exchange; exchange.cuh says why so many

// Where a block of a persistent kernel has what in shared memory, and how much; in words. The host works it out once: a kernel
// that reads it from its parameters has nothing to compute.
struct SharedLayout {
  int chunks, chunks_per_warp;  // of K, of the group and of a warp
  int slice, partial;           // sizes: one warp's weights, one warp's partial sums
  int slot;                     // size of one of the ring
  int reset;  // groups of 4 words that a block resets in a step: of a slot of its own ring, or its share
  int weights, states, biases, ring, total;  // beginnings; partial sums begin at 0
  int outputs;                               // units of h, with a projection, that each block makes

  SEQKERNELS_HOST_DEVICE int64_t bytes() const { return int64_t{4} * total; }
  // Size of a group's ring in global memory.
  SEQKERNELS_HOST_DEVICE int64_t ring_words() const { return int64_t{kRingSlots} * slot; }
};

// Offsets come as kernel arguments: no copy from host memory that somebody would have to wait for.
struct OffsetsPart {
  static constexpr int kSize = 480;
  int64_t first, count;
  int64_t values[kSize];
};

}  // namespace seqkernels::cuda
