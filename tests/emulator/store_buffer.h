// The relaxed stores of a block that other blocks have not seen yet. Its own threads see them: a barrier of the block
// makes them do so, and does not order them for anybody else.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace seqkernels::emulator {

struct Store {
  uint32_t* to;
  uint32_t word;
  int thread;            // of the block, whose last store there it is
  int team, team_round;  // of the block's teams that of the thread, and its barriers before
  int round;             // the block's barriers before
  bool is_late;
};

class StoreBuffer {
 public:
  const Store* find(const uint32_t* to) const {
    const auto found = index_.find(to);
    return found == index_.end() ? nullptr : &stores_[found->second];
  }

  // Takes the place of an earlier store there, which nobody else will ever have seen.
  void put(const Store& store) {
    const auto [found, is_new] = index_.try_emplace(store.to, stores_.size());
    if (is_new)
      stores_.push_back(store);
    else
      stores_[found->second] = store;
  }

  Store take(size_t index) {
    const Store store = stores_[index];
    index_[stores_.back().to] = index;
    stores_[index] = stores_.back();
    stores_.pop_back();
    index_.erase(store.to);
    return store;
  }

  const Store& operator[](size_t index) const { return stores_[index]; }
  size_t size() const { return stores_.size(); }
  bool empty() const { return stores_.empty(); }

 private:
  std::vector<Store> stores_;  // in no order
  std::unordered_map<const uint32_t*, size_t> index_;
};

}  // namespace seqkernels::emulator
