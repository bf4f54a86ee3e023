// The functions of csrc/cuda/device.h for a CPU: the threads of a block are coroutines that take turns at
// barriers, in an order that changes with a seed.
//
// What a GPU would leave undefined ends the program here: two threads that use the same word of shared memory
// without a barrier between them, of whatever kind; shared memory that is read before it is written; a copy that is
// used before it is waited for; an address that is not aligned to its access; a barrier that not all threads reach.
// So do asynchronous products whose operands have not been published to the tensor cores by who wrote them, or are
// overwritten before the products are waited for. Their sums are not-a-number until then.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#define DCNZOO_DEVICE inline
#define DCNZOO_UNROLL
#define DCNZOO_UNROLL_4

namespace dcnzoo::cuda {

namespace emulated {

// Of the block that runs; implemented in emulator.cpp.
int thread();
int64_t block();
int64_t blocks();
void barrier();
void warp_barrier();
uint32_t vote(bool value);
const double* gather(double value);  // what the lanes of the warp give
void check_aligned(const void* address, size_t bytes);
void note_read(const void* address, size_t bytes);
void note_write(void* address, size_t bytes);
void start_copy(void* shared, const void* global, bool valid);
void finish_copies();

// A product of a warp: the last of its threads to come computes it for all.
struct Operands {
  float* c;
  uint32_t a[4], b[2];
};
using Product = void (*)(const Operands*);  // one per lane
void warp_product(const Operands& operands, Product product);

void named_barrier(int number, int threads);
void init_barrier(PhaseBarrier* barrier, int arrivals);
void arrive(const PhaseBarrier* barrier);
void wait_for_phase(const PhaseBarrier* barrier, uint32_t parity);
void publish_to_tensor_cores();
uint32_t shared_address(const void* shared);
void allow_products();
void end_batch();
void wait_for_products(int pending);

// Of a product of four warps, with numbers of 16 bits.
struct AsyncOperands {
  float* sums;
  uint64_t a, b;
};
void multiply_async(const AsyncOperands& operands, float (*unpack)(uint16_t));

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

}  // namespace emulated

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
}

inline float to_float(Half value) { return emulated::half_to_float(value.bits); }
inline float bfloat16_to_float(uint16_t bits) { return bits_float(static_cast<uint32_t>(bits) << 16); }
inline float to_float(Bfloat16 value) { return bfloat16_to_float(value.bits); }
inline void from_float(float value, Half& target) { target = {emulated::float_to_half(value)}; }
inline void from_float(float value, Bfloat16& target) { target = {float_to_bfloat16(value)}; }

inline int thread_index() { return emulated::thread(); }
inline int64_t block_index() { return emulated::block(); }
inline int64_t grid_blocks() { return emulated::blocks(); }
inline void sync_block() { emulated::barrier(); }
inline void sync_warp() { emulated::warp_barrier(); }

inline uint32_t vote(bool value) { return emulated::vote(value); }
template <class T>
T sum_over_warp(T value) {
  const double* values = emulated::gather(static_cast<double>(value));
  T sums[32];
  std::copy(values, values + 32, sums);
  for (int distance = 16; distance > 0; distance /= 2) {
    for (int lane = 0; lane < distance; ++lane) sums[lane] += sums[lane + distance];
  }
  return sums[0];
}

template <class T>
void add_atomically(T* address, T value) {
  emulated::check_aligned(address, sizeof(T));
  *address += value;
}

inline int lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }

template <class T>
T load_scalar(const T* address) {
  emulated::check_aligned(address, sizeof(T));
  return *address;
}

inline Chunk load_global(const void* address) { return load_scalar(static_cast<const Chunk*>(address)); }

inline Chunk load_own(const void* address) { return load_global(address); }

inline void store_global(void* address, const Chunk& value) {
  emulated::check_aligned(address, sizeof(Chunk));
  *static_cast<Chunk*>(address) = value;
}

template <class T>
T load_shared(const T* address) {
  emulated::check_aligned(address, std::min<size_t>(sizeof(T), 16));
  emulated::note_read(address, sizeof(T));
  return *address;
}

template <class T>
void store_shared(T* address, const T& value) {
  emulated::check_aligned(address, std::min<size_t>(sizeof(T), 16));
  emulated::note_write(address, sizeof(T));
  *address = value;
}

inline void copy_async(Chunk* shared, const void* global, bool valid) { emulated::start_copy(shared, global, valid); }
inline void wait_for_copies() { emulated::finish_copies(); }

inline float product(float a, float b) { return a * b; }
inline double product(double a, double b) { return a * b; }
inline float round_down(float value) { return std::floor(value); }
inline double round_down(double value) { return std::floor(value); }
inline float exponential(float value) { return std::exp(value); }
inline double exponential(double value) { return std::exp(value); }

inline const char* steps_from(const char* address, uint32_t count, uint32_t step_bytes) {
  return address + static_cast<uint64_t>(count) * step_bytes;
}

inline Pair unpack_half(uint32_t word) {
  return {emulated::half_to_float(static_cast<uint16_t>(word)), emulated::half_to_float(static_cast<uint16_t>(word >> 16))};
}
inline uint32_t pack_half(float low, float high) {
  return emulated::float_to_half(low) | static_cast<uint32_t>(emulated::float_to_half(high)) << 16;
}
inline uint32_t pack_bfloat16(float low, float high) {
  return float_to_bfloat16(low) | static_cast<uint32_t>(float_to_bfloat16(high)) << 16;
}
// To nearest, ties away from zero.
inline uint32_t round_tf32(float value) {
  const uint32_t bits = float_bits(value);
  return value != value ? bits : (bits + 0x1000) & ~0x1fffu;
}

// The operands of mma.m16n8k16 and m16n8k8 as PTX lays them down: with g = lane / 4 and t = lane % 4, thread
// `lane` has of A the words (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4), of B the words (t, g), (t + 4, g), and
// of C the elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). A word is two elements along K, or one of
// tf32.
template <int ELEMENTS, Pair (*UNPACK)(uint32_t)>
void multiply_fragments(const emulated::Operands* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int word = 0; word < 8; ++word) {
        const Pair a = UNPACK(lanes[row % 8 * 4 + word % 4].a[row / 8 + word / 4 * 2]);
        const Pair b = UNPACK(lanes[column * 4 + word % 4].b[word / 4]);
        sum += a.low * b.low;
        if (ELEMENTS == 2) sum += a.high * b.high;
      }
      lanes[lane].c[i] += sum;
    }
  }
}

// Bits beyond those of TensorFloat-32 do not count.
inline Pair unpack_tf32(uint32_t word) { return {bits_float(word & ~0x1fffu), 0.0f}; }
inline Pair unpack_bfloat16_word(uint32_t word) { return {bits_float(word << 16), bits_float(word & 0xffff0000u)}; }

inline void multiply_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  emulated::warp_product({c, {a0, a1, a2, a3}, {b0, b1}}, multiply_fragments<2, unpack_half>);
}
inline void multiply_bfloat16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                              uint32_t b1) {
  emulated::warp_product({c, {a0, a1, a2, a3}, {b0, b1}}, multiply_fragments<2, unpack_bfloat16_word>);
}
inline void multiply_tf32(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  emulated::warp_product({c, {a0, a1, a2, a3}, {b0, b1}}, multiply_fragments<1, unpack_tf32>);
}

constexpr bool has_wgmma = true;

inline uint32_t shared_address(const void* shared) { return emulated::shared_address(shared); }
inline void init_barrier(PhaseBarrier* barrier, int arrivals) { emulated::init_barrier(barrier, arrivals); }
inline void arrive(PhaseBarrier* barrier) { emulated::arrive(barrier); }
inline void wait_for_phase(PhaseBarrier* barrier, uint32_t parity) { emulated::wait_for_phase(barrier, parity); }
inline void sync_threads(int number, int threads) { emulated::named_barrier(number, threads); }
inline void publish_to_tensor_cores() { emulated::publish_to_tensor_cores(); }

template <int REGISTERS>
void take_registers() {}
template <int REGISTERS>
void give_registers() {}

inline void allow_products() { emulated::allow_products(); }
inline void end_batch() { emulated::end_batch(); }
template <int PENDING>
void wait_for_products() {
  emulated::wait_for_products(PENDING);
}
template <int TILES>
void fix_order(float (&)[TILES][4]) {}
template <int TILES>
void wait_for_products(float (&)[TILES][4]) {
  emulated::wait_for_products(0);
}

inline void multiply_half_async(float (&c)[16][4], uint64_t a, uint64_t b) {
  emulated::multiply_async({c[0], a, b}, emulated::half_to_float);
}
inline void multiply_bfloat16_async(float (&c)[16][4], uint64_t a, uint64_t b) {
  emulated::multiply_async({c[0], a, b}, bfloat16_to_float);
}

}  // namespace dcnzoo::cuda
