// PTX as the machine holds it: decoded once, with every operand a place in a warp's registers.
//
// A warp's registers are arrays of one value per lane: of 64 bits, or of 32 bits for all that is smaller; of predicates
// a word with a bit per lane. Immediate operands, addresses of variables and special registers are registers too, which
// are filled before a warp starts.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

struct Warp;
struct Instruction;

constexpr int warp_lanes = 32;
constexpr uint32_t all_lanes = 0xffffffffu;

// Where the window of shared memory begins: low addresses are the GPU's own, and a pointer that is null is none.
constexpr uint32_t shared_base = 1024;

// Computes for the lanes of a mask, none of which has to wait for anything.
using Compute = void (*)(Warp&, const Instruction&, uint32_t lanes);

enum class Kind : uint8_t {
  compute,
  branch,
  finish,
  trap,
  block_barrier,   // bar.sync, barrier.sync
  warp_barrier,    // bar.warp.sync
  phase_wait,      // mbarrier.try_wait
  together,        // for all lanes of a mask at once: shfl, vote, mma, wgmma
  take_registers,  // setmaxnreg.inc
  give_registers   // setmaxnreg.dec
};

struct Instruction {
  Compute compute = nullptr;
  Kind kind = Kind::compute;
  bool guarded = false, guard_negated = false;
  bool uses_accumulators = false;  // of wgmma, as another instruction
  uint8_t count = 1;         // of elements of a vector, or operands that are there
  int8_t mask_operand = -1;  // that says which lanes of a warp act together; all where there is none
  uint8_t first_result = 0, results = 1;  // among the operands
  uint32_t guard = 0;
  uint32_t operand[14] = {};  // offsets of registers in bytes; at 0 is one for what is not wanted
  bool wide_address[2] = {};  // whether addresses among them have 64 bits
  int64_t displacement[2] = {};  // of the addresses among the operands
  int64_t immediate = 0;         // target of a branch, or an operand that must be a number
  int line = 0;
};

struct Constant {
  uint32_t offset;
  int bits;  // 1 for a predicate
  uint64_t value;
};

enum class Special : uint8_t {
  tid_x, tid_y, tid_z,
  ntid_x, ntid_y, ntid_z,
  ctaid_x, ctaid_y, ctaid_z,
  nctaid_x, nctaid_y, nctaid_z,
  laneid
};

struct Param {
  std::string name;
  uint32_t offset, bytes;
};

struct Kernel {
  std::string name;
  uint32_t max_threads = 1024;
  std::vector<Param> params;
  uint32_t param_bytes = 0;
  std::vector<Instruction> code;
  std::vector<std::vector<uint32_t>> accumulators;  // of each wgmma: offsets of its registers
  std::vector<Constant> constants;
  std::map<uint32_t, Special> specials;  // by offset
  uint32_t register_bytes = 0;
  bool is_stub = false;
};

struct Module {
  std::map<std::string, Kernel> kernels;  // by name without hashes
  std::vector<std::string> lines;
  uint32_t static_shared_bytes = 0;

  // Without what it is indented by.
  std::string line(int number) const {
    if (number < 1 || static_cast<size_t>(number) > lines.size()) return "";
    const std::string& text = lines[static_cast<size_t>(number) - 1];
    const size_t begin = text.find_first_not_of(" \t");
    return begin == std::string::npos ? "" : text.substr(begin);
  }
};

// Something that a GPU leaves undefined, or that this machine does not know.
struct Fault : std::runtime_error {
  explicit Fault(const std::string& what, int lane = -1) : std::runtime_error(what), lane(lane) {}
  int lane;
};

// A name in which the hashes of unnamed namespaces are zeros.
std::string without_hashes(const std::string& name);

Module parse(const std::string& text);

// What an opcode does, and the operands that it takes: a letter each, `p` for a predicate, `h`, `w` and `d` for 16, 32
// and 64 bits, `a` for an address, `i` for a number, `_` for a result that is not wanted. The results come first.
struct Operation {
  Compute compute;
  const char* operands;
  uint8_t results;
  Kind kind;
};

// Null where there is none.
const Operation* find_operation(const std::string& opcode);

// Loads and stores: of elements of some bytes from registers of 4 or 8.
enum class Space : uint8_t { global, read_only, shared, param };  // read_only is what a kernel does not write
Compute find_load(Space space, int bytes, bool is_signed, int register_bytes);
Compute find_store(Space space, int bytes, int register_bytes);

// Instructions of tensor_cores.cpp and memory.cpp that the table names.
void multiply_m16n8k16_f16(Warp&, const Instruction&, uint32_t);
void multiply_m16n8k16_bf16(Warp&, const Instruction&, uint32_t);
void multiply_m16n8k8_tf32(Warp&, const Instruction&, uint32_t);
void wgmma_f16(Warp&, const Instruction&, uint32_t);
void wgmma_bf16(Warp&, const Instruction&, uint32_t);
void wgmma_fence(Warp&, const Instruction&, uint32_t);
void wgmma_commit(Warp&, const Instruction&, uint32_t);
void wgmma_wait(Warp&, const Instruction&, uint32_t);
void copy_async(Warp&, const Instruction&, uint32_t);
void wait_for_copies(Warp&, const Instruction&, uint32_t);
void init_mbarrier(Warp&, const Instruction&, uint32_t);
void arrive_mbarrier(Warp&, const Instruction&, uint32_t);
void fence_proxy_async(Warp&, const Instruction&, uint32_t);
void add_atomically_f32(Warp&, const Instruction&, uint32_t);
void add_atomically_f64(Warp&, const Instruction&, uint32_t);
void shuffle_bfly(Warp&, const Instruction&, uint32_t);
void vote_ballot(Warp&, const Instruction&, uint32_t);

// float16 and bfloat16 as bits.
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float value);

}  // namespace ptx
