#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "device.h"

namespace dcnzoo::cuda::emulated {
namespace {

[[noreturn]] void fail(const char* reason);

constexpr int lanes = 32;
constexpr size_t stack_bytes = 256 << 10;

// Who used a word of shared memory last, and when: block barriers passed, then warp barriers passed.
struct Use {
  int thread = -1;
  int64_t block_time = -1, warp_time = -1;
};

// Reads of several threads are kept as those of the last thread and a mark.
struct Word {
  Use write, read;
  bool read_by_several_warps = false, written = false, in_flight = false;
};

struct Copy {
  char* shared;
  Chunk value;
};

struct Warp {
  int64_t time = 0;
  int waiting = 0, running = 0;
  uint32_t votes = 0, result = 0;
  Operands operands[lanes];
  double given[lanes] = {}, gathered[lanes] = {};
};

enum class State { ready, at_barrier, at_warp, done };

// A coroutine: `context` is where it begins, `place` where it goes on. (A switch of contexts is a system call, a
// jump is not.)
struct Thread {
  ucontext_t context;
  jmp_buf place;
  bool begun = false;
  std::unique_ptr<char[]> stack;
  State state = State::ready;
  std::vector<Copy> copies;
};

class Block {
 public:
  Block(int threads, size_t shared_bytes, unsigned seed, const std::function<void(char*)>& kernel)
      : kernel_(kernel), random_(seed), threads_(threads), warps_((threads + lanes - 1) / lanes) {
    memory_.resize(shared_bytes + alignment);
    shared_ = memory_.data() + (alignment - reinterpret_cast<uintptr_t>(memory_.data()) % alignment);
    shared_bytes_ = shared_bytes;
    for (Thread& thread : threads_) thread.stack = std::make_unique<char[]>(stack_bytes);
  }

  void run(int64_t index) {
    index_ = index;
    std::memset(shared_, 0xff, shared_bytes_);  // not-a-number in every format
    words_.assign((shared_bytes_ + 3) / 4, Word{});
    time_ = 0, waiting_ = 0, running_ = static_cast<int>(threads_.size());
    for (Warp& warp : warps_) warp = Warp{};
    ready_.clear();
    for (int i = 0; i < running_; ++i) {
      start(threads_[i]);
      ready_.push_back(i);
      ++warps_[i / lanes].running;
    }
    while (running_ > 0) {
      if (ready_.empty()) fail("threads wait for a barrier that others never reach");
      step();
    }
  }

  int current() const { return current_; }
  int size() const { return static_cast<int>(threads_.size()); }
  int64_t index() const { return index_; }

  void wait_for_block() {
    if (++waiting_ < running_) return leave(State::at_barrier);
    ++time_, waiting_ = 0;
    release(State::at_barrier, 0, size());
  }

  // Passes when all lanes of the warp have come; then `last` runs, once.
  template <class Function>
  void wait_for_warp(const Function& last) {
    Warp& warp = warps_[current_ / lanes];
    if (++warp.waiting < warp.running) return leave(State::at_warp);
    last(warp);
    ++warp.time, warp.waiting = 0;
    release(State::at_warp, current_ / lanes * lanes, std::min(current_ / lanes * lanes + lanes, size()));
  }

  uint32_t vote(bool value) {
    Warp& warp = warps_[current_ / lanes];
    warp.votes |= static_cast<uint32_t>(value) << current_ % lanes;
    wait_for_warp([](Warp& all) {
      if (all.running != lanes) fail("a vote of a warp with threads missing");
      all.result = all.votes, all.votes = 0;
    });
    return warp.result;
  }

  const double* gather(double value) {
    Warp& warp = warps_[current_ / lanes];
    warp.given[current_ % lanes] = value;
    wait_for_warp([](Warp& all) {
      if (all.running != lanes) fail("a sum over a warp with threads missing");
      std::copy(all.given, all.given + lanes, all.gathered);
    });
    return warp.gathered;
  }

  Operands& own_operands() { return warps_[current_ / lanes].operands[current_ % lanes]; }

  template <class Function>
  void for_words(const void* address, size_t bytes, const Function& function) {
    const char* begin = static_cast<const char*>(address);
    if (begin < shared_ || begin + bytes > shared_ + shared_bytes_) fail("access outside of shared memory");
    for (size_t w = (begin - shared_) / 4; w <= (begin - shared_ + bytes - 1) / 4; ++w) function(words_[w]);
  }

  void read(const void* address, size_t bytes) {
    for_words(address, bytes, [&](Word& word) {
      if (!word.written) fail("shared memory is read before it is written");
      check_not_in_flight(word);
      check_apart(word.write, "a thread reads what another wrote, without a barrier between");
      const bool same_time = word.read.block_time == time_;
      if (!same_time) word.read_by_several_warps = false;
      if (same_time && word.read.thread / lanes != current_ / lanes) word.read_by_several_warps = true;
      word.read = now();
    });
  }

  void write(void* address, size_t bytes, bool in_flight) {
    // two halves of a word may belong to different threads
    const bool partial = bytes % 4 != 0 || reinterpret_cast<uintptr_t>(address) % 4 != 0;
    for_words(address, bytes, [&](Word& word) {
      check_not_in_flight(word);
      if (!partial) check_apart(word.write, "two threads write the same word without a barrier between");
      if (word.read_by_several_warps && word.read.block_time == time_) fail("a thread overwrites what others still read");
      check_apart(word.read, "a thread overwrites what another reads, without a barrier between");
      word.write = now();
      word.written = true, word.in_flight = in_flight;
    });
  }

  void start_copy(char* shared, const void* global, bool valid) {
    write(shared, sizeof(Chunk), true);
    Copy copy{shared, {}};
    if (valid) std::memcpy(&copy.value, global, sizeof(Chunk));
    std::memset(shared, 0xff, sizeof(Chunk));
    threads_[current_].copies.push_back(copy);
  }

  void finish_copies() {
    for (const Copy& copy : threads_[current_].copies) {
      for_words(copy.shared, sizeof(Chunk), [&](Word& word) {
        word.in_flight = false;
        word.write = now();
      });
      std::memcpy(copy.shared, &copy.value, sizeof(Chunk));
    }
    threads_[current_].copies.clear();
  }

  static Block* active;

 private:
  static constexpr size_t alignment = 128;

  Use now() const { return {current_, time_, warps_[current_ / lanes].time}; }

  void check_not_in_flight(const Word& word) const {
    if (word.in_flight) fail("shared memory is used while a copy to it is under way");
  }

  void check_apart(const Use& use, const char* reason) const {
    if (use.block_time != time_ || use.thread == current_) return;
    const bool same_warp = use.thread / lanes == current_ / lanes;
    if (!same_warp || use.warp_time == warps_[current_ / lanes].time) fail(reason);
  }

  void start(Thread& thread) {
    thread.state = State::ready, thread.begun = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = stack_bytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, &Block::enter, 0);
  }

  static void enter() {
    active->kernel_(active->shared_);
    active->finish();
  }

  void finish() {
    Thread& thread = threads_[current_];
    if (!thread.copies.empty()) fail("a thread ends without waiting for its copies");
    thread.state = State::done;
    --running_, --warps_[current_ / lanes].running;
    if (waiting_ > 0 || warps_[current_ / lanes].waiting > 0) fail("a thread ends while others wait for it");
    _longjmp(scheduler_, 1);
  }

  void leave(State state) {
    threads_[current_].state = state;
    if (_setjmp(threads_[current_].place) == 0) _longjmp(scheduler_, 1);
  }

  void release(State state, int begin, int end) {
    for (int i = begin; i < end; ++i) {
      if (threads_[i].state != state) continue;
      threads_[i].state = State::ready;
      ready_.push_back(i);
    }
  }

  void step() {
    std::swap(ready_[random_() % ready_.size()], ready_.back());
    current_ = ready_.back();
    ready_.pop_back();
    if (_setjmp(scheduler_) != 0) return;
    Thread& next = threads_[current_];
    if (next.begun) _longjmp(next.place, 1);
    next.begun = true;
    setcontext(&next.context);
  }

  const std::function<void(char*)>& kernel_;
  std::minstd_rand random_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<char> memory_;
  std::vector<Word> words_;
  std::vector<int> ready_;
  jmp_buf scheduler_;
  char* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  int64_t index_ = 0, time_ = 0;
  int current_ = 0, waiting_ = 0, running_ = 0;
};

Block* Block::active = nullptr;
int64_t grid = 0;

void fail(const char* reason) {
  const Block& block = *Block::active;
  std::fprintf(stderr, "emulated GPU: %s (block %lld, thread %d)\n", reason, static_cast<long long>(block.index()),
               block.current());
  std::fflush(stderr);
  std::_Exit(1);
}

}  // namespace

int thread() { return Block::active->current(); }
int threads() { return Block::active->size(); }
int64_t block() { return Block::active->index(); }
int64_t blocks() { return grid; }
void barrier() { Block::active->wait_for_block(); }
void warp_barrier() {
  Block::active->wait_for_warp([](Warp&) {});
}

uint32_t vote(bool value) { return Block::active->vote(value); }
const double* gather(double value) { return Block::active->gather(value); }

void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail("an address is not aligned");
}

void note_read(const void* address, size_t bytes) { Block::active->read(address, bytes); }
void note_write(void* address, size_t bytes) { Block::active->write(address, bytes, false); }
void start_copy(void* shared, const void* global, bool valid) {
  check_aligned(shared, sizeof(Chunk));
  if (valid) check_aligned(global, sizeof(Chunk));
  Block::active->start_copy(static_cast<char*>(shared), global, valid);
}
void finish_copies() { Block::active->finish_copies(); }

void warp_product(const Operands& operands, Product product) {
  Block::active->own_operands() = operands;
  Block::active->wait_for_warp([product](Warp& warp) {
    if (warp.running != lanes) fail("a product of a warp with threads missing");
    product(warp.operands);
  });
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 31) return bits_float(sign | 0x7f800000u | fraction << 13);
  if (exponent > 0) return bits_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = std::ldexp(static_cast<float>(fraction), -24);
  return sign != 0 ? -small : small;
}

uint16_t float_to_half(float value) {
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000;
  const float size = std::fabs(value);
  if (value != value) return static_cast<uint16_t>(sign | 0x7e00);
  if (size >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00);
  if (size < 6.103515625e-5f) return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 24))));
  const uint32_t rounded = float_bits(size) + 0xfff + (float_bits(size) >> 13 & 1);  // ties to even
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

void launch(int64_t blocks, int threads, size_t shared_bytes, unsigned seed, const std::function<void(char*)>& kernel) {
  Block block(threads, shared_bytes, seed, kernel);
  Block::active = &block;
  grid = blocks;
  for (int64_t i = 0; i < blocks; ++i) block.run(i);
  Block::active = nullptr;
}

}  // namespace dcnzoo::cuda::emulated
