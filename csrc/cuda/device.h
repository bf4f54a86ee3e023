// What a block of threads can do, as functions: the kernels are written with these alone.
//
// Compiled by nvcc they are the instructions of the GPU (sm_80 and later). Any other compiler takes them
// from `emulated_device.h`, which the tests provide, so that the very same kernels run on a CPU.
#pragma once

#include "kernels.h"

namespace dcnzoo::cuda {

// 16 bytes: what a thread loads and stores at once.
struct alignas(16) Chunk {
  uint32_t word[4];
};

struct Pair {
  float low, high;
};

// In shared memory.
struct alignas(8) PhaseBarrier {
  uint64_t state;
};

}  // namespace dcnzoo::cuda

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DCNZOO_DEVICE __device__ __forceinline__
#define DCNZOO_UNROLL _Pragma("unroll")
#define DCNZOO_UNROLL_4 _Pragma("unroll 4")

namespace dcnzoo::cuda {

DCNZOO_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DCNZOO_DEVICE int64_t block_index() { return blockIdx.x; }
DCNZOO_DEVICE int64_t grid_blocks() { return gridDim.x; }

DCNZOO_DEVICE void sync_block() { __syncthreads(); }
DCNZOO_DEVICE void sync_warp() { __syncwarp(); }

// Bit i says what thread i of the warp asked for.
DCNZOO_DEVICE uint32_t vote(bool value) { return __ballot_sync(0xffffffffu, value); }
// Index of the lowest bit that is set; there is one.
DCNZOO_DEVICE int lowest_bit(uint64_t bits) { return __ffsll(static_cast<long long>(bits)) - 1; }

// Of what each thread of the warp gives; all of them get it, always the same for the same numbers.
template <class T>
DCNZOO_DEVICE T sum_over_warp(T value) {
  DCNZOO_UNROLL
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// To global memory; the order of additions to an address changes from run to run.
template <class T>
DCNZOO_DEVICE void add_atomically(T* address, T value) {
  atomicAdd(address, value);
}

// Memory that no block writes while the kernel runs.
DCNZOO_DEVICE Chunk load_global(const void* address) {
  const uint4 value = __ldg(static_cast<const uint4*>(address));
  return {{value.x, value.y, value.z, value.w}};
}

template <class T>
DCNZOO_DEVICE T load_scalar(const T* address) {
  return __ldg(address);
}

// Memory that no other thread writes while the kernel runs.
DCNZOO_DEVICE Chunk load_own(const void* address) {
  const uint4 value = *static_cast<const uint4*>(address);
  return {{value.x, value.y, value.z, value.w}};
}

DCNZOO_DEVICE void store_global(void* address, const Chunk& value) {
  *static_cast<uint4*>(address) = make_uint4(value.word[0], value.word[1], value.word[2], value.word[3]);
}

// Shared memory.
template <class T>
DCNZOO_DEVICE T load_shared(const T* address) {
  return *address;
}

template <class T>
DCNZOO_DEVICE void store_shared(T* address, const T& value) {
  *address = value;
}

// Starts a copy of 16 bytes to shared memory; writes zeros, and reads nothing, where `valid` is false.
DCNZOO_DEVICE void copy_async(Chunk* shared, const void* global, bool valid) {
  const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}

// Ends when the copies that this thread has started are done; for other threads to see them takes a barrier.
DCNZOO_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

DCNZOO_DEVICE Pair unpack_half(uint32_t word) {
  const float2 values = __half22float2(*reinterpret_cast<const __half2*>(&word));
  return {values.x, values.y};
}

DCNZOO_DEVICE uint32_t pack_half(float low, float high) {
  const __half2 values = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&values);
}

DCNZOO_DEVICE uint32_t pack_bfloat16(float low, float high) {
  const __nv_bfloat162 values = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&values);
}

using Half = __half;
using Bfloat16 = __nv_bfloat16;

DCNZOO_DEVICE float to_float(Half value) { return __half2float(value); }
DCNZOO_DEVICE float to_float(Bfloat16 value) { return __bfloat162float(value); }
DCNZOO_DEVICE void from_float(float value, Half& target) { target = __float2half_rn(value); }
DCNZOO_DEVICE void from_float(float value, Bfloat16& target) { target = __float2bfloat16_rn(value); }

// A product that is rounded before anything is added to it, as on a CPU.
DCNZOO_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
DCNZOO_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }

DCNZOO_DEVICE float round_down(float value) { return floorf(value); }
DCNZOO_DEVICE double round_down(double value) { return floor(value); }
DCNZOO_DEVICE float exponential(float value) { return expf(value); }
DCNZOO_DEVICE double exponential(double value) { return exp(value); }

DCNZOO_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
DCNZOO_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

// Nearest number that the tensor cores' TensorFloat-32 can hold.
DCNZOO_DEVICE uint32_t round_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// `count` steps on from an address, in one instruction. (A product of 64 bits, or a choice, takes several.)
DCNZOO_DEVICE const char* steps_from(const char* address, uint32_t count, uint32_t step_bytes) {
  uint64_t found;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(found) : "r"(count), "r"(step_bytes), "l"(address));
  return reinterpret_cast<const char*>(found);
}

// Tensor cores, c += a · b for 16 × 8 results. The threads of a warp hold the operands as PTX lays down for
// mma.m16n8k16 (half, bfloat16) and mma.m16n8k8 (tf32).
DCNZOO_DEVICE void multiply_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                 uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

DCNZOO_DEVICE void multiply_bfloat16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                     uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

DCNZOO_DEVICE void multiply_tf32(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                 uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Hopper (sm_90a) from here on, for code that is only compiled where `has_wgmma`.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool has_wgmma = true;
#else
constexpr bool has_wgmma = false;
#endif

[[noreturn]] DCNZOO_DEVICE void stop() {
  __trap();
  __builtin_unreachable();
}

// Where memory lies in the window of shared memory.
DCNZOO_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// A barrier whose phases follow each other: one ends when `arrivals` threads have arrived. Threads see it after the
// next barrier of the block.
DCNZOO_DEVICE void init_barrier(PhaseBarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// What this thread has written is seen by those that wait for the phase.
DCNZOO_DEVICE void arrive(PhaseBarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Waits for the end of the phase of this parity: the first phase has 0, and the one before it, which has ended, 1.
DCNZOO_DEVICE void wait_for_phase(PhaseBarrier* barrier, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (ended == 0);
}

// A barrier of some warps of the block. Number 0 is that of sync_block.
DCNZOO_DEVICE void sync_threads(int number, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// What this thread has stored to shared memory can be read by multiply_async of those that wait for it afterwards.
DCNZOO_DEVICE void publish_to_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Four warps, of which the first has a number that is a multiple of 4, change how many registers their threads have.
template <int REGISTERS>
DCNZOO_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
DCNZOO_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Products of four such warps, c += a · b for 64 × 128 results and 16 elements of the reduction axis, which
// the tensor cores read from shared memory as the descriptors `a` and `b` say (wgmma.m64n128k16, both along K). Each
// warp has 16 of the rows, and its threads have c as they have that of multiply_half. The products happen some time
// between allow_products, which follows all other uses of c, and the return of wait_for_products for their batch.
DCNZOO_DEVICE void allow_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Makes a batch of the products since the last.
DCNZOO_DEVICE void end_batch() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING batches are not done.
template <int PENDING>
DCNZOO_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// The compiler moves no use of c from one side of this to the other.
template <int TILES>
DCNZOO_DEVICE void fix_order(float (&c)[TILES][4]) {
  DCNZOO_UNROLL
  for (int j = 0; j < TILES; ++j) {
    asm volatile("" : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])::"memory");
  }
}

// Waits for all of them; then c may be used.
template <int TILES>
DCNZOO_DEVICE void wait_for_products(float (&c)[TILES][4]) {
  wait_for_products<0>();
  fix_order(c);
}

#define DCNZOO_TILE(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define DCNZOO_4_TILES(j) DCNZOO_TILE(j), DCNZOO_TILE(j + 1), DCNZOO_TILE(j + 2), DCNZOO_TILE(j + 3)
#define DCNZOO_WGMMA(types)                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." types " {"                     \
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                      \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"            \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"            \
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"             \
               "}, %64, %65, 1, 1, 1, 0, 0;"                                                 \
               : DCNZOO_4_TILES(0), DCNZOO_4_TILES(4), DCNZOO_4_TILES(8), DCNZOO_4_TILES(12) \
               : "l"(a), "l"(b))
DCNZOO_DEVICE void multiply_half_async(float (&c)[16][4], uint64_t a, uint64_t b) { DCNZOO_WGMMA("f16.f16"); }
DCNZOO_DEVICE void multiply_bfloat16_async(float (&c)[16][4], uint64_t a, uint64_t b) { DCNZOO_WGMMA("bf16.bf16"); }
#undef DCNZOO_WGMMA
#undef DCNZOO_4_TILES
#undef DCNZOO_TILE

}  // namespace dcnzoo::cuda

#else
#include "emulated_device.h"
#endif

namespace dcnzoo::cuda {

constexpr int warp_threads = 32;

DCNZOO_BOTH constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Division {
  int64_t quotient, rest;
};

// Of numbers that are not negative. They mostly fit in 32 bits, in which a GPU divides several times as fast.
DCNZOO_BOTH Division divide(int64_t a, int64_t b) {
  const bool small = (static_cast<uint64_t>(a | b) >> 32) == 0;
  const int64_t quotient = small ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
  return {quotient, a - quotient * b};
}

template <class T>
DCNZOO_BOTH constexpr T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
DCNZOO_BOTH constexpr T larger(T a, T b) {
  return a < b ? b : a;
}

}  // namespace dcnzoo::cuda
