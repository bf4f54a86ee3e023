// Runs kernels: the order of warps, branches, and whatever threads wait for.
//
// Blocks run one after the other, in an order that the seed decides. Of a block's warps one runs for some instructions,
// then another, as the seed decides too. Lanes of a warp that take different branches are groups, of which mostly the
// one that is behind runs, so that they meet again, and sometimes another.
//
// What this does not show: a GPU's memory is not in order, here threads that need an order and have none are refused
// instead. Lanes go apart at branches alone, and at waits. What a warp does together its lanes must do in one place of
// the code. Registers that nothing has written hold numbers that nothing is right with, but may be read. Products and
// powers of two are more exact than a GPU's. Of a launch's resources it knows threads and shared memory, of all targets
// the same.
#include "machine.h"

#include <algorithm>
#include <cstdio>

#include "warp.h"

struct PtxModule {
  ptx::Module module;
};

namespace ptx {
namespace {

constexpr uint64_t most_instructions = 50'000'000;  // of a warp
constexpr uint32_t most_shared_bytes = 232448, all_registers = 65536;

std::string describe(const Module& module, int line) {
  return "line " + std::to_string(line) + ", " + module.line(line).substr(0, 160);
}

class Run {
 public:
  Run(const Module& module, const Kernel& kernel, const uint32_t grid[3], const uint32_t size[3],
      uint32_t dynamic_bytes, void* const* params, uint64_t seed)
      : module_(module), kernel_(kernel), random_(seed) {
    const uint64_t threads = uint64_t{size[0]} * size[1] * size[2];
    if (threads == 0 || threads > kernel.max_threads) {
      throw Fault("a block of " + std::to_string(threads) + " threads, where the kernel allows " +
                  std::to_string(kernel.max_threads));
    }
    const uint64_t shared_bytes = uint64_t{module.static_shared_bytes} + dynamic_bytes;
    if (shared_bytes > most_shared_bytes) throw Fault("more shared memory than a block can have");
    for (int i = 0; i < 3; ++i) {
      if (grid[i] == 0) throw Fault("a grid without blocks");
      block_.grid[i] = grid[i], block_.size[i] = size[i];
    }
    block_.threads = static_cast<int>(threads);
    block_.warp_count = (block_.threads + warp_lanes - 1) / warp_lanes;
    block_.shared_bytes = static_cast<uint32_t>(shared_bytes);
    params_.resize(kernel.param_bytes);
    for (size_t i = 0; i < kernel.params.size(); ++i) {
      std::memcpy(params_.data() + kernel.params[i].offset, params[i], kernel.params[i].bytes);
    }
    block_.params = params_.data();
    block_.random.seed(random_());
    make_registers();
  }

  void run() {
    const uint64_t blocks = uint64_t{block_.grid[0]} * block_.grid[1] * block_.grid[2];
    // A step without common factors with the number of blocks takes in each of them.
    uint64_t step = random_() % blocks | 1;
    while (gcd(step, blocks) != 1) step += 2;
    uint64_t index = random_() % blocks;
    for (uint64_t i = 0; i < blocks; ++i, index = (index + step) % blocks) run_block(index);
  }

 private:
  static uint64_t gcd(uint64_t a, uint64_t b) { return b == 0 ? a : gcd(b, a % b); }

  [[noreturn]] void fail(const Warp& warp, const Fault& fault) const {
    std::string where = "block " + std::to_string(block_.index[0]);
    for (int i = 1; i < 3; ++i) {
      if (block_.grid[1] > 1 || block_.grid[2] > 1) where += "," + std::to_string(block_.index[i]);
    }
    where += fault.lane >= 0 ? ", thread " + std::to_string(warp.thread(fault.lane))
                             : ", warp " + std::to_string(warp.index);
    throw Fault(std::string(fault.what()) + " (" + describe(module_, warp.line) + ", " + where + ")");
  }

  // Those of a warp before it starts. What nothing has written is not a number and no place in memory.
  void make_registers() {
    constexpr uint32_t junk = 0xffc0bad0;
    const size_t stride = (kernel_.register_bytes + 63) / 64 * 64 + 64;  // not all warps in the same part of the cache
    fresh_.resize(stride);
    for (size_t i = 0; i < stride; i += 4) std::memcpy(fresh_.data() + i, &junk, 4);
    Warp warp{};
    warp.registers = fresh_.data();
    for (const Constant& constant : kernel_.constants) {
      if (constant.bits == 1) warp.set_predicate(constant.offset, all_lanes, static_cast<uint32_t>(constant.value));
      for (int lane = 0; lane < warp_lanes && constant.bits != 1; ++lane) {
        constant.bits == 64 ? warp.set<uint64_t>(constant.offset, lane, constant.value)
                            : warp.set<uint32_t>(constant.offset, lane, static_cast<uint32_t>(constant.value));
      }
    }
    registers_.resize(stride * static_cast<size_t>(block_.warp_count) + 64);
  }

  void set_specials(Warp& warp) {
    for (const auto& [offset, special] : kernel_.specials) {
      for (int lane = 0; lane < warp_lanes; ++lane) {
        const uint32_t thread = static_cast<uint32_t>(warp.thread(lane));
        const uint32_t* size = block_.size;
        uint32_t value = 0;
        switch (special) {
          case Special::tid_x: value = thread % size[0]; break;
          case Special::tid_y: value = thread / size[0] % size[1]; break;
          case Special::tid_z: value = thread / size[0] / size[1]; break;
          case Special::ntid_x: value = size[0]; break;
          case Special::ntid_y: value = size[1]; break;
          case Special::ntid_z: value = size[2]; break;
          case Special::ctaid_x: value = block_.index[0]; break;
          case Special::ctaid_y: value = block_.index[1]; break;
          case Special::ctaid_z: value = block_.index[2]; break;
          case Special::nctaid_x: value = block_.grid[0]; break;
          case Special::nctaid_y: value = block_.grid[1]; break;
          case Special::nctaid_z: value = block_.grid[2]; break;
          case Special::laneid: value = static_cast<uint32_t>(lane); break;
        }
        warp.set<uint32_t>(offset, lane, value);
      }
    }
  }

  void run_block(uint64_t index) {
    block_.number = static_cast<uint32_t>(index);
    block_.index[0] = static_cast<uint32_t>(index % block_.grid[0]);
    block_.index[1] = static_cast<uint32_t>(index / block_.grid[0] % block_.grid[1]);
    block_.index[2] = static_cast<uint32_t>(index / block_.grid[0] / block_.grid[1]);
    block_.shared.assign(block_.shared_bytes, static_cast<char>(0xdb));
    block_.cells.assign(block_.shared_bytes / 2, Cell());
    block_.phase_barriers.clear();
    block_.first_barrier = UINT32_MAX, block_.last_barrier = 0;
    for (Barrier& barrier : block_.barriers) barrier = Barrier();
    const size_t clocks = static_cast<size_t>(block_.warp_count) * (warp_lanes + 1);
    block_.time.assign(clocks, 1);
    block_.known.assign(clocks, std::make_shared<const Clock>(clocks, 0));
    block_.fences.assign(clocks, {});
    block_.warps.assign(static_cast<size_t>(block_.warp_count), Warp{});
    block_.warp_groups.assign(static_cast<size_t>(block_.warp_count + 3) / 4, WarpGroup());
    const uint32_t threads = static_cast<uint32_t>(block_.warp_count * warp_lanes);
    const uint32_t registers = std::min<uint32_t>(all_registers / threads, 255) & ~7u;
    block_.free_registers = 0;  // a block gets no more than it starts with
    char* registers_place = registers_.data() + (64 - reinterpret_cast<uintptr_t>(registers_.data()) % 64) % 64;
    for (int i = 0; i < block_.warp_count; ++i) {
      Warp& warp = block_.warps[static_cast<size_t>(i)];
      warp.block = &block_, warp.kernel = &kernel_, warp.index = i;
      warp.registers = registers_place + static_cast<size_t>(i) * fresh_.size();
      std::memcpy(warp.registers, fresh_.data(), fresh_.size());
      const int lanes = std::min(warp_lanes, block_.threads - warp.index * warp_lanes);
      warp.live = lanes == warp_lanes ? all_lanes : (1u << lanes) - 1;
      warp.groups = {Group{0, warp.live}};
      warp.register_count = registers;
      set_specials(warp);
    }
    std::vector<Warp*> ready;
    while (true) {
      ready.clear();
      bool any = false;
      for (Warp& warp : block_.warps) {
        any = any || warp.live != 0;
        const auto can_run = [](const Group& group) { return group.wait == Wait::none; };
        if (std::any_of(warp.groups.begin(), warp.groups.end(), can_run)) ready.push_back(&warp);
      }
      if (!any) return;
      if (ready.empty()) deadlock();
      Warp& warp = *ready[block_.random() % ready.size()];
      try {
        run_warp(warp, uint64_t{1} << block_.random() % 12);
      } catch (const Fault& fault) {
        fail(warp, fault);
      }
    }
  }

  [[noreturn]] void deadlock() const {
    std::string what = "nothing can run any more in block " + std::to_string(block_.index[0]) + ":";
    int named = 0;
    for (const Warp& warp : block_.warps) {
      for (const Group& group : warp.groups) {
        if (++named > 6) break;
        char lanes[16];
        std::snprintf(lanes, sizeof(lanes), "%08x", group.lanes);
        what += " warp " + std::to_string(warp.index) + ", threads " + lanes + ", waits in " +
                describe(module_, kernel_.code[static_cast<size_t>(group.pc)].line) + ";";
      }
    }
    throw Fault(what);
  }

  // One group of lanes, until another has to run.
  void run_warp(Warp& warp, uint64_t quantum) {
    while (quantum > 0) {
      std::vector<Group>& groups = warp.groups;
      size_t chosen = groups.size();
      size_t candidates = 0;
      for (size_t i = 0; i < groups.size(); ++i) {
        if (groups[i].wait != Wait::none) continue;
        ++candidates;
        if (chosen == groups.size() || groups[i].pc < groups[chosen].pc) chosen = i;
      }
      if (candidates == 0) return;
      if (candidates > 1 && block_.chance(8)) {
        do chosen = block_.random() % groups.size();
        while (groups[chosen].wait != Wait::none);
      }
      Group group = groups[chosen];
      groups.erase(groups.begin() + static_cast<long>(chosen));
      // Those that are at the same instruction go on together.
      int limit = INT32_MAX;
      for (size_t i = groups.size(); i-- > 0;) {
        if (groups[i].pc == group.pc) {
          group.lanes |= groups[i].lanes;
          groups.erase(groups.begin() + static_cast<long>(i));
        } else if (groups[i].pc > group.pc) {
          limit = std::min(limit, groups[i].pc);
        }
      }
      run_group(warp, group, limit, quantum);
      if (group.lanes != 0) groups.push_back(group);
    }
  }

  void run_group(Warp& warp, Group& group, int limit, uint64_t& quantum) {
    const Instruction* code = kernel_.code.data();
    const bool alone = warp.groups.empty();
    do {
      const Instruction& in = code[group.pc];
      warp.line = in.line;
      if (++warp.executed > most_instructions) throw Fault("a warp runs for too long");
      --quantum;
      uint32_t lanes = group.lanes;
      if (in.guarded) lanes &= in.guard_negated ? ~warp.predicate(in.guard) : warp.predicate(in.guard);
      if (in.kind == Kind::compute) {
        if (in.uses_accumulators) check_accumulators(warp, in);
        if (lanes != 0) in.compute(warp, in, lanes);
        ++group.pc;
      } else if (in.kind == Kind::branch) {
        const int target = static_cast<int>(in.immediate);
        if (lanes == group.lanes) {
          group.pc = target;
        } else if (lanes != 0) {
          warp.groups.push_back(Group{target, lanes});
          group.lanes &= ~lanes;
          ++group.pc;
          return;
        } else {
          ++group.pc;
        }
        if (!alone) return;
      } else if (lanes == 0) {
        ++group.pc;
      } else if (in.kind == Kind::finish || in.kind == Kind::trap) {
        if (in.kind == Kind::trap) throw Fault("a trap", __builtin_ctz(lanes));
        finish(warp, lanes);
        group.lanes &= ~lanes;
        ++group.pc;
        return;
      } else {
        if (!step(warp, group, in, lanes)) return;
        if (group.lanes == 0) return;
      }
    } while (quantum > 0 && group.pc != limit);
  }

  void finish(Warp& warp, uint32_t lanes) {
    warp.live &= ~lanes;
    if (!warp.products.empty()) throw Fault("a warp ends before its products are waited for");
    for (Group& group : warp.groups) {
      if (group.wait == Wait::lanes) group.wait = Wait::none;
    }
    if (warp.live == 0) {
      for (uint32_t i = 0; i < 16; ++i) release(i);
    }
  }

  // Instructions that may have to wait. False where the group does.
  bool step(Warp& warp, Group& group, const Instruction& in, uint32_t lanes) {
    if (in.kind == Kind::phase_wait) return wait_for_phase(warp, group, in, lanes);
    if (lanes != group.lanes) throw Fault("threads are kept by a predicate from what a warp does together");
    uint32_t wanted = in.kind == Kind::block_barrier ? warp.live : all_lanes;
    if (in.mask_operand >= 0) {
      const uint32_t place = in.operand[in.mask_operand];
      wanted = warp.get<uint32_t>(place, __builtin_ctz(lanes));
      for_lanes(lanes, [&](int lane) {
        if (warp.get<uint32_t>(place, lane) != wanted) throw Fault("threads name different members of a warp", lane);
        if ((wanted >> lane & 1) == 0) throw Fault("a thread is not among those that it names", lane);
      });
    }
    const uint32_t missing = wanted & ~warp.live;
    if (missing != 0) {
      throw Fault("threads that have ended are missing from what a warp does together", __builtin_ctz(missing));
    }
    if ((wanted & ~lanes) != 0) {
      group.wait = Wait::lanes;
      return false;
    }
    switch (in.kind) {
      case Kind::block_barrier: return arrive(warp, group, in);
      case Kind::take_registers:
      case Kind::give_registers: return change_registers(warp, group, in);
      case Kind::warp_barrier: {
        std::vector<int> threads;
        for_lanes(lanes, [&](int lane) { threads.push_back(warp.thread(lane)); });
        block_.synchronize(threads);
        break;
      }
      default:
        if (in.uses_accumulators) check_accumulators(warp, in);
        in.compute(warp, in, lanes);
    }
    ++group.pc;
    return true;
  }

  // Whole warps arrive.
  bool arrive(Warp& warp, Group& group, const Instruction& in) {
    const int lane = __builtin_ctz(group.lanes);
    const bool counts = in.count > 1;
    const uint32_t number = warp.get<uint32_t>(in.operand[0], lane);
    const uint32_t expected = counts ? warp.get<uint32_t>(in.operand[1], lane) : 0;
    for_lanes(group.lanes, [&](int other) {
      const bool same = warp.get<uint32_t>(in.operand[0], other) == number &&
                        (!counts || warp.get<uint32_t>(in.operand[1], other) == expected);
      if (!same) throw Fault("threads of a warp are at different barriers", other);
    });
    if (number >= 16) throw Fault("there is no such barrier", lane);
    if (counts && (expected == 0 || expected % warp_lanes != 0)) {
      throw Fault("a barrier of a number of threads that is no multiple of 32", lane);
    }
    Barrier& barrier = block_.barriers[number];
    if (barrier.warps != 0 && barrier.expected != expected) {
      throw Fault("a barrier of two different numbers of threads", lane);
    }
    barrier.expected = expected;
    barrier.warps |= 1u << warp.index;
    group.wait = Wait::barrier;
    // This group is not among the warp's while it runs.
    warp.groups.push_back(group);
    group.lanes = 0;
    release(number);
    return false;
  }

  void release(uint32_t number) {
    Barrier& barrier = block_.barriers[number];
    if (barrier.warps == 0) return;
    uint32_t arrived = 0, live = 0;
    for (const Warp& warp : block_.warps) {
      if (warp.live != 0) live |= 1u << warp.index;
      if (barrier.warps >> warp.index & 1) arrived += warp_lanes;
    }
    if (barrier.expected == 0 ? (live & ~barrier.warps) != 0 : arrived < barrier.expected) return;
    if (barrier.expected != 0 && arrived > barrier.expected) throw Fault("more threads at a barrier than it expects");
    std::vector<int> threads;
    for (Warp& warp : block_.warps) {
      if ((barrier.warps >> warp.index & 1) == 0) continue;
      for (Group& group : warp.groups) {
        if (group.wait != Wait::barrier) continue;
        group.wait = Wait::none;
        ++group.pc;
        for_lanes(group.lanes, [&](int lane) { threads.push_back(warp.thread(lane)); });
      }
    }
    barrier = Barrier();
    block_.synchronize(threads);
  }

  // A wait may end without the phase, and of the threads of a warp each may end it at another time.
  bool wait_for_phase(Warp& warp, Group& group, const Instruction& in, uint32_t lanes) {
    uint32_t ended = 0;
    bool same = true;
    uint64_t last = 0;
    for_lanes(lanes, [&](int lane) {
      const uint64_t address = warp.address(in, 0, in.operand[1], lane);
      const uint32_t parity = warp.get<uint32_t>(in.operand[2], lane);
      if (parity > 1) throw Fault("a parity is 0 or 1", lane);
      const PhaseBarrier& barrier = block_.phase_barrier(lane, warp.thread(lane), address);
      if ((barrier.phase & 1) != parity) ended |= 1u << lane;
      same = same && (last == 0 || last == address);
      last = address;
    });
    if (ended == 0 && !block_.chance(4)) {
      group.wait = Wait::phase, group.barrier = same ? static_cast<uint32_t>(last) : 0;
      return false;
    }
    if (block_.chance(8)) ended &= static_cast<uint32_t>(block_.random());
    for (uint32_t left = ended; left != 0;) {
      const uint64_t address = warp.address(in, 0, in.operand[1], __builtin_ctz(left));
      uint32_t alike = 0;
      for_lanes(left, [&](int lane) {
        if (warp.address(in, 0, in.operand[1], lane) == address) alike |= 1u << lane;
      });
      block_.learn(warp.index, alike, block_.phase_barriers.at(static_cast<uint32_t>(address)).completed);
      left &= ~alike;
    }
    warp.set_predicate(in.operand[0], lanes, ended);
    ++group.pc;
    return true;
  }

  bool change_registers(Warp& warp, Group& group, const Instruction& in) {
    const uint32_t wanted = static_cast<uint32_t>(in.immediate);
    if (wanted < 24 || wanted > 256 || wanted % 8 != 0) throw Fault("setmaxnreg takes a multiple of 8 from 24 to 256");
    const bool more = in.kind == Kind::take_registers;
    if (more ? wanted < warp.register_count : wanted > warp.register_count) {
      throw Fault("setmaxnreg changes registers in the other direction: there are " +
                  std::to_string(warp.register_count));
    }
    const size_t index = static_cast<size_t>(warp.index) / 4;
    if ((index + 1) * 4 > block_.warps.size()) throw Fault("setmaxnreg needs four warps");
    WarpGroup& warps = block_.warp_groups[index];
    if (more && (wanted - warp.register_count) * warp_lanes > block_.free_registers) {
      group.wait = Wait::registers;
      return false;
    }
    if (warp.changes == warps.changes.size()) warps.changes.push_back(&in);
    if (warps.changes[warp.changes++] != &in) throw Fault("the four warps of a group take different setmaxnreg");
    block_.free_registers += (warp.register_count - wanted) * warp_lanes;
    warp.register_count = wanted;
    if (!more) block_.wake(Wait::registers, 0);
    ++group.pc;
    return true;
  }

  // Those of a product under way are nobody else's, and a fence comes between a write to them and a product.
  void check_accumulators(Warp& warp, const Instruction& in) {
    for (const uint32_t place : in.operand) {
      for (const Product& product : warp.products) {
        const auto& used = *product.accumulators;
        if (std::find(used.begin(), used.end(), place) != used.end()) {
          throw Fault("an accumulator is used while the product of line " +
                      std::to_string(product.instruction->line) + " is under way");
        }
      }
    }
    for (int i = in.first_result; i < in.first_result + in.results; ++i) {
      const auto begin = warp.unfenced.begin(), end = warp.unfenced.end();
      if (std::find(begin, end, in.operand[i]) == end) warp.unfenced.push_back(in.operand[i]);
    }
  }

  const Module& module_;
  const Kernel& kernel_;
  std::mt19937_64 random_;
  std::vector<char> params_, fresh_, registers_;
  Block block_;
};

void report(const char* what, char* error, size_t error_size) {
  if (error != nullptr && error_size > 0) std::snprintf(error, error_size, "%s", what);
}

const Kernel* find(const PtxModule* module, const char* name) {
  const auto found = module->module.kernels.find(without_hashes(name));
  return found == module->module.kernels.end() ? nullptr : &found->second;
}

}  // namespace

void Block::wake(Wait wait, uint32_t barrier) {
  for (Warp& warp : warps) {
    for (Group& group : warp.groups) {
      const bool other = wait == Wait::phase && group.barrier != barrier && group.barrier != 0;
      if (group.wait == wait && !other) group.wait = Wait::none;
    }
  }
}

}  // namespace ptx

extern "C" {

PtxModule* ptx_load(const char* text, char* error, size_t error_size) {
  try {
    return new PtxModule{ptx::parse(text)};
  } catch (const std::exception& exception) {
    ptx::report(exception.what(), error, error_size);
    return nullptr;
  }
}

void ptx_unload(PtxModule* module) { delete module; }

int ptx_find(const PtxModule* module, const char* name, PtxKernel* kernel) {
  const ptx::Kernel* found = ptx::find(module, name);
  if (found == nullptr) return -1;
  *kernel = {found->max_threads, module->module.static_shared_bytes, static_cast<uint32_t>(found->params.size()),
             found->is_stub};
  return 0;
}

int ptx_launch(const PtxModule* module, const char* name, const uint32_t grid[3], const uint32_t block[3],
               uint32_t dynamic_shared_bytes, void* const* params, uint64_t seed, char* error, size_t error_size) {
  try {
    const ptx::Kernel* kernel = ptx::find(module, name);
    if (kernel == nullptr) throw ptx::Fault("there is no kernel of this name");
    ptx::Run(module->module, *kernel, grid, block, dynamic_shared_bytes, params, seed).run();
    return 0;
  } catch (const std::exception& exception) {
    ptx::report(exception.what(), error, error_size);
    return -1;
  }
}

}  // extern "C"
