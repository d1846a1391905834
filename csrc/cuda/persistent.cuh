// A whole sequence in one launch: W_hh stays on chip, and each step costs one exchange of what the next one reads.
//
// One iteration of a block with a slice of the hidden units:
//   1  every warp waits for its chunks of the last slot of the exchange's ring, and multiplies: MMAs with resident weights
//   2  warps that share units leave partial sums in shared memory; a barrier of the block, or of the team of two that share it
//   3  every thread adds them up for its units, does the pointwise part and publishes: the others wait for this
//   4  what nobody waits for comes after: results are written, the next inputs loaded, a slot of the ring reset
// Columns beyond kMaxColumnTiles tiles take steps 1 to 3 again; partial sums have two buffers, so one barrier each will do.
// Iteration 0 has no product. The last one publishes, too, though nobody reads it: a test would cost more.
#pragma once
#include "lane.cuh"
#include "layout.cuh"

namespace seqkernels::cuda {

constexpr int kNowhere = 0x7FFFFFFF;  // a column that no sequence has

// With kTiles > 0, the only pass over the columns has so many tiles, and a warp one quarter at most: states and biases need no
// memory. With kTiles = 0, there may be several of either. This is what one of kTeams teams of a block does.
template <class Pass, class Operand, Scope kScope, int kTiles, int kTeams>
class PersistentTeam {
  using Problem = typename Pass::Problem;
  using Units = typename Pass::Units;
  static constexpr Form kForm = kTeams > 1 ? Form::kTwoTeams : kTiles > 0 ? Form::kOneQuarter : Form::kSeveral;
  template <int stage>
  using Stage = PersistentProduct<Pass, Operand, kForm, stage>;
  template <int stage>
  using Iteration = typename Pass::template Iteration<stage>;
  using Traits = OperandTraits<Operand>;
  static constexpr bool kOneQuarter = kTiles > 0;
  // Several quarters and products without tensor cores need the registers.
  static constexpr bool kIsSparing = !kOneQuarter || !Stage<0>::Product::kOnTensorCores;
  static constexpr int kMaxTiles = max_tiles<Pass, Operand>(StagesOf<Pass>());
  static constexpr int kQuarterCount = kOneQuarter ? 1 : kMaxTiles * kQuarters / kWarps;
  static constexpr int kMaxColumnTiles = max_column_tiles<Pass, Operand, kForm>(StagesOf<Pass>());
  static constexpr int kPartial = partial_words<Pass, Operand, kForm>(kTiles, StagesOf<Pass>());  // of one quarter
  static constexpr int kLastStage = Pass::kStages - 1;
  // Whether lanes publish in pairs: they share a word, or the stores to the blocks of a cluster.
  static constexpr bool kInPairs = Traits::kPerWord == 2 || kScope == Scope::kCluster;
  using Lane = cuda::Lane<kTiles, kMaxColumnTiles>;
  // Kinds of units, hidden ones and, where they are others, those of h; what a stage makes.
  static constexpr int kKinds = Units::kDiffer ? 2 : 1;
  template <int stage>
  static constexpr int kKind = StageOf<typename Pass::Cell, stage>::kIsProjection ? 1 : 0;
  static_assert(kMaxColumnTiles <= 4 && kWarps / kQuarters == 2);
  static_assert(kTeams == 1 || (kTiles > 0 && kScope == Scope::kDevice && Pass::kStages == 1));

 public:
  SEQKERNELS_DEVICE PersistentTeam(const Problem& problem, const Partition& part, const SharedLayout& layout)
      : p_(problem),
        part_(part),
        layout_(layout),
        memory_(reinterpret_cast<uint32_t*>(shared_memory())),
        team_(kTeams > 1 ? warp_index() / kWarps : 0),
        group_(part.first_group + block_index() / part.members * kTeams + team_),
        member_(block_index() % part.members),
        direction_(group_ / part.column_groups),
        first_column_(group_ % part.column_groups * part.columns),
        first_unit_(member_ * part.units_of_block()),
        warp_(kTeams > 1 ? warp_index() % kWarps : warp_index()),
        partials_(kTeams > 1 ? team_ * kWarps * partial() : 0),
        is_split_in_eight_(kIsSparing ? part.splits == 8 : launder(part.splits == 8)),
        exchange_(kScope == Scope::kDevice ? static_cast<uint32_t*>(part.ring) + group_ * layout.ring_words()
                                           : memory_ + layout.ring,
                  part, layout, member_, kTeams > 1 ? thread_index() % kThreads : thread_index()),
        states_(reinterpret_cast<typename Pass::State*>(memory_ + layout.states)),
        biases_(reinterpret_cast<typename Pass::Biases*>(memory_ + layout.biases)) {}

  SEQKERNELS_DEVICE void run() {
    exchange_.initialise();
    for (int team = 0; team < kTeams; ++team) {  // by turns: they stage where the sums of all teams will be
      if (team == team_) load_weights<0>(0);
      if (kTeams > 1) block_barrier();
    }
    if constexpr (!kOneQuarter) {
      load_biases();
      load_states();
    }
    run_steps();
    exchange_.finish();
  }

 private:
  // Words of one warp's partial sums.
  SEQKERNELS_DEVICE int partial() const { return kIsSparing ? layout_.partial : kPartial; }

  SEQKERNELS_DEVICE UnitCoord coord(const Lane& lane, int n) const {
    return coord(lane.column + lane.columns_to(n), first_unit_ + lane.unit + lane.units_to(n));
  }
  SEQKERNELS_DEVICE UnitCoord coord(int column, int unit) const {
    return {direction_, first_column_ + column, unit, unit_of<kLastStage>(unit)};
  }
  // What a stage makes where others make a hidden unit; kNowhere if nothing. Each block has an equal share of a projection.
  template <int stage>
  SEQKERNELS_DEVICE int unit_of(int hidden_unit) const {
    if constexpr (kKind<stage> == 0) {
      return hidden_unit;
    } else {
      const int n = hidden_unit - first_unit_;
      return n < layout_.outputs ? member_ * layout_.outputs + n : kNowhere;
    }
  }
  template <int stage>
  SEQKERNELS_DEVICE bool exists(const UnitCoord& at) const {
    return at.column < p_.shape.batch && Units::template exists<stage>(p_, at);
  }
  SEQKERNELS_DEVICE bool exists(const UnitCoord& at) const {
    return exists<0>(at) || (kKinds > 1 && exists<kLastStage>(at));
  }
  // Units from where reader and writer stand to those of quarter n.
  SEQKERNELS_DEVICE int further(const Lane& lane, int n) const {
    return kOneQuarter ? 0 : lane.unit + lane.units_to(n);
  }
  // Reader or writer, moved to the columns of quarter n: rows one after another, but of other sequences.
  template <class Access>
  SEQKERNELS_DEVICE Access across(Access access, const Lane& lane, int n) const {
    if (n % 2 == 1 && lane.is_wide()) access.move_across(p_, Lane::kApart);
    return access;
  }
  SEQKERNELS_DEVICE bool has_quarter(const Lane& lane, int n) const { return warp_ + n * kWarps < lane.quarters; }
  SEQKERNELS_DEVICE int state_index(int column, int n) const {
    return (column / kTileColumns * part_.unit_groups * kQuarters + warp_ + n * kWarps) * kWarpSize + lane_index();
  }

  // Loads the weights of a stage and of those after it; `offset`: words that the warp has of the stages before.
  template <int stage>
  SEQKERNELS_DEVICE void load_weights(int offset) {
    constexpr bool kIsOnly = Pass::kStages == 1;
    const int all = kIsOnly ? layout_.chunks : Stage<stage>::chunks(part_, layout_);
    const int of_warp = kIsOnly ? layout_.chunks_per_warp : Stage<stage>::chunks_per_warp(part_, layout_);
    const int first = warp_ % part_.splits * of_warp, left = all - first;
    const int chunks = left < 0 ? 0 : left < of_warp ? left : of_warp;
    const int unit = first_unit_ + warp_ / part_.splits * kTileUnits;
    slices_.template of<stage>().load(first, chunks, memory_ + layout_.weights + warp_ * layout_.slice + offset,
                                      memory_ + warp_ * 2 * partial(), [&](int tile, int row, int k) {
                                        return weights<stage>(tile, unit_of<Iteration<stage>::kFollows>(unit + row), k);
                                      });
    if constexpr (stage + 1 < Pass::kStages) load_weights<stage + 1>(offset + Stage<stage>::words(part_, layout_));
  }

  // Some neighbours of one row of the matrix. Going forward, the rows of `unit` are its gates, and K is the units before;
  // going back, it has one row, and K is the gates of the units after.
  template <int stage>
  SEQKERNELS_DEVICE auto weights(int tile, int unit, int k) const {
    const int units = Stage<stage>::units_read(part_, layout_), from = k % units, block = k / units;
    const int made = Units::template made<Iteration<stage>::kFollows>(p_);
    const int read = Units::template made<Iteration<stage>::kPublisher>(p_);
    const int64_t row = static_cast<int64_t>(Iteration<stage>::kFirstTile + tile) * made + unit;
    const int64_t first = (row * Iteration<stage>::kRowBlocks + Iteration<stage>::kFirstBlock + block) * read + from;
    return Stage<stage>::Weights::words_of(static_cast<const typename Pass::Element*>(matrix<stage>()), first,
                                           unit < made ? read - from : 0);
  }

  // W_hh or W_hr, as the pass has them.
  template <int stage>
  SEQKERNELS_DEVICE const void* matrix() const {
    if constexpr (kKind<stage> > 0)
      return p_.projection.weights[direction_];
    else
      return p_.weights[direction_];
  }

  SEQKERNELS_DEVICE void load_biases() {
    for (int unit = thread_index(); unit < part_.units_of_block(); unit += kThreads)
      if (first_unit_ + unit < p_.shape.hidden) biases_[unit] = Pass::load_biases(p_, direction_, first_unit_ + unit);
  }

  SEQKERNELS_DEVICE typename Pass::State initial(const UnitCoord& at) const {
    return exists(at) ? Pass::initial(p_, at) : typename Pass::State{};
  }

  // Calls visit(coord, column, n) for every unit of this lane, in all passes.
  template <class Visit>
  SEQKERNELS_DEVICE void for_each_unit(const Visit& visit) const {
    for (int column = 0; column < part_.columns;) {
      const Lane lane(part_, warp_, column);
      for (int n = 0; has_quarter(lane, n); ++n) visit(coord(lane, n), column, n);
      column += lane.tiles * kTileColumns;
    }
  }

  SEQKERNELS_DEVICE void load_states() {
    for_each_unit([&](const UnitCoord& at, int column, int n) { states_[state_index(column, n)] = initial(at); });
  }

  // What a lane takes from one step to the next. Reader and writer stand at the one quarter's unit; of several quarters, they
  // are rematerialised where the block's units and a pass's column begin, for what a lane has is not the same in all passes.
  struct Cursor {
    Walk walk;                            // of the step at hand
    typename Pass::Reader reader, ahead;  // `ahead` stands at the step after that at hand, to prefetch
    typename Pass::Writer writer;
    typename Pass::Loaded loaded[kQuarterCount];  // of the coming pass
    typename Pass::State state;                   // of the one quarter, where there is no more
    typename Pass::Biases biases;
    // Of the one quarter: the column of the launch, or kNowhere where the lane's unit does not exist; where it publishes, in a
    // slot; where its sums are in the first buffer. Of each kind of units, and of each stage.
    int column[kKinds], offset[kKinds], partial[Pass::kStages];
  };

  SEQKERNELS_DEVICE void run_steps() {
    const int steps = static_cast<int>(Pass::steps(p_));
    const Lane lane(part_, warp_, 0);
    const int64_t first_step = Pass::step_of(p_, Pass::has_step(p_, 0) ? 0 : 1);
    const int64_t time = steps > 0 ? Pass::time_of(p_, direction_, first_step) : 0;
    const UnitCoord at = coord(lane, 0);
    const UnitCoord begin = kOneQuarter ? at : coord(0, first_unit_);
    Cursor cursor{Pass::walk(p_, direction_, first_step), {p_, begin, time}, {p_, begin, time}, {p_, begin, time}};
    if constexpr (!kIsSparing) cursor.reader.hold(), cursor.writer.hold();
    if constexpr (kOneQuarter) {
      if constexpr (!kIsSparing) cursor.ahead = cursor.reader, cursor.ahead.move(p_, cursor.walk.rows());
      cursor.state = has_quarter(lane, 0) ? initial(at) : typename Pass::State{};  // else, others' units
      cursor.column[0] = kNowhere;
      if (has_quarter(lane, 0) && exists<0>(at)) {
        cursor.column[0] = at.column;
        cursor.biases = Pass::load_biases(p_, direction_, at.unit);
      }
      cursor.column[0] = launder(cursor.column[0]);
      cursor.offset[0] = launder(offset_of<0>(at.unit, lane.column));
      if constexpr (kKinds > 1) {
        cursor.column[1] = launder(has_quarter(lane, 0) && exists<kLastStage>(at) ? at.column : kNowhere);
        cursor.offset[1] = launder(offset_of<kLastStage>(at.unit, lane.column));
      }
      locate_partials<0>(lane, cursor);
    }
    // The iteration before the loop has no product, and is what comes before that of the step's first one.
    constexpr int kFinal = Pass::kFinalStage;
    if (Pass::has_step(p_, 0)) load_inputs<kFinal>(lane, cursor);

    iterate<kFinal, false>(lane, cursor);
    for (int i = 0; i < steps; ++i) iterate_from<Iteration<kFinal>::kNext>(lane, cursor);

    if constexpr (kOneQuarter) {
      if (cursor.column[0] != kNowhere || (kKinds > 1 && cursor.column[kKinds - 1] != kNowhere))
        Pass::finish(p_, at, cursor.state);
    } else {
      for_each_unit([&](const UnitCoord& at, int column, int n) {
        if (exists(at)) Pass::finish(p_, at, states_[state_index(column, n)]);
      });
    }
  }

  template <int stage>
  SEQKERNELS_DEVICE void locate_partials(const Lane& lane, Cursor& cursor) const {
    cursor.partial[stage] = launder(partial_of<stage>(lane, 0));
    if constexpr (stage + 1 < Pass::kStages) locate_partials<stage + 1>(lane, cursor);
  }

  // The iterations from that with the product of this stage up to that of the pass's final one.
  template <int stage>
  SEQKERNELS_DEVICE void iterate_from(const Lane& first_lane, Cursor& cursor) {
    iterate<stage, true>(first_lane, cursor);
    if constexpr (stage != Pass::kFinalStage) iterate_from<Iteration<stage>::kNext>(first_lane, cursor);
  }

  template <int stage, bool kHasProduct>
  SEQKERNELS_DEVICE void iterate(const Lane& first_lane, Cursor& cursor) {
    if constexpr (kOneQuarter) {
      do_columns<stage, kHasProduct>(first_lane, 0, true, cursor);
    } else {
      for (int column = 0; column < part_.columns;) {
        const Lane lane(part_, warp_, column);
        column += lane.tiles * kTileColumns;
        do_columns<stage, kHasProduct>(lane, lane.first, column >= part_.columns, cursor);
      }
    }
    exchange_.advance();
  }

  // One iteration for the columns of a pass; `is_last`: whether it is the iteration's last pass.
  template <int stage, bool kHasProduct>
  SEQKERNELS_DEVICE void do_columns(const Lane& lane, int column, bool is_last, Cursor& cursor) {
    constexpr int kFollows = Iteration<stage>::kFollows, kNext = Iteration<stage>::kNext, kMade = kKind<kFollows>;
    uint32_t* const partials = memory_ + partials_;
    if (kTeams == 1) partials_ = kWarps * partial() - partials_;
    if constexpr (kHasProduct) {
      uint32_t* const own = partials + warp_ * partial();
      if constexpr (kOneQuarter) {
        multiply<stage, kTiles>(column, own);
      } else if (lane.tiles == 1) {
        multiply<stage, 1>(column, own);
      } else if constexpr (kMaxColumnTiles > 1) {
        if (kMaxColumnTiles == 2 || lane.tiles == 2)
          multiply<stage, 2>(column, own);
        else
          multiply<stage, kMaxColumnTiles>(column, own);
      }
    }
    // By now they have arrived; to convert them where they are loaded would be to wait for them.
    typename Pass::Inputs inputs[kQuarterCount];
    SEQKERNELS_UNROLL
    for (int n = 0; n < kQuarterCount; ++n) inputs[n] = Pass::inputs_of(p_, cursor.loaded[n]);
    if (column == 0) exchange_.order_resets();
    barrier();
    exchange_.order_strictly();

    const bool has_step = kHasProduct || Pass::has_step(p_, 0);
    const auto is_active = [&](int n) {
      return has_step && (kOneQuarter ? cursor.column[kMade] : coord(lane, n).column) < cursor.walk.active();
    };
    const typename Pass::Writer writer = writer_of(lane, cursor, is_active(0));
    SEQKERNELS_UNROLL
    for (int n = 0; n < kQuarterCount; ++n)
      if (has_quarter(lane, n)) {
        const int unit = first_unit_ + lane.unit + lane.units_to(n);
        typename Pass::State state = kOneQuarter ? cursor.state : states_[state_index(column, n)];
        float product[Iteration<stage>::kTiles] = {}, published[Iteration<kNext>::kReads];
        if constexpr (kHasProduct)
          collect(reinterpret_cast<const float*>(partials) +
                      (kOneQuarter ? cursor.partial[stage] : partial_of<stage>(lane, n)),
                  product);
        const bool steps =
            is_active(n) && (kOneQuarter || unit_of<kFollows>(unit) < Units::template made<kFollows>(p_));
        typename Pass::Results results{};
        if (steps)
          results = Pass::template step<kFollows>(kOneQuarter ? cursor.biases : biases_[unit - first_unit_], inputs[n],
                                                  product, state, published);
        else
          Pass::template idle<kFollows>(product, state, published);
        publish<kMade == 0>(
            kOneQuarter ? cursor.offset[kMade] : offset_of<kFollows>(unit, lane.column + lane.columns_to(n)),
            published);
        if (steps) across(writer, lane, n).template write<kFollows>(p_, further(lane, n), state, results);
        if constexpr (kOneQuarter)
          cursor.state = state;
        else
          states_[state_index(column, n)] = state;
      }

    if (!is_last) {
      const int next = column + lane.tiles * kTileColumns;
      if (has_step) load_inputs<stage>(Lane(part_, warp_, next), cursor);
      return;
    }
    if (has_step && kNext == 0) {  // the step ends
      const int rows = cursor.walk.rows();
      if constexpr (kOneQuarter) cursor.writer.move(p_, rows);
      if constexpr (kOneQuarter && kIsSparing) cursor.reader.move(p_, rows);
      cursor.walk.advance();
      if constexpr (!kIsSparing) cursor.reader = cursor.ahead, cursor.ahead.move(p_, cursor.walk.rows());
    }
    if constexpr (kOneQuarter)
      load_inputs<kNext>(lane, cursor);
    else
      load_inputs<kNext>(Lane(part_, warp_, 0), cursor);
    exchange_.reset();
    if constexpr (kTeams > 1) barrier();  // all have added up their sums, whose place is that of the next
  }

  SEQKERNELS_DEVICE void barrier() const { kTeams > 1 ? team_barrier(team_, kThreads) : block_barrier(); }

  // Rematerialises the reader or writer of the step at hand: of several quarters, inputs and sums leave no registers to keep
  // them in.
  template <class Access>
  SEQKERNELS_DEVICE Access rematerialised(const Lane& lane, const Cursor& cursor, bool is_active) const {
    return {p_, coord(lane.column, first_unit_), is_active ? cursor.walk.time() : 0};
  }
  SEQKERNELS_DEVICE typename Pass::Writer writer_of(const Lane& lane, const Cursor& cursor, bool is_active) const {
    if constexpr (kOneQuarter)
      return cursor.writer;
    else  // none made where nothing is written, or it would be made too early
      return is_active ? rematerialised<typename Pass::Writer>(lane, cursor, true) : cursor.writer;
  }

  // Loads the inputs of the step at hand for the iteration with the product of this stage, for the lane's pass.
  template <int stage>
  SEQKERNELS_DEVICE void load_inputs(const Lane& lane, Cursor& cursor) const {
    constexpr int kFollows = Iteration<stage>::kFollows;
    typename Pass::Reader reader =
        kOneQuarter ? cursor.reader : rematerialised<typename Pass::Reader>(lane, cursor, cursor.walk.active() > 0);
    const auto for_those_of = [&](int active, const auto& visit) {
      SEQKERNELS_UNROLL
      for (int n = 0; n < kQuarterCount; ++n) {
        const UnitCoord at = coord(lane, n);
        if (kOneQuarter ? cursor.column[kKind<kFollows>] < active
                        : has_quarter(lane, n) && Units::template exists<kFollows>(p_, at) && at.column < active)
          visit(at, n);
      }
    };
    for_those_of(cursor.walk.active(), [&](const UnitCoord& at, int n) {
      cursor.loaded[n] = across(reader, lane, n).template load<kFollows>(p_, cursor.walk, at, further(lane, n));
    });
    // What the next step will load, from far away. FFMA's steps are long enough to load in time.
    if constexpr (Stage<0>::Product::kOnTensorCores && (stage == 0 || Units::kDiffer)) {
      if constexpr (kOneQuarter)
        reader = cursor.ahead;
      else
        reader.move(p_, cursor.walk.rows());
      for_those_of(cursor.walk.next(), [&](const UnitCoord&, int n) {
        across(reader, lane, n).template prefetch<kFollows>(p_, further(lane, n));
      });
    }
  }

  // Multiplies, and leaves this warp's partial sums in shared memory.
  template <int stage, int kColumnTiles>
  SEQKERNELS_DEVICE void multiply(int column, uint32_t* partial) {
    using Product = typename Stage<stage>::Product;
    using Sums = typename Stage<stage>::Sums;
    constexpr int kStageTiles = Iteration<stage>::kTiles;
    float sum[kStageTiles][kColumnTiles][Product::kResults];
    constexpr int kAhead = kColumnTiles == 1 ? Product::kAhead : Stage<stage>::kAhead;
    slices_.template of<stage>().template multiply<kColumnTiles, kAhead>(exchange_, column, partial, sum);
    const int group = Product::group(), member = Product::member();
    SEQKERNELS_UNROLL
    for (int i = 0; i < kColumnTiles * Product::kResults; ++i) {
      const int n = i / Product::kResults, result = i % Product::kResults;
      const int unit = group + result / Product::kColumns * Product::kGroups;
      const int column = n * kTileColumns + member * Product::kColumns + result % Product::kColumns;
      SEQKERNELS_UNROLL
      for (int tile = 0; tile < kStageTiles; tile += Sums::kTogether) {
        Words<Sums::kTogether> words;
        SEQKERNELS_UNROLL
        for (int t = 0; t < Sums::kTogether; ++t) words.word[t] = bits_of(sum[tile + t][n][result]);
        *reinterpret_cast<Words<Sums::kTogether>*>(partial + Sums::at(column, tile, unit)) = words;
      }
    }
  }

  // Where the sums of a lane's quarter are, of the first of the warps that have them.
  template <int stage>
  SEQKERNELS_DEVICE int partial_of(const Lane& lane, int n) const {
    const int unit = lane.unit + lane.units_to(n), column = lane.column + lane.columns_to(n) - lane.first;
    return unit / kTileUnits * part_.splits * partial() + Stage<stage>::Sums::at(column, 0, unit % kTileUnits);
  }

  // Adds up the sums of a unit; those of 8 splits in two halves, for all at once would take too many registers.
  template <int kCount>
  SEQKERNELS_DEVICE void collect(const float* partials, float (&product)[kCount]) const {
    using Sums = PartialSums<kCount>;
    const int stride = partial();
    if constexpr (kOneQuarter) {  // whose blocks have one or two groups of units
      Sums::template add_up<4>(partials, stride, product);
      if (kTiles == 2 || is_split_in_eight_) Sums::template add_up<4>(partials + 4 * stride, stride, product);
      return;
    }
    switch (part_.splits) {
      case 8:
        Sums::template add_up<4>(partials, stride, product);
        return Sums::template add_up<4>(partials + 4 * stride, stride, product);
      case 4:
        return Sums::template add_up<4>(partials, stride, product);
      case 2:
        return Sums::template add_up<2>(partials, stride, product);
      default:
        return Sums::template add_up<1>(partials, stride, product);
    }
  }

  // Where in a slot is published what a stage makes where others make a hidden unit; kNowhere if nothing.
  template <int stage>
  SEQKERNELS_DEVICE int offset_of(int hidden_unit, int column) const {
    const int unit = unit_of<stage>(hidden_unit);
    return kKind<stage> > 0 && unit == kNowhere
               ? kNowhere
               : exchange_.offset((kInPairs ? unit / 2 * 2 : unit) / Traits::kPerWord, column);
  }

  // `is_certain`: that the offset is not kNowhere.
  template <bool is_certain, int kCount>
  SEQKERNELS_DEVICE void publish(int offset, const float (&published)[kCount]) const {
    const int stride = part_.units() / Traits::kPerWord *
                       (kOneQuarter ? kTiles * kTileColumns : part_.columns);  // from one block of K to the next
    const bool exists = is_certain || offset != kNowhere;
    if constexpr (kInPairs) {
      constexpr bool kBothStore = kScope == Scope::kCluster;
      const bool is_odd = lane_index() & 1, is_second = kBothStore && is_odd;
      Words<2 / Traits::kPerWord> words[kCount];
      SEQKERNELS_UNROLL
      for (int block = 0; block < kCount; ++block) {
        const float own = published[block], neighbour = shuffle_xor(own, 1);
        words[block] = Traits::pair(is_second ? neighbour : own, is_second ? own : neighbour);
      }
      if (exists && (kBothStore || !is_odd)) exchange_.publish(offset, stride, words);
    } else {
      Words<1> words[kCount];
      SEQKERNELS_UNROLL
      for (int block = 0; block < kCount; ++block) words[block] = {{Traits::bits(published[block])}};
      if (exists) exchange_.publish(offset, stride, words);
    }
  }

  const Problem& p_;
  const Partition& part_;
  const SharedLayout& layout_;
  uint32_t* const memory_;
  const int team_, group_, member_;  // of the block, of the launch, of the group
  const int direction_, first_column_, first_unit_, warp_;
  int partials_;  // where the coming pass leaves its sums: double-buffered, but with two teams
  const int is_split_in_eight_;
  Exchange<kScope, kIsSparing ? 0 : kTiles * kTileColumns, kIsSparing> exchange_;
  typename Pass::State* const states_;
  typename Pass::Biases* const biases_;
  Slices<Pass, Operand, kForm> slices_;
};

}  // namespace seqkernels::cuda
