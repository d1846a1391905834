#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

namespace seqkernels::emulator {

namespace {

// NaN as bfloat16 or float16, and repeated, as float32 or float64.
constexpr uint16_t kPoison = 0xfff5;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

char poison_at(const char* address) {
  return static_cast<char>(reinterpret_cast<uintptr_t>(address) % 2 ? kPoison >> 8 : kPoison & 0xff);
}

}  // namespace

Arena::Arena(int blocks, size_t bytes) : blocks_(blocks), bytes_(bytes), aligned_(round_up(bytes, 16)) {
  page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  stride_ = round_up(aligned_, page_) + page_;
  void* mapped = mmap(nullptr, blocks * stride_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(mapped);
}

Arena::~Arena() { munmap(memory_, blocks_ * stride_); }

int Arena::block_of(const void* address) const {
  if (!contains(address)) return -1;
  const int block = static_cast<int>((static_cast<const char*>(address) - memory_) / stride_);
  return at(block) <= address && address < at(block) + bytes_ ? block : -1;
}

// The pages are accessible whole; in what the block did not ask for, the poison must stay.
void Arena::open(int block) {
  char* room = memory_ + block * stride_;
  mprotect(room, stride_ - page_, PROT_READ | PROT_WRITE);
  for (char* byte = room; byte < room + stride_ - page_; ++byte) *byte = poison_at(byte);
}

bool Arena::close(int block) {
  char* room = memory_ + block * stride_;
  bool intact = true;
  for (const char* byte = room; byte < at(block); ++byte) intact &= *byte == poison_at(byte);
  for (const char* byte = at(block) + bytes_; byte < at(block) + aligned_; ++byte) intact &= *byte == poison_at(byte);
  mprotect(room, stride_ - page_, PROT_NONE);
  return intact;
}

std::string Arena::describe(const char* address) const {
  if (!contains(address)) return "not shared memory";
  const int block = static_cast<int>((address - memory_) / stride_);
  const std::string memory = " the " + std::to_string(bytes_) + " bytes of block " + std::to_string(block);
  if (address >= at(block) + bytes_) return std::to_string(address - at(block) - bytes_) + " bytes behind" + memory;
  if (address < at(block)) return std::to_string(at(block) - address) + " bytes before" + memory;
  return "byte " + std::to_string(address - at(block)) + " of" + memory + ", which has not started or has ended";
}

}  // namespace seqkernels::emulator
