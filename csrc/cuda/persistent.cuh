// A whole sequence in one launch: W_hh stays on chip, and each step costs one exchange of what the next one reads.
//
// One iteration of a block with a slice of the hidden units:
//   1  every thread asks memory for the inputs of its units' pointwise part
//   2  every warp waits for its chunks of what the group published last, and multiplies: MMAs with resident weights
//   3  warps that share units leave partial sums in shared memory; block_barrier
//   4  every thread adds them up for its units, does the pointwise part and publishes
//   5  a buffer of the exchange is made ready, and only then are results written: its fence waits for all stores before
// Columns beyond kMaxColumnTiles tiles take steps 1 to 4 again; partial sums have two buffers, so one barrier each will do.
#pragma once
#include "pointwise.cuh"
#include "slice.cuh"

namespace seqkernels::cuda {

constexpr int kTileUnits = kTileRows;
static_assert(kThreads == kWarps * kWarpSize && kTileUnits == kUnitPadding);
// A warp's share of the pointwise part is counted in quarters of a tile: 32 units, one a lane.
constexpr int kQuarters = kTileUnits * kTileColumns / kWarpSize;
template <class Weights>
constexpr int kMaxQuarters = Weights::Product::kMaxTiles * kQuarters / kWarps;

// Where a block has what in shared memory; in words.
template <class Pass, class Operand>
struct SharedLayout {
  using Weights = Slice<Operand, Pass::kTiles>;
  // Partial sums are [column][unit][tile] where one access takes all tiles of a unit, else [column][tile][unit]. The stride of
  // a column is 4 mod 16, so that neither the MMA's result nor a quarter's columns meet in a bank.
  static constexpr int kTogether = Pass::kTiles == 4 ? 4 : 1;  // tiles
  static constexpr int kPartialStride = Pass::kTiles * kTileUnits + 4;
  SEQKERNELS_DEVICE static constexpr int partial_at(int column, int tile, int unit) {
    return column * kPartialStride + tile * kTileUnits + unit * kTogether;
  }
  static_assert(Weights::kStage <= 2 * kTileColumns * kPartialStride);  // weights are staged where partial sums will be

  int chunks, chunks_per_warp;
  int slice, partial;                            // sizes: one warp's weights, one warp's partial sums
  int weights, states, biases, exchange, total;  // beginnings; partial sums begin at 0

  SEQKERNELS_HOST_DEVICE explicit SharedLayout(const Partition& part) {
    chunks = Pass::kPublished * part.units() / Weights::kChunk;
    chunks_per_warp = (chunks + part.splits - 1) / part.splits;
    slice = Weights::shared_words(chunks_per_warp);
    partial = part.column_tiles * kTileColumns * kPartialStride;
    if (partial < Weights::kProductStage) partial = Weights::kProductStage;  // which is where the sums will be
    weights = 2 * kWarps * partial;
    states = weights + kWarps * slice;
    biases = states + part.units_of_block() * part.columns * words<typename Pass::State>();
    exchange = (biases + part.units_of_block() * words<typename Pass::Biases>() + 3) / 4 * 4;
    total = exchange + (part.exchange ? 0 : kBuffers * chunks * part.columns * kChunkWords);
  }

  SEQKERNELS_HOST_DEVICE int64_t bytes() const { return int64_t{4} * total; }
  // Of the buffers of all groups in global memory.
  SEQKERNELS_HOST_DEVICE int64_t exchange_words(const Partition& part) const {
    return int64_t{kBuffers} * chunks * part.columns * kChunkWords;
  }

 private:
  template <class S>
  SEQKERNELS_HOST_DEVICE static constexpr int words() {
    return (sizeof(S) + 3) / 4;
  }
};

template <class Pass, class Operand>
class PersistentBlock {
  using Problem = typename Pass::Problem;
  using Layout = SharedLayout<Pass, Operand>;
  using Weights = typename Layout::Weights;
  using Traits = OperandTraits<Operand>;
  using Together = Words<Layout::kTogether>;  // partial sums of one access

 public:
  SEQKERNELS_DEVICE PersistentBlock(const Problem& problem, const Partition& part)
      : p_(problem),
        part_(part),
        layout_(part),
        memory_(reinterpret_cast<uint32_t*>(shared_memory())),
        group_(block_index() / part.members),
        member_(block_index() % part.members),
        direction_(group_ / part.column_groups),
        first_column_(group_ % part.column_groups * part.columns),
        first_unit_(member_ * part.units_of_block()),
        warp_(warp_index()),
        exchange_(part.exchange ? Scope::kDevice : Scope::kCluster,
                  part.exchange ? static_cast<uint32_t*>(part.exchange) + group_ * layout_.exchange_words(part)
                                : memory_ + layout_.exchange,
                  layout_.chunks, part.columns, member_, part.members),
        states_(reinterpret_cast<typename Pass::State*>(memory_ + layout_.states)),
        biases_(reinterpret_cast<typename Pass::Biases*>(memory_ + layout_.biases)) {}

  SEQKERNELS_DEVICE void run() {
    exchange_.initialise();
    load_weights();
    load_biases();
    load_states();
    const int steps = static_cast<int>(Pass::steps(p_));
    int turn = 0;
    for (int i = 0; i <= steps; ++i) {
      for (int column = 0; column < part_.columns; column += part_.column_tiles * kTileColumns)
        iterate(i, i == steps, column, turn ^= 1);
    }
    exchange_.finish();
  }

 private:
  // What lane `lane` of quarter `quarter` of a pass over `tiles` column tiles stands for; units and columns of the block.
  struct Spot {
    int unit_group, tile, unit, column;

    // Of one tile or two: to divide by any other number would take longer than all the rest.
    SEQKERNELS_DEVICE Spot(int quarter, int tiles)
        : unit_group(quarter / kQuarters >> (tiles - 1)),
          tile(quarter / kQuarters & (tiles - 1)),
          unit(lane_index() % kTileUnits),
          column(quarter % kQuarters + kQuarters * (lane_index() / kTileUnits)) {}
  };

  SEQKERNELS_DEVICE Place place(const Spot& spot, int column) const {
    return {direction_, first_column_ + column + spot.tile * kTileColumns + spot.column,
            first_unit_ + spot.unit_group * kTileUnits + spot.unit};
  }
  SEQKERNELS_DEVICE bool exists(const Place& at) const {
    return at.column < p_.shape.batch && at.unit < p_.shape.hidden;
  }
  SEQKERNELS_DEVICE int tiles_at(int column) const {
    if constexpr (Weights::Product::kMaxColumnTiles == 1) return 1;
    const int left = (part_.columns - column) / kTileColumns;
    return left < part_.column_tiles ? left : part_.column_tiles;
  }
  SEQKERNELS_DEVICE int state_index(int quarter, int column) const {
    return (column / kTileColumns * part_.unit_groups * kQuarters + quarter) * kWarpSize + lane_index();
  }

  SEQKERNELS_DEVICE void load_weights() {
    const int first = warp_ % part_.splits * layout_.chunks_per_warp, left = layout_.chunks - first;
    const int chunks = left < 0 ? 0 : left < layout_.chunks_per_warp ? left : layout_.chunks_per_warp;
    const int unit = first_unit_ + warp_ / part_.splits * kTileUnits;
    slice_.load(first, chunks, memory_ + layout_.weights + warp_ * layout_.slice, memory_ + warp_ * 2 * layout_.partial,
                [&](int tile, int row, int k) { return weights(tile, unit + row, k); });
  }

  // Some neighbours of one row of the matrix. Going forward, the rows of `unit` are its gates, and K is the units before;
  // going back, it has one row, and K is the gates of the units after.
  SEQKERNELS_DEVICE auto weights(int tile, int unit, int k) const {
    using Element = typename Pass::Element;
    constexpr int kValues = Weights::kValues;
    const int from = k % part_.units(), block = k / part_.units(), hidden = p_.shape.hidden;
    Words<kValues / Traits::kPerWord> words{};
    if (unit >= hidden || from >= hidden) return words;
    const int64_t row = static_cast<int64_t>(tile) * hidden + unit;
    const Element* const values =
        static_cast<const Element*>(p_.weights[direction_]) + (row * Pass::kPublished + block) * hidden + from;
    if (from + kValues <= hidden && reinterpret_cast<uintptr_t>(values) % sizeof(words) == 0) {
      words = *reinterpret_cast<const decltype(words)*>(values);
      if constexpr (Traits::kPerWord == 1)
        for (uint32_t& word : words.word) word = Traits::bits(float_of(word));
      return words;
    }
    SEQKERNELS_UNROLL
    for (int i = 0; i < kValues; ++i)
      if (from + i < hidden)
        words.word[i / Traits::kPerWord] |= Traits::bits(to_real(values[i])) << i % Traits::kPerWord * 16;
    return words;
  }

  SEQKERNELS_DEVICE void load_biases() {
    for (int unit = thread_index(); unit < part_.units_of_block(); unit += kThreads)
      if (first_unit_ + unit < p_.shape.hidden) biases_[unit] = Pass::load_biases(p_, direction_, first_unit_ + unit);
  }

  SEQKERNELS_DEVICE void load_states() {
    for (int column = 0; column < part_.columns; column += part_.column_tiles * kTileColumns) {
      const int tiles = tiles_at(column);
      for (int quarter = warp_; quarter < part_.unit_groups * tiles * kQuarters; quarter += kWarps) {
        const Place at = place(Spot(quarter, tiles), column);
        states_[state_index(quarter, column)] = exists(at) ? Pass::initial(p_, at) : typename Pass::State{};
      }
    }
  }

  // Iteration `iteration` for the columns from `column` on.
  SEQKERNELS_DEVICE void iterate(int iteration, bool is_last, int column, int turn) {
    const int tiles = tiles_at(column), quarters = part_.unit_groups * tiles * kQuarters;
    const int64_t step = Pass::step_of(p_, iteration);
    const bool has_step = Pass::has_step(p_, iteration);
    const int active = has_step ? p_.shape.active(Pass::time_of(p_, direction_, step)) : 0;

    typename Pass::Inputs inputs[kMaxQuarters<Weights>];
    SEQKERNELS_UNROLL
    for (int n = 0; n < kMaxQuarters<Weights>; ++n)
      if (const int quarter = warp_ + n * kWarps; quarter < quarters) {
        const Place at = place(Spot(quarter, tiles), column);
        if (exists(at) && at.column < active) inputs[n] = Pass::load(p_, at, step);
      }

    // FFMA's steps are long enough to load in time, and its registers too few.
    if constexpr (Weights::Product::kOnTensorCores)
      if (!is_last && Pass::has_step(p_, iteration + 1)) prefetch_inputs(column, tiles, step + 1);

    const int partials = turn * kWarps * layout_.partial;
    if (iteration > 0) {
      constexpr int kMost = Weights::Product::kMaxColumnTiles;
      static_assert(kMost <= 2);
      if (tiles < kMost)
        multiply<1>(iteration - 1, column, memory_ + partials + warp_ * layout_.partial);
      else
        multiply<kMost>(iteration - 1, column, memory_ + partials + warp_ * layout_.partial);
    }
    // Of the first quarter alone: registers for more are not there, and for most plans there are no more. The branch is what
    // keeps ptxas from moving all of it behind the barrier; for FFMA, it costs registers.
    Ready first{};
    if (!Weights::Product::kOnTensorCores || warp_ < quarters)
      first = prepare(iteration, warp_, tiles, column, active, partials);
    block_barrier();

    typename Pass::Results results[kMaxQuarters<Weights>];
    SEQKERNELS_UNROLL
    for (int n = 0; n < kMaxQuarters<Weights>; ++n)
      if (const int quarter = warp_ + n * kWarps; quarter < quarters) {
        const Ready unit = n == 0 ? first : prepare(iteration, quarter, tiles, column, active, partials);
        const typename Pass::Biases biases = biases_[unit.biases];
        typename Pass::State state = states_[unit.state];
        float product[Pass::kTiles] = {}, published[Pass::kPublished];
        if (iteration > 0) collect(reinterpret_cast<const float*>(memory_) + unit.partials, product);
        if (unit.has_step)
          results[n] = Pass::step(biases, inputs[n], product, state, published);
        else
          Pass::idle(product, state, published);
        if (!is_last)
          publish(unit.publication, published);
        else if (const Place at = place(Spot(quarter, tiles), column); exists(at))
          Pass::finish(p_, at, state);
        states_[unit.state] = state;
      }

    if (!is_last && column + tiles * kTileColumns == part_.columns) exchange_.reset(iteration);
    SEQKERNELS_UNROLL
    for (int n = 0; n < kMaxQuarters<Weights>; ++n)
      if (const int quarter = warp_ + n * kWarps; quarter < quarters) {
        const Place at = place(Spot(quarter, tiles), column);
        if (exists(at) && at.column < active)
          Pass::write_results(p_, at, step, states_[state_index(quarter, column)], results[n]);
      }
  }

  SEQKERNELS_DEVICE void prefetch_inputs(int column, int tiles, int64_t step) const {
    const int active = p_.shape.active(Pass::time_of(p_, direction_, step));
    for (int quarter = warp_; quarter < part_.unit_groups * tiles * kQuarters; quarter += kWarps) {
      const Place at = place(Spot(quarter, tiles), column);
      if (exists(at) && at.column < active) Pass::template load<Prefetches>(p_, at, step);
    }
  }

  // What a lane can know of its unit before the product is complete: less to do between a step's barrier and what it publishes.
  struct Ready {
    int has_step, partials, publication, state, biases;  // where these are, as values from their beginnings
  };

  SEQKERNELS_DEVICE Ready prepare(int iteration, int quarter, int tiles, int column, int active, int partials) const {
    const Spot spot(quarter, tiles);
    const Place at = place(spot, column);
    return {settled(exists(at) && at.column < active),
            settled(partials + spot.unit_group * part_.splits * layout_.partial +
                    Layout::partial_at(spot.tile * kTileColumns + spot.column, 0, spot.unit)),
            settled(exchange_.place(iteration, static_cast<uint32_t>(at.unit) / Traits::kPerWord,
                                    at.column - first_column_)),
            settled(state_index(quarter, column)), settled(at.unit - first_unit_)};
  }

  // Leaves this warp's partial sums.
  template <int kColumnTiles>
  SEQKERNELS_DEVICE void multiply(int publication, int column, uint32_t* partial) const {
    using Product = typename Weights::Product;
    float sum[Pass::kTiles][kColumnTiles][Product::kResults];
    slice_.multiply(exchange_, publication, column, partial, sum);
    const int group = Product::group(), member = Product::member();
    SEQKERNELS_UNROLL
    for (int i = 0; i < kColumnTiles * Product::kResults; ++i) {
      const int n = i / Product::kResults, result = i % Product::kResults;
      const int unit = group + result / Product::kColumns * Product::kGroups;
      const int column = n * kTileColumns + member * Product::kColumns + result % Product::kColumns;
      SEQKERNELS_UNROLL
      for (int tile = 0; tile < Pass::kTiles; tile += Layout::kTogether) {
        Together words;
        SEQKERNELS_UNROLL
        for (int t = 0; t < Layout::kTogether; ++t) words.word[t] = bits_of(sum[tile + t][n][result]);
        *reinterpret_cast<Together*>(partial + Layout::partial_at(column, tile, unit)) = words;
      }
    }
  }

  SEQKERNELS_DEVICE void collect(const float* partials, float (&product)[Pass::kTiles]) const {
    switch (part_.splits) {
      case 8:
        add_up<4>(partials, product);
        return add_up<4>(partials + 4 * layout_.partial, product);
      case 4:
        return add_up<4>(partials, product);
      case 2:
        return add_up<2>(partials, product);
      default:
        return add_up<1>(partials, product);
    }
  }

  // All loads are under way at once, but for those of 8 splits, which would take too many registers.
  template <int kSplits>
  SEQKERNELS_DEVICE void add_up(const float* partials, float (&product)[Pass::kTiles]) const {
    Together words[kSplits][Pass::kTiles / Layout::kTogether];
    SEQKERNELS_UNROLL
    for (int split = 0; split < kSplits; ++split) {
      SEQKERNELS_UNROLL
      for (int tile = 0; tile < Pass::kTiles; tile += Layout::kTogether)
        words[split][tile / Layout::kTogether] =
            *reinterpret_cast<const Together*>(partials + split * layout_.partial + tile * kTileUnits);
    }
    SEQKERNELS_UNROLL
    for (int i = 0; i < kSplits * Pass::kTiles; ++i) {
      const int split = i / Pass::kTiles, tile = i % Pass::kTiles;
      product[tile] += float_of(words[split][tile / Layout::kTogether].word[tile % Layout::kTogether]);
    }
  }

  SEQKERNELS_DEVICE void publish(int publication, const float (&published)[Pass::kPublished]) const {
    constexpr bool kUnrolled = Weights::Product::kOnTensorCores;
    const int stride = part_.units() / Traits::kPerWord * part_.columns;  // from one block of K to the next
    SEQKERNELS_UNROLL
    for (int block = 0; block < Pass::kPublished; ++block) {
      if constexpr (Traits::kPerWord == 2) {
        const float neighbour = shuffle_xor(published[block], 1);
        if (lane_index() % 2 == 0)
          exchange_.publish<kUnrolled>(publication + block * stride, word_of<Operand>(published[block], neighbour));
      } else {
        exchange_.publish<kUnrolled>(publication + block * stride, Traits::bits(published[block]));
      }
    }
  }

  const Problem& p_;
  const Partition& part_;
  const Layout layout_;
  uint32_t* const memory_;
  const int group_, member_;  // of the launch, of the group
  const int direction_, first_column_, first_unit_, warp_;
  const Exchange exchange_;
  typename Pass::State* const states_;
  typename Pass::Biases* const biases_;
  typename Layout::Weights slice_;
};

template <class Pass, class Operand>
SEQKERNELS_KERNEL SEQKERNELS_LAUNCH_BOUNDS(kThreads, 1)
    persistent_kernel(const typename Pass::Problem problem, const Partition part) {
  PersistentBlock<Pass, Operand>(problem, part).run();
}

}  // namespace seqkernels::cuda
