// Blocks of threads while they run.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#include "machine.h"
#include "ptx.h"

namespace ptx {

// What happens before what, as vector clocks. A thread's time advances whenever it lets others know what it has done;
// an event is known by its thread and time. Beside the threads each warp's tensor cores have a clock: they work on
// their own.
using Clock = std::vector<uint32_t>;  // by thread: the last time that is known

constexpr int time_bits = 21;

inline uint32_t event(int thread, uint32_t time) { return static_cast<uint32_t>(thread) << time_bits | time; }
inline int thread_of(uint32_t event) { return static_cast<int>(event >> time_bits); }
inline uint32_t time_of(uint32_t event) { return event & ((1u << time_bits) - 1); }

// Two bytes of shared memory. Of its readers since the last write it knows one, the last, per 8th warp.
struct Cell {
  static constexpr int reader_kinds = 8;
  uint32_t write = 0;  // an event, 0 if there was none
  int write_line = 0;
  uint32_t read[reader_kinds] = {};
  uint32_t copying = 0;  // 1 + thread that has a copy under way to here
};

// An object of mbarrier.
struct PhaseBarrier {
  uint32_t expected = 0, pending = 0, phase = 0;
  Clock arrived, completed;
};

// What a kernel has written to 4096 bytes of global memory.
struct Page {
  struct Byte {
    uint32_t block = 0;  // 1 + the one that wrote, 0 if none did
    uint32_t write : 31, is_atomic : 1;
  };
  static constexpr uint64_t bytes = 4096;
  static constexpr uint32_t several = UINT32_MAX;  // blocks have added atomically
  std::vector<Byte> written = std::vector<Byte>(bytes, Byte{0, 0, 0});
};

struct Copy {
  int lane, line;
  uint32_t target, bytes;
  uint64_t source;
};

// A product of wgmma that may not be done.
struct Product {
  const Instruction* instruction;
  const std::vector<uint32_t>* accumulators;
  uint64_t a, b;
  bool add, done;
  uint32_t time;  // of the warp's tensor cores
};

enum class Wait : uint8_t { none, lanes, barrier, phase, registers };

// Lanes of a warp that are at the same instruction.
struct Group {
  int pc;
  uint32_t lanes;
  Wait wait = Wait::none;
  uint32_t barrier = 0;  // where phases are waited for; 0 where they are of several
};

struct Block;

struct Warp {
  Block* block;
  const Kernel* kernel;
  int index;
  char* registers;
  uint32_t live;
  std::vector<Group> groups;
  std::vector<Copy> copies;

  // wgmma
  std::vector<Product> products;
  std::vector<size_t> batches;     // of products: how many of them were there at each commit that is not awaited
  std::vector<uint32_t> unfenced;  // accumulators that other instructions have written since the last fence
  bool fenced = false;             // ever
  uint32_t tensor_time = 0;
  size_t issued = 0, changes = 0;  // instructions that its group of four warps takes together
  uint32_t register_count = 0;

  int line = 0;  // of the instruction that is executed
  uint64_t executed = 0;

  int thread(int lane) const { return index * warp_lanes + lane; }

  template <class T>
  T get(uint32_t offset, int lane) const {
    constexpr size_t slot = sizeof(T) == 8 ? 8 : 4;
    T value;
    std::memcpy(&value, registers + offset + static_cast<size_t>(lane) * slot, sizeof(T));
    return value;
  }
  template <class T>
  void set(uint32_t offset, int lane, T value) {
    if constexpr (sizeof(T) >= 4) {
      std::memcpy(registers + offset + static_cast<size_t>(lane) * sizeof(T), &value, sizeof(T));
    } else {
      uint32_t wide = 0;
      std::memcpy(&wide, &value, sizeof(T));
      std::memcpy(registers + offset + static_cast<size_t>(lane) * 4, &wide, 4);
    }
  }
  uint32_t predicate(uint32_t offset) const {
    uint32_t bits;
    std::memcpy(&bits, registers + offset, 4);
    return bits;
  }
  void set_predicate(uint32_t offset, uint32_t lanes, uint32_t bits) {
    const uint32_t all = (predicate(offset) & ~lanes) | (bits & lanes);
    std::memcpy(registers + offset, &all, 4);
  }
  uint64_t address(const Instruction& in, int index, uint32_t place, int lane) const {
    return (in.wide_address[index] ? get<uint64_t>(place, lane) : get<uint32_t>(place, lane)) +
           static_cast<uint64_t>(in.displacement[index]);
  }
};

template <class Function>
void for_lanes(uint32_t lanes, Function function) {
  if (lanes == all_lanes) {
    for (int lane = 0; lane < warp_lanes; ++lane) function(lane);
  } else {
    for (; lanes != 0; lanes &= lanes - 1) function(__builtin_ctz(lanes));
  }
}

// What the four warps of a group that use wgmma must have in common.
struct WarpGroup {
  struct Issue {
    const Instruction* instruction;
    uint64_t a, b;
  };
  std::vector<Issue> issues;
  std::vector<const Instruction*> changes;
};

struct Barrier {
  uint32_t expected = 0;  // threads; 0 for all
  uint32_t warps = 0;     // that have arrived, a bit each
};

struct Block {
  uint32_t index[3], grid[3], size[3];
  int threads, warp_count;
  uint32_t shared_bytes;
  uint32_t number;  // among the blocks
  std::vector<char> shared;
  std::vector<Cell> cells;
  std::unordered_map<uint64_t, Page> pages;  // of global memory, by address / Page::bytes
  uint64_t clean_page = UINT64_MAX;          // one that nothing has been written to
  std::unordered_map<uint32_t, PhaseBarrier> phase_barriers;
  uint32_t first_barrier = UINT32_MAX, last_barrier = 0;  // addresses
  Barrier barriers[16];
  std::vector<Warp> warps;
  std::vector<WarpGroup> warp_groups;
  uint32_t free_registers = 0;
  const char* params;
  std::mt19937_64 random;

  // By thread, those of tensor cores last.
  std::vector<uint32_t> time;
  std::vector<std::shared_ptr<const Clock>> known;
  std::vector<std::vector<uint32_t>> fences;  // times of a thread's fence.proxy.async, ascending

  bool chance(int of) { return random() % static_cast<uint64_t>(of) == 0; }
  int tensor_cores(int warp) const { return warp_count * warp_lanes + warp; }

  bool happened_before(uint32_t event, int thread) const {
    const int other = thread_of(event);
    return other == thread || (*known[static_cast<size_t>(thread)])[static_cast<size_t>(other)] >= time_of(event);
  }
  uint32_t now(int thread) const { return event(thread, time[static_cast<size_t>(thread)]); }
  void advance(int thread);

  // All that the threads have done before is known to all of them after.
  void synchronize(const std::vector<int>& threads);
  void add_knowledge(Clock& clock, int thread) const;  // that of the thread, to a clock
  void learn(int warp, uint32_t lanes, const Clock& clock);

  // Of a thread, or of a warp's tensor cores.
  void check_read(const Warp& warp, int lane, int thread, uint64_t address, uint32_t bytes, bool by_tensor_cores);
  void check_write(const Warp& warp, int lane, uint64_t address, uint32_t bytes);
  // Faults where shared memory has no such bytes.
  void check_shared(int lane, uint64_t address, uint32_t bytes, uint32_t align) const;
  char* shared_at(uint64_t address) { return shared.data() + (address - shared_base); }
  PhaseBarrier& phase_barrier(int lane, int thread, uint64_t address);
  std::string name_of(int thread) const;

  // Accesses of a thread to global memory.
  void check_global_read(const Warp& warp, int lane, uint64_t address, uint32_t bytes, uint32_t align, bool read_only);
  void check_global_write(const Warp& warp, int lane, uint64_t address, uint32_t bytes, bool is_atomic);

  // Those that wait for something like this look again.
  void wake(Wait wait, uint32_t barrier);
};

}  // namespace ptx
