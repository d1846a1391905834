// What the driver of the kernels reads and writes: memory that bad accesses do not survive, and files of named arrays.
//
// Such a file is a sequence of arrays. Each is two integers of 8 bytes, in the host's order, the lengths in bytes of its name
// and of its values; then the name; then the values. tests/emulator/layer.py does the same.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace seqkernels::emulator {

// Memory that ends right before a page without access. It begins wherever that leads to: kernels may ask for no more
// alignment than the last value has.
class Memory {
 public:
  static constexpr unsigned char kPoison = 0xFF;  // NaN in every type, and kNotReady in a ring of the exchange

  Memory() = default;
  explicit Memory(size_t bytes, unsigned char fill = kPoison) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    room_ = (bytes + page - 1) / page * page;
    mapped_ = room_ + page;
    void* const mapped = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<char*>(mapped);
    std::memset(begin_, kPoison, room_ - bytes);
    std::memset(begin_ + room_ - bytes, fill, bytes);
    mprotect(begin_ + room_, page, PROT_NONE);
  }
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(begin_, other.begin_), std::swap(mapped_, other.mapped_);
    std::swap(room_, other.room_), std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory() {
    if (begin_) munmap(begin_, mapped_);
  }

  void make_constant() { mprotect(begin_, room_, PROT_READ); }

  // Of what lies before it in its first page, too.
  void check(const std::string& name) const {
    for (size_t i = 0; i + bytes_ < room_; ++i)
      if (begin_[i] != static_cast<char>(kPoison)) throw std::runtime_error("bytes before " + name + " were written");
  }

  void* data() const { return begin_ ? begin_ + room_ - bytes_ : nullptr; }
  size_t bytes() const { return bytes_; }

 private:
  char* begin_ = nullptr;
  size_t mapped_ = 0, room_ = 0, bytes_ = 0;
};

class Records {
 public:
  static Records read(const char* path) {
    Records records;
    std::ifstream file(path, std::ios::binary);
    for (int64_t lengths[2]; file.read(reinterpret_cast<char*>(lengths), sizeof lengths);) {
      std::string name(static_cast<size_t>(lengths[0]), 0);
      file.read(name.data(), lengths[0]);
      Memory values(static_cast<size_t>(lengths[1]));
      file.read(static_cast<char*>(values.data()), lengths[1]);
      if (!file) throw std::runtime_error(std::string(path) + " ends early");
      values.make_constant();
      records.arrays_[name] = std::move(values);
    }
    return records;
  }

  // Null where there is none.
  const void* find(const std::string& name) const {
    const auto found = arrays_.find(name);
    return found == arrays_.end() ? nullptr : found->second.data();
  }

  std::vector<int64_t> integers(const std::string& name) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) return {};
    const int64_t* const values = static_cast<const int64_t*>(found->second.data());
    return {values, values + found->second.bytes() / sizeof(int64_t)};
  }

  int64_t integer(const std::string& name) const {
    const std::vector<int64_t> values = integers(name);
    if (values.size() != 1) throw std::runtime_error("the problem does not say " + name);
    return values[0];
  }

 private:
  std::map<std::string, Memory> arrays_;
};

class RecordWriter {
 public:
  explicit RecordWriter(const char* path) : file_(path, std::ios::binary) {}

  void write(const std::string& name, const std::vector<double>& values) {
    const int64_t lengths[] = {static_cast<int64_t>(name.size()), static_cast<int64_t>(values.size() * sizeof(double))};
    file_.write(reinterpret_cast<const char*>(lengths), sizeof lengths);
    file_.write(name.data(), lengths[0]);
    file_.write(reinterpret_cast<const char*>(values.data()), lengths[1]);
  }

 private:
  std::ofstream file_;
};

}  // namespace seqkernels::emulator
