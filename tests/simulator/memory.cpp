// Memory, and what threads know of each other's accesses to it.
//
// Of shared memory every two bytes have a cell that remembers the last write and the last reads since. An access that
// the vector clocks do not order after these is a race. Not seen are races of a write with a read that a later read by
// the same or an 8th other warp has replaced. Of global memory the last write of a kernel to each byte is remembered,
// with its block: blocks know nothing of each other. Writes after reads of others are not seen there.
#include <algorithm>
#include <cmath>

#include "warp.h"

namespace ptx {
namespace {

PtxMemoryCheck memory_check = nullptr;

std::string hex(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

// Elements in registers that may be wider.
template <Space space, class Element, class Wide>
void load(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t bytes = sizeof(Element) * in.count;
  for_lanes(lanes, [&](int lane) {
    const uint64_t address = warp.address(in, 0, in.operand[0], lane);
    const char* source = nullptr;
    if constexpr (space == Space::global || space == Space::read_only) {
      warp.block->check_global_read(warp, lane, address, bytes, bytes, space == Space::read_only);
      source = reinterpret_cast<const char*>(address);
    } else if constexpr (space == Space::shared) {
      warp.block->check_shared(lane, address, bytes, bytes);
      warp.block->check_read(warp, lane, warp.thread(lane), address, bytes, false);
      source = warp.block->shared_at(address);
    } else {
      if (address % bytes != 0) throw Fault("a misaligned access to parameters", lane);
      const auto& params = warp.kernel->params;
      const bool inside = std::any_of(params.begin(), params.end(), [&](const Param& param) {
        return address >= param.offset && address + bytes <= param.offset + param.bytes;
      });
      if (!inside) throw Fault("an access to no parameter", lane);
      source = warp.block->params + address;
    }
    for (uint32_t i = 0; i < in.count; ++i) {
      Element element;
      std::memcpy(&element, source + i * sizeof(Element), sizeof(Element));
      warp.set<Wide>(in.operand[1 + i], lane, static_cast<Wide>(element));
    }
  });
}

template <Space space, class Element, class Wide>
void store(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t bytes = sizeof(Element) * in.count;
  for_lanes(lanes, [&](int lane) {
    const uint64_t address = warp.address(in, 0, in.operand[0], lane);
    char* target;
    if constexpr (space == Space::global) {
      warp.block->check_global_write(warp, lane, address, bytes, false);
      target = reinterpret_cast<char*>(address);
    } else {
      warp.block->check_shared(lane, address, bytes, bytes);
      warp.block->check_write(warp, lane, address, bytes);
      target = warp.block->shared_at(address);
    }
    for (uint32_t i = 0; i < in.count; ++i) {
      const Element element = static_cast<Element>(warp.get<Wide>(in.operand[1 + i], lane));
      std::memcpy(target + i * sizeof(Element), &element, sizeof(Element));
    }
  });
}

template <Space space, class Signed, class Unsigned>
Compute load_of(bool is_signed, int register_bytes) {
  if (register_bytes == 8) return is_signed ? load<space, Signed, uint64_t> : load<space, Unsigned, uint64_t>;
  return is_signed ? load<space, Signed, uint32_t> : load<space, Unsigned, uint32_t>;
}

template <Space space>
Compute load_from(int bytes, bool is_signed, int register_bytes) {
  switch (bytes) {
    case 1: return load_of<space, int8_t, uint8_t>(is_signed, register_bytes);
    case 2: return load_of<space, int16_t, uint16_t>(is_signed, register_bytes);
    case 4: return load_of<space, int32_t, uint32_t>(is_signed, register_bytes);
    default: return load_of<space, int64_t, uint64_t>(is_signed, register_bytes);
  }
}

template <Space space, class Element>
Compute store_of(int register_bytes) {
  return register_bytes == 8 ? store<space, Element, uint64_t> : store<space, Element, uint32_t>;
}

template <Space space>
Compute store_to(int bytes, int register_bytes) {
  switch (bytes) {
    case 1: return store_of<space, uint8_t>(register_bytes);
    case 2: return store_of<space, uint16_t>(register_bytes);
    case 4: return store_of<space, uint32_t>(register_bytes);
    default: return store_of<space, uint64_t>(register_bytes);
  }
}

template <class T, class Sum>
void add_atomically(Warp& warp, const Instruction& in, uint32_t lanes, Sum sum) {
  for_lanes(lanes, [&](int lane) {
    const uint64_t address = warp.address(in, 0, in.operand[1], lane);
    warp.block->check_global_write(warp, lane, address, sizeof(T), true);
    T old;
    std::memcpy(&old, reinterpret_cast<const char*>(address), sizeof(T));
    const T now = sum(old, warp.get<T>(in.operand[2], lane));
    std::memcpy(reinterpret_cast<char*>(address), &now, sizeof(T));
    warp.set<T>(in.operand[0], lane, old);
  });
}

void check_global(int lane, uint64_t address, size_t bytes, size_t align, bool is_write) {
  if (address % align != 0) throw Fault("a misaligned access to global memory at " + hex(address), lane);
  const bool allowed = memory_check != nullptr ? memory_check(address, bytes, is_write) != 0 : address >= 4096;
  if (!allowed) {
    throw Fault(std::string(is_write ? "a write to" : "a read of") + " global memory that is not its own, " +
                    std::to_string(bytes) + " bytes at " + hex(address),
                lane);
  }
}

float flush(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; }

void join(Clock& clock, const Clock& other) {
  for (size_t i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

}  // namespace

Compute find_load(Space space, int bytes, bool is_signed, int register_bytes) {
  switch (space) {
    case Space::global: return load_from<Space::global>(bytes, is_signed, register_bytes);
    case Space::read_only: return load_from<Space::read_only>(bytes, is_signed, register_bytes);
    case Space::shared: return load_from<Space::shared>(bytes, is_signed, register_bytes);
    default: return load_from<Space::param>(bytes, is_signed, register_bytes);
  }
}

Compute find_store(Space space, int bytes, int register_bytes) {
  return space == Space::global ? store_to<Space::global>(bytes, register_bytes)
                                : store_to<Space::shared>(bytes, register_bytes);
}

// To memory, single precision is without subnormal numbers.
void add_atomically_f32(Warp& warp, const Instruction& in, uint32_t lanes) {
  add_atomically<float>(warp, in, lanes, [](float a, float b) { return flush(flush(a) + flush(b)); });
}

void add_atomically_f64(Warp& warp, const Instruction& in, uint32_t lanes) {
  add_atomically<double>(warp, in, lanes, [](double a, double b) { return a + b; });
}

void Block::check_global_read(const Warp& warp, int lane, uint64_t address, uint32_t bytes, uint32_t align,
                              bool read_only) {
  check_global(lane, address, bytes, align, false);
  const uint64_t first = address / Page::bytes;
  if (first == clean_page) return;
  const auto page = pages.find(first);  // no access reaches into the next
  if (page == pages.end()) {
    clean_page = first;
    return;
  }
  for (uint32_t i = 0; i < bytes; ++i) {
    const Page::Byte& byte = page->second.written[address % Page::bytes + i];
    if (byte.block == 0) continue;
    if (read_only) throw Fault("ld.global.nc reads what the kernel writes", lane);
    if (byte.block != number + 1) throw Fault("a race: another block writes what is read", lane);
    if (!happened_before(byte.write, warp.thread(lane))) {
      throw Fault("a race: the read is not ordered after a write by " + name_of(thread_of(byte.write)), lane);
    }
  }
}

void Block::check_global_write(const Warp& warp, int lane, uint64_t address, uint32_t bytes, bool is_atomic) {
  check_global(lane, address, bytes, bytes, true);
  const uint64_t first = address / Page::bytes;
  if (first == clean_page) clean_page = UINT64_MAX;
  Page& page = pages[first];
  for (uint32_t i = 0; i < bytes; ++i) {
    Page::Byte& byte = page.written[address % Page::bytes + i];
    if (byte.block != 0 && !(is_atomic && byte.is_atomic)) {
      if (byte.block != number + 1) throw Fault("a race: another block writes there too", lane);
      if (!happened_before(byte.write, warp.thread(lane))) {
        throw Fault("a race: the write is not ordered after that by " + name_of(thread_of(byte.write)), lane);
      }
    }
    byte.block = byte.block == 0 || byte.block == number + 1 ? number + 1 : Page::several;
    byte.write = now(warp.thread(lane)) & 0x7fffffff;
    byte.is_atomic = is_atomic;
  }
}

void Block::check_shared(int lane, uint64_t address, uint32_t bytes, uint32_t align) const {
  if (address < shared_base || address + bytes > uint64_t{shared_base} + shared_bytes) {
    throw Fault("an access beyond shared memory, " + std::to_string(bytes) + " bytes at " + hex(address), lane);
  }
  if (address % align != 0) throw Fault("a misaligned access to shared memory at " + hex(address), lane);
}

std::string Block::name_of(int thread) const {
  const int first = warp_count * warp_lanes;
  return thread < first ? "thread " + std::to_string(thread)
                        : "the tensor cores of warp " + std::to_string(thread - first);
}

void Block::check_read(const Warp& warp, int lane, int thread, uint64_t address, uint32_t bytes, bool by_tensor_cores) {
  if (address < last_barrier + 8 && address + bytes > first_barrier) {
    for (const auto& [place, barrier] : phase_barriers) {
      (void)barrier;
      if (address < place + 8 && address + bytes > place) throw Fault("a read of a phase barrier's memory", lane);
    }
  }
  const int reader = by_tensor_cores ? tensor_cores(warp.index) : thread;
  const uint32_t now = by_tensor_cores ? event(reader, warp.tensor_time) : this->now(reader);
  Cell* cell = &cells[(address - shared_base) / 2];
  uint32_t checked = 0;
  for (Cell* end = cell + bytes / 2; cell != end; ++cell) {
    if (cell->copying != 0) throw Fault("a read of what an asynchronous copy writes, before it is waited for", lane);
    if (cell->write != checked || checked == 0) {
      if (cell->write == 0) throw Fault("a read of shared memory that nothing has written, at " + hex(address), lane);
      if (!happened_before(cell->write, thread)) {
        throw Fault("a race: the read is not ordered after the write of line " + std::to_string(cell->write_line) +
                        " by " + name_of(thread_of(cell->write)),
                    lane);
      }
      if (by_tensor_cores) {
        // The writer's fence, of which this thread must know. (That the reader has one of its own is not enough here.)
        const int writer = thread_of(cell->write);
        const auto& times = fences[static_cast<size_t>(writer)];
        const auto fence = std::lower_bound(times.begin(), times.end(), time_of(cell->write));
        if (fence == times.end() || !happened_before(event(writer, *fence), thread)) {
          throw Fault("the tensor cores read what line " + std::to_string(cell->write_line) + " has written by " +
                          name_of(writer) + " without fence.proxy.async",
                      lane);
        }
      }
      checked = cell->write;
    }
    cell->read[warp.index % Cell::reader_kinds] = now;
  }
}

void Block::check_write(const Warp& warp, int lane, uint64_t address, uint32_t bytes) {
  if (address < last_barrier + 8 && address + bytes > first_barrier) {
    for (const auto& [place, barrier] : phase_barriers) {
      (void)barrier;
      if (address < place + 8 && address + bytes > place) throw Fault("a write to a phase barrier's memory", lane);
    }
  }
  const int thread = warp.thread(lane);
  const uint32_t now = this->now(thread);
  Cell* cell = &cells[(address - shared_base) / 2];
  for (Cell* end = cell + bytes / 2; cell != end; ++cell) {
    if (cell->copying != 0) throw Fault("a write to where an asynchronous copy writes, before it is waited for", lane);
    if (cell->write != 0 && !happened_before(cell->write, thread)) {
      throw Fault("a race: the write is not ordered after that of line " + std::to_string(cell->write_line) + " by " +
                      name_of(thread_of(cell->write)),
                  lane);
    }
    for (uint32_t& read : cell->read) {
      if (read == 0) continue;
      if (!happened_before(read, thread)) {
        throw Fault("a race: the write is not ordered after a read by " + name_of(thread_of(read)), lane);
      }
      read = 0;
    }
    cell->write = now;
    cell->write_line = warp.line;
  }
}

void Block::advance(int thread) {
  if (++time[static_cast<size_t>(thread)] >= 1u << time_bits) throw Fault("the clock of a thread overflows");
}

void Block::synchronize(const std::vector<int>& threads) {
  Clock all(time.size(), 0);
  const Clock* last = nullptr;
  for (const int thread : threads) {
    const Clock* clock = known[static_cast<size_t>(thread)].get();
    if (clock != last) join(all, *clock);
    last = clock;
  }
  for (const int thread : threads) all[static_cast<size_t>(thread)] = time[static_cast<size_t>(thread)];
  const auto shared_clock = std::make_shared<const Clock>(std::move(all));
  for (const int thread : threads) {
    known[static_cast<size_t>(thread)] = shared_clock;
    advance(thread);
  }
}

void Block::add_knowledge(Clock& clock, int thread) const {
  join(clock, *known[static_cast<size_t>(thread)]);
  uint32_t& own = clock[static_cast<size_t>(thread)];
  own = std::max(own, time[static_cast<size_t>(thread)]);
}

void Block::learn(int warp, uint32_t lanes, const Clock& clock) {
  std::shared_ptr<const Clock> before, after;
  for_lanes(lanes, [&](int lane) {
    auto& own = known[static_cast<size_t>(warp * warp_lanes + lane)];
    if (own != before) {
      before = own;
      Clock joined = *own;
      join(joined, clock);
      after = std::make_shared<const Clock>(std::move(joined));
    }
    own = after;
  });
}

PhaseBarrier& Block::phase_barrier(int lane, int thread, uint64_t address) {
  const auto found = phase_barriers.find(static_cast<uint32_t>(address));
  if (found == phase_barriers.end() || address >> 32 != 0) throw Fault("no phase barrier at " + hex(address), lane);
  const Cell& cell = cells[(address - shared_base) / 2];
  if (!happened_before(cell.write, thread)) {
    throw Fault("a race: a phase barrier is used that " + name_of(thread_of(cell.write)) + " initializes in line " +
                    std::to_string(cell.write_line),
                lane);
  }
  return found->second;
}

void init_mbarrier(Warp& warp, const Instruction& in, uint32_t lanes) {
  for_lanes(lanes, [&](int lane) {
    Block& block = *warp.block;
    const uint64_t address = warp.address(in, 0, in.operand[0], lane);
    block.check_shared(lane, address, 8, 8);
    block.check_write(warp, lane, address, 8);
    PhaseBarrier barrier;
    barrier.expected = barrier.pending = warp.get<uint32_t>(in.operand[1], lane);
    if (barrier.expected == 0 || barrier.expected >= 1u << 20) {
      throw Fault("a phase barrier of no possible count", lane);
    }
    barrier.arrived.assign(block.time.size(), 0);
    barrier.completed = barrier.arrived;
    block.phase_barriers[static_cast<uint32_t>(address)] = barrier;
    block.first_barrier = std::min(block.first_barrier, static_cast<uint32_t>(address));
    block.last_barrier = std::max(block.last_barrier, static_cast<uint32_t>(address));
  });
}

void arrive_mbarrier(Warp& warp, const Instruction& in, uint32_t lanes) {
  for_lanes(lanes, [&](int lane) {
    Block& block = *warp.block;
    const uint64_t address = warp.address(in, 0, in.operand[1], lane);
    PhaseBarrier& barrier = block.phase_barrier(lane, warp.thread(lane), address);
    block.add_knowledge(barrier.arrived, warp.thread(lane));
    block.advance(warp.thread(lane));
    if (--barrier.pending != 0) return;
    barrier.pending = barrier.expected;
    ++barrier.phase;
    barrier.completed = barrier.arrived;
    block.wake(Wait::phase, static_cast<uint32_t>(address));
  });
}

void fence_proxy_async(Warp& warp, const Instruction&, uint32_t lanes) {
  for_lanes(lanes, [&](int lane) {
    const int thread = warp.thread(lane);
    warp.block->fences[static_cast<size_t>(thread)].push_back(warp.block->time[static_cast<size_t>(thread)]);
    warp.block->advance(thread);
  });
}

// A copy is done when it is waited for, as late as can be. Nothing may look at its target before.
void copy_async(Warp& warp, const Instruction& in, uint32_t lanes) {
  constexpr uint32_t whole = 16;  // bytes
  if (in.immediate != whole) throw Fault("cp.async.cg copies 16 bytes");
  for_lanes(lanes, [&](int lane) {
    Block& block = *warp.block;
    const uint64_t target = warp.address(in, 0, in.operand[0], lane), source = warp.address(in, 1, in.operand[1], lane);
    const uint32_t bytes = warp.get<uint32_t>(in.operand[3], lane);
    if (bytes > whole) throw Fault("cp.async copies more bytes than it has room for", lane);
    block.check_shared(lane, target, whole, whole);
    if (source % whole != 0) throw Fault("a misaligned access to global memory at " + hex(source), lane);
    if (bytes != 0) block.check_global_read(warp, lane, source, bytes, 1, false);
    block.check_write(warp, lane, target, whole);
    for (uint32_t i = 0; i < whole / 2; ++i) {
      block.cells[(target - shared_base) / 2 + i].copying = 1 + static_cast<uint32_t>(warp.thread(lane));
    }
    warp.copies.push_back({lane, in.line, static_cast<uint32_t>(target), bytes, source});
  });
}

void wait_for_copies(Warp& warp, const Instruction&, uint32_t lanes) {
  Block& block = *warp.block;
  const auto is_other = [&](const Copy& copy) { return (lanes >> copy.lane & 1) == 0; };
  for (const Copy& copy : warp.copies) {
    if (is_other(copy)) continue;
    char* target = block.shared_at(copy.target);
    std::memset(target, 0, 16);
    if (copy.bytes != 0) std::memcpy(target, reinterpret_cast<const char*>(copy.source), copy.bytes);
    for (uint32_t i = 0; i < 8; ++i) {
      Cell& cell = block.cells[(copy.target - shared_base) / 2 + i];
      cell.copying = 0;
      cell.write = block.now(warp.thread(copy.lane));
      cell.write_line = copy.line;
    }
  }
  warp.copies.erase(std::stable_partition(warp.copies.begin(), warp.copies.end(), is_other), warp.copies.end());
}

void shuffle_bfly(Warp& warp, const Instruction& in, uint32_t lanes) {
  uint32_t values[warp_lanes], inside = 0;
  for_lanes(lanes, [&](int lane) {
    const uint32_t mask = warp.get<uint32_t>(in.operand[4], lane);
    const int clamp = static_cast<int>(mask & 31), segment = static_cast<int>(mask >> 8 & 31);
    int source = lane ^ static_cast<int>(warp.get<uint32_t>(in.operand[3], lane) & 31);
    if (source <= ((lane & segment) | (clamp & ~segment))) inside |= 1u << lane;
    else source = lane;
    if ((lanes >> source & 1) == 0) throw Fault("shfl reads from a thread that takes no part", lane);
    values[lane] = warp.get<uint32_t>(in.operand[2], source);
  });
  for_lanes(lanes, [&](int lane) { warp.set<uint32_t>(in.operand[0], lane, values[lane]); });
  warp.set_predicate(in.operand[1], lanes, inside);
}

void vote_ballot(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t votes = warp.predicate(in.operand[1]) & lanes;
  for_lanes(lanes, [&](int lane) { warp.set<uint32_t>(in.operand[0], lane, votes); });
}

}  // namespace ptx

extern "C" void ptx_set_memory_check(PtxMemoryCheck check) { ptx::memory_check = check; }
