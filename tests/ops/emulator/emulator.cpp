#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "device.h"

namespace dcnzoo::cuda::emulated {
namespace {

[[noreturn]] void fail(const char* reason);

constexpr int lanes = 32, group_threads = 128;
constexpr size_t stack_bytes = 256 << 10;

// Something that a thread did, by its own clock. The clock goes on where others may learn of what was done before.
struct Event {
  int thread = -1;
  uint32_t clock = 0;
};

// A word of shared memory: who wrote it last, and which reads since then a next write may still collide with.
struct Word {
  Event write;
  std::vector<Event> reads;
  int products = 0;  // of tensor cores that are reading it
  bool written = false, in_flight = false, is_barrier = false;
};

struct Copy {
  char* shared;
  Chunk value;
};

// A product of four warps that is under way, as one of them sees it.
struct AsyncProduct {
  std::shared_ptr<const std::vector<size_t>> words;  // that the tensor cores read
  float* sums[lanes];
};

struct Warp {
  int waiting = 0, running = 0;
  uint32_t votes = 0, result = 0;
  Operands operands[lanes];
  double given[lanes] = {}, gathered[lanes] = {};
  bool products_allowed = false;
  std::vector<AsyncProduct> products;              // of no batch yet
  std::deque<std::vector<AsyncProduct>> batches;  // under way
};

// Four warps that multiply together.
struct Group {
  int waiting = 0;
  AsyncOperands operands[group_threads];
};

// The true sums of a thread while products are under way; it sees not-a-number.
struct HiddenSums {
  std::vector<float> sums;
  int products = 0;
};

struct NamedBarrier {
  int threads = 0;
  std::vector<int> waiting;
};

// `arriving` is what the threads that have arrived know, `ended` what they knew when the last phase ended.
struct Phases {
  Event made;
  int arrivals = 0, missing = 0;
  uint32_t phase = 0;
  std::vector<uint32_t> arriving, ended;
  std::vector<int> waiting;
};

enum class State { ready, at_barrier, at_warp, waiting, done };

// A coroutine: `context` is where it begins, `place` where it goes on. (A switch of contexts is a system call, a
// jump is not.)
struct Thread {
  ucontext_t context;
  jmp_buf place;
  bool begun = false;
  std::unique_ptr<char[]> stack;
  State state = State::ready;
  std::vector<Copy> copies;
  std::vector<uint32_t> published;  // its clock whenever it published its stores to the tensor cores
};

// Of a matrix in shared memory that wgmma reads along K, as PTX describes it.
class Matrix {
 public:
  explicit Matrix(uint64_t descriptor)
      : start_(field(descriptor, 0)),
        leading_step_(field(descriptor, 16)),
        group_step_(field(descriptor, 32)),
        swizzle_(static_cast<int>(descriptor >> 62)) {
    constexpr uint64_t known = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62;
    if ((descriptor & ~known) != 0) fail("a descriptor of a matrix has bits that mean nothing here");
    if (swizzle_ == 0) return;
    if (start_ / pitch() % 8 != 0) fail("a swizzled matrix does not begin where its pattern does");
    if (start_ % pitch() + 32 > pitch()) fail("a swizzled matrix is wider than its pattern");
  }

  // Where byte k (0 <= k < 32) of a row lies in the window of shared memory.
  uint32_t address(int row, int k) const {
    const uint32_t group = start_ + row / 8 * group_step_;
    if (swizzle_ == 0) return group + row % 8 * 16 + k / 16 * leading_step_ + k % 16;
    const uint32_t plain = group + row % 8 * pitch() + k;
    return plain ^ (plain >> 7 & (pitch() / 16 - 1)) << 4;
  }

 private:
  static uint32_t field(uint64_t descriptor, int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; }
  uint32_t pitch() const { return 256u >> swizzle_; }

  const uint32_t start_, leading_step_, group_step_;
  const int swizzle_;
};

// What one thread knows of the clocks of all. (Checked arithmetic would take most of the emulator's time here.)
__attribute__((no_sanitize("undefined"))) void learn(uint32_t* knows, const uint32_t* told, size_t threads) {
  for (size_t i = 0; i < threads; ++i) knows[i] = std::max(knows[i], told[i]);
}

class Block {
 public:
  Block(int threads, size_t shared_bytes, unsigned seed, const std::function<void(char*)>& kernel)
      : kernel_(kernel), random_(seed), threads_(threads), warps_((threads + lanes - 1) / lanes),
        groups_((threads + group_threads - 1) / group_threads), clocks_(static_cast<size_t>(threads) * threads) {
    memory_.resize(shared_bytes + alignment);
    shared_ = memory_.data() + (alignment - reinterpret_cast<uintptr_t>(memory_.data()) % alignment);
    shared_bytes_ = shared_bytes;
    for (Thread& thread : threads_) thread.stack = std::make_unique<char[]>(stack_bytes);
  }

  void run(int64_t index) {
    index_ = index;
    std::memset(shared_, 0xff, shared_bytes_);  // not-a-number in every format
    words_.assign((shared_bytes_ + 3) / 4, Word{});
    waiting_ = 0, running_ = size();
    for (Warp& warp : warps_) warp = Warp{};
    for (Group& group : groups_) group = Group{};
    for (NamedBarrier& barrier : barriers_) barrier = NamedBarrier{};
    phases_.clear(), hidden_.clear(), ready_.clear();
    std::fill(clocks_.begin(), clocks_.end(), 0);
    for (int i = 0; i < size(); ++i) *clock(i, i) = 1;
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
    waiting_ = 0;
    std::vector<int> all;
    for (int i = 0; i < size(); ++i) {
      if (threads_[i].state == State::at_barrier || i == current_) all.push_back(i);
    }
    tell_each_other(all);
    release(State::at_barrier, 0, size());
  }

  // Passes when all lanes of the warp have come; then `last` runs, once.
  template <class Function>
  void wait_for_warp(const Function& last) {
    Warp& warp = own_warp();
    if (++warp.waiting < warp.running) return leave(State::at_warp);
    last(warp);
    warp.waiting = 0;
    release(State::at_warp, first_lane(), std::min(first_lane() + lanes, size()));
  }

  void warp_barrier() {
    wait_for_warp([this](Warp&) { tell_warp(); });
  }

  void named_barrier(int number, int threads) {
    if (number < 1 || number > 15) fail("a barrier's number is not 1 to 15");
    if (threads % lanes != 0) fail("a barrier of threads that are not whole warps");
    NamedBarrier& barrier = barriers_[number];
    if (barrier.waiting.empty()) barrier.threads = threads;
    if (barrier.threads != threads) fail("threads do not agree how many a barrier is for");
    barrier.waiting.push_back(current_);
    if (static_cast<int>(barrier.waiting.size()) < threads) return leave(State::waiting);
    tell_each_other(barrier.waiting);
    make_ready(barrier.waiting);
  }

  void init_barrier(const void* address, int arrivals) {
    for_words(address, sizeof(PhaseBarrier), [&](Word& word) {
      if (word.written || word.is_barrier) fail("a barrier where something else is");
      word.is_barrier = true;
    });
    Phases& phases = phases_[address];
    phases.made = now();
    phases.arrivals = phases.missing = arrivals;
    phases.arriving.assign(threads_.size(), 0), phases.ended.assign(threads_.size(), 0);
  }

  void arrive(const void* address) {
    Phases& phases = find_phases(address);
    learn(phases.arriving.data(), clock(current_, 0), threads_.size());
    ++*clock(current_, current_);
    if (--phases.missing > 0) return;
    ++phases.phase, phases.missing = phases.arrivals;
    phases.ended = phases.arriving;
    make_ready(phases.waiting);
  }

  void wait_for_phase(const void* address, uint32_t parity) {
    Phases& phases = find_phases(address);
    while (phases.phase % 2 == parity) {
      phases.waiting.push_back(current_);
      leave(State::waiting);
    }
    learn(clock(current_, 0), phases.ended.data(), threads_.size());
  }

  void publish() {
    uint32_t& own = *clock(current_, current_);
    threads_[current_].published.push_back(own++);
  }

  uint32_t shared_address(const void* address) const {
    return static_cast<uint32_t>(static_cast<const char*>(address) - shared_) + window;
  }

  void allow_products() {
    wait_for_warp([](Warp& warp) { warp.products_allowed = true; });
  }

  void end_batch() {
    wait_for_warp([](Warp& warp) {
      warp.batches.push_back(std::move(warp.products));
      warp.products.clear();
    });
  }

  void wait_for_products(size_t pending) {
    wait_for_warp([&](Warp& warp) {
      for (; warp.batches.size() > pending; warp.batches.pop_front()) {
        for (const AsyncProduct& product : warp.batches.front()) finish(warp, product);
      }
    });
  }

  // Of four warps: the last of their threads to come computes what will be there later.
  void multiply_async(const AsyncOperands& operands, float (*unpack)(uint16_t)) {
    const int first = current_ / group_threads * group_threads;
    Group& group = groups_[current_ / group_threads];
    group.operands[current_ - first] = operands;
    if (++group.waiting < group_threads) return leave(State::waiting);
    group.waiting = 0;
    start_product(first, group, unpack);
    std::vector<int> others;
    for (int i = first; i < first + group_threads; ++i) {
      if (i != current_) others.push_back(i);
    }
    make_ready(others);
  }

  uint32_t vote(bool value) {
    Warp& warp = own_warp();
    warp.votes |= static_cast<uint32_t>(value) << current_ % lanes;
    wait_for_warp([this](Warp& all) {
      if (all.running != lanes) fail("a vote of a warp with threads missing");
      tell_warp();  // at least what was read for the vote has been read
      all.result = all.votes, all.votes = 0;
    });
    return warp.result;
  }

  const double* gather(double value) {
    Warp& warp = own_warp();
    warp.given[current_ % lanes] = value;
    wait_for_warp([](Warp& all) {
      if (all.running != lanes) fail("a sum over a warp with threads missing");
      std::copy(all.given, all.given + lanes, all.gathered);
    });
    return warp.gathered;
  }

  Operands& own_operands() { return own_warp().operands[current_ % lanes]; }

  template <class Function>
  void for_words(const void* address, size_t bytes, const Function& function) {
    const char* begin = static_cast<const char*>(address);
    if (begin < shared_ || begin + bytes > shared_ + shared_bytes_) fail("access outside of shared memory");
    for (size_t w = (begin - shared_) / 4; w <= (begin - shared_ + bytes - 1) / 4; ++w) function(words_[w]);
  }

  void read(const void* address, size_t bytes) {
    for_words(address, bytes, [&](Word& word) { read(word, current_); });
  }

  void write(void* address, size_t bytes, bool in_flight) {
    // two halves of a word may belong to different threads
    const bool partial = bytes % 4 != 0 || reinterpret_cast<uintptr_t>(address) % 4 != 0;
    for_words(address, bytes, [&](Word& word) {
      check_usable(word);
      if (word.products > 0) fail("a thread overwrites what the tensor cores read");
      if (!partial && !knows(word.write)) fail("two threads write the same word without a barrier between");
      for (const Event& event : word.reads) {
        if (!knows(event)) fail("a thread overwrites what another reads, without a barrier between");
      }
      word.reads.clear();
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
  static constexpr size_t alignment = 1024;
  static constexpr uint32_t window = 1024;  // address of the block's memory in the window of shared memory

  int first_lane() const { return current_ / lanes * lanes; }
  Warp& own_warp() { return warps_[current_ / lanes]; }

  // What a thread knows of the clock of another.
  uint32_t* clock(int thread, int other) { return &clocks_[static_cast<size_t>(thread) * threads_.size() + other]; }
  Event now() { return {current_, *clock(current_, current_)}; }
  bool knows(const Event& event) { return knows(current_, event); }
  bool knows(int thread, const Event& event) {
    return event.thread < 0 || event.clock <= *clock(thread, event.thread);
  }

  void tell_each_other(const std::vector<int>& threads) {
    if (shared_bytes_ == 0) return;  // nothing to meet in
    std::vector<uint32_t> all(threads_.size());
    for (const int thread : threads) learn(all.data(), clock(thread, 0), all.size());
    for (const int thread : threads) {
      std::memcpy(clock(thread, 0), all.data(), all.size() * sizeof(uint32_t));
      ++*clock(thread, thread);
    }
  }

  // For the last thread that comes.
  void tell_warp() {
    std::vector<int> all;
    for (int i = first_lane(); i < std::min(first_lane() + lanes, size()); ++i) {
      if (threads_[i].state == State::at_warp || i == current_) all.push_back(i);
    }
    tell_each_other(all);
  }

  void make_ready(std::vector<int>& waiting) {
    for (const int thread : waiting) {
      if (thread == current_) continue;
      threads_[thread].state = State::ready;
      ready_.push_back(thread);
    }
    waiting.clear();
  }

  Phases& find_phases(const void* address) {
    const auto found = phases_.find(address);
    if (found == phases_.end() || !knows(found->second.made)) fail("a barrier is used before it is made");
    return found->second;
  }

  void check_usable(const Word& word) const {
    if (word.is_barrier) fail("a barrier is used as memory");
    if (word.in_flight) fail("shared memory is used while a copy to it is under way");
  }

  void read(Word& word, int thread) {
    check_usable(word);
    if (!word.written) fail("shared memory is read before it is written");
    if (!knows(thread, word.write)) fail("a thread reads what another wrote, without a barrier between");
    note_read(word, thread);
  }

  // A read that this one follows need not be known any more: who knows of this one knows of that one.
  void note_read(Word& word, int thread) {
    const Event event{thread, *clock(thread, thread)};
    for (Event& before : word.reads) {
      if (!knows(thread, before)) continue;
      before = event;
      return;
    }
    word.reads.push_back(event);
  }

  // Whether the writer of a word has published it to the tensor cores, and this thread knows.
  bool knows_published(int thread, const Word& word) {
    const std::vector<uint32_t>& published = threads_[word.write.thread].published;
    const auto first = std::lower_bound(published.begin(), published.end(), word.write.clock);
    return first != published.end() && *first <= *clock(thread, word.write.thread);
  }

  size_t word_index(uint32_t address) const {
    if (address < window || address + 4 > window + shared_bytes_) fail("a matrix lies outside of shared memory");
    return (address - window) / 4;
  }

  // Rows of 16 numbers that the tensor cores read.
  std::vector<float> load_matrix(const Matrix& matrix, int rows, float (*unpack)(uint16_t),
                                 std::vector<size_t>& words) {
    std::vector<float> numbers;
    for (int row = 0; row < rows; ++row) {
      for (int k = 0; k < 32; k += 4) {
        words.push_back(word_index(matrix.address(row, k)));
        uint16_t two[2];
        std::memcpy(two, shared_ + 4 * words.back(), 4);
        numbers.push_back(unpack(two[0])), numbers.push_back(unpack(two[1]));
      }
    }
    return numbers;
  }

  void start_product(int first, const Group& group, float (*unpack)(uint16_t)) {
    constexpr int rows = 64, columns = 128, depth = 16, count = rows * columns / group_threads;
    const AsyncOperands& operands = group.operands[0];
    for (const AsyncOperands& other : group.operands) {
      if (other.a != operands.a || other.b != operands.b) fail("threads do not agree on the operands of a product");
    }
    const auto words = std::make_shared<std::vector<size_t>>();
    const std::vector<float> a = load_matrix(Matrix(operands.a), rows, unpack, *words);
    const std::vector<float> b = load_matrix(Matrix(operands.b), columns, unpack, *words);
    for (int lane = first; lane < first + group_threads; lane += lanes) {
      for (const size_t index : *words) {
        Word& word = words_[index];
        read(word, lane);
        if (!knows_published(lane, word)) fail("tensor cores read what its writer has not published to them");
        ++word.products;
      }
      AsyncProduct product{words, {}};
      for (int i = 0; i < lanes; ++i) product.sums[i] = group.operands[lane - first + i].sums;
      warps_[lane / lanes].products.push_back(product);
    }
    // Thread t has of D, in its register i, row 16 · (t / 32) + t % 32 / 4 + 8 · (i / 2 % 2) and column
    // 8 · (i / 4) + 2 · (t % 4) + i % 2.
    for (int t = 0; t < group_threads; ++t) {
      HiddenSums& hidden = hide(first + t, group.operands[t].sums, count);
      for (int i = 0; i < count; ++i) {
        const float* row = &a[(16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2)) * depth];
        const float* column = &b[(8 * (i / 4) + 2 * (t % 4) + i % 2) * depth];
        float sum = 0;
        for (int k = 0; k < depth; ++k) sum += row[k] * column[k];
        hidden.sums[i] += sum;
      }
      ++hidden.products;
    }
  }

  HiddenSums& hide(int thread, float* sums, int count) {
    HiddenSums& hidden = hidden_[sums];
    if (hidden.products > 0) return hidden;
    if (!warps_[thread / lanes].products_allowed) fail("sums are multiplied into before wgmma.fence");
    hidden.sums.assign(sums, sums + count);
    std::memset(sums, 0xff, count * sizeof(float));
    return hidden;
  }

  // As the current warp waits for it.
  void finish(Warp& warp, const AsyncProduct& product) {
    for (const size_t index : *product.words) {
      --words_[index].products;
      note_read(words_[index], first_lane());
    }
    for (float* sums : product.sums) {
      HiddenSums& hidden = hidden_[sums];
      if (--hidden.products > 0) continue;
      const std::vector<char> untouched(hidden.sums.size() * sizeof(float), '\xff');
      if (std::memcmp(sums, untouched.data(), untouched.size()) != 0) fail("sums are changed during a product");
      std::copy(hidden.sums.begin(), hidden.sums.end(), sums);
      hidden_.erase(sums);
      warp.products_allowed = false;
    }
  }

  void start(Thread& thread) {
    thread.state = State::ready, thread.begun = false;
    thread.published.clear();
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
    if (!own_warp().products.empty() || !own_warp().batches.empty()) fail("a thread ends without waiting for products");
    thread.state = State::done;
    --running_, --own_warp().running;
    if (waiting_ > 0 || own_warp().waiting > 0) fail("a thread ends while others wait for it");
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
  std::vector<Group> groups_;
  std::vector<uint32_t> clocks_;  // (who knows, whose)
  NamedBarrier barriers_[16];
  std::map<const void*, Phases> phases_;
  std::map<float*, HiddenSums> hidden_;
  std::vector<char> memory_;
  std::vector<Word> words_;
  std::vector<int> ready_;
  jmp_buf scheduler_;
  char* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  int64_t index_ = 0;
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
int64_t block() { return Block::active->index(); }
int64_t blocks() { return grid; }
void barrier() { Block::active->wait_for_block(); }
void warp_barrier() { Block::active->warp_barrier(); }
void named_barrier(int number, int threads) { Block::active->named_barrier(number, threads); }
void init_barrier(PhaseBarrier* barrier, int arrivals) {
  check_aligned(barrier, sizeof(PhaseBarrier));
  Block::active->init_barrier(barrier, arrivals);
}
void arrive(const PhaseBarrier* barrier) { Block::active->arrive(barrier); }
void wait_for_phase(const PhaseBarrier* barrier, uint32_t parity) { Block::active->wait_for_phase(barrier, parity); }
void publish_to_tensor_cores() { Block::active->publish(); }
uint32_t shared_address(const void* shared) { return Block::active->shared_address(shared); }
void allow_products() { Block::active->allow_products(); }
void end_batch() { Block::active->end_batch(); }
void wait_for_products(int pending) { Block::active->wait_for_products(static_cast<size_t>(pending)); }
void multiply_async(const AsyncOperands& operands, float (*unpack)(uint16_t)) {
  Block::active->multiply_async(operands, unpack);
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
