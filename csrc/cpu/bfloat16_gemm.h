// Matrix product of bfloat16 with float32 sums, by the instruction vdpbf16ps: like gemm.h, but along the
// depth two elements at a time. A's rows and depth are even; B's panels hold, per pair of rows, the pair of
// the first column, that of the second …
#pragma once

#include <immintrin.h>

#include "elements.h"
#include "gemm.h"

namespace dcnzoo::cpu {
namespace {

// Two bfloat16 that follow each other along the depth.
typedef int32_t Pair __attribute__((may_alias));

template <int ROWS, int VECTORS>
__attribute__((noinline)) void pair_kernel(int64_t pairs, const Pair* a, int64_t lda, const Pair* b, float* c,
                                           int64_t ldc, const Epilogue<float>& epilogue) {
  constexpr int width = Simd<float>::width;
  Floats acc[ROWS][VECTORS] = {};
  // As in gemm.h: few row pointers, hidden from the compiler.
  constexpr int stride = 3, pointers = (ROWS + stride - 1) / stride;
  const Pair* row_a[pointers];
  for (int i = 0; i < pointers; ++i) {
    row_a[i] = a + i * stride * lda;
    __asm__("" : "+r"(row_a[i]));
  }
  for (int64_t k = 0; k < pairs; ++k) {
    __m512bh row_b[VECTORS];
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; ++j) row_b[j] = (__m512bh)_mm512_loadu_si512(b + (k * VECTORS + j) * width);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const __m512bh element = (__m512bh)_mm512_set1_epi32(row_a[i / stride][i % stride * lda + k]);
#pragma GCC unroll 2
      for (int j = 0; j < VECTORS; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], element, row_b[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; ++j) {
      float* target = c + i * ldc + j * width;
      Floats value = acc[i][j];
      if (epilogue.accumulate) value += load_vector(target);
      if (epilogue.bias != nullptr) value += load_vector(epilogue.bias + j * width);
      if (epilogue.relu) value = value < Floats{} ? Floats{} : value;  // keeps NaN
      store_vector(target, value);
    }
  }
}

// A is dense.
template <>
struct Multiplier<BFloat16> {
  using B = BFloat16;
  using C = float;
  static constexpr int width = Simd<float>::width, panel_vectors = 2;
  static constexpr int64_t depth_multiple = 2;

  static int64_t place(int64_t k, int64_t column, int64_t columns) {
    return k / 2 * 2 * columns + column * 2 + k % 2;
  }

  template <int ROWS, int VECTORS>
  static DCNZOO_INLINE void run(int64_t depth, const BFloat16* a, int64_t lda, const BFloat16* b, float* c, int64_t ldc,
                                const Epilogue<float>& epilogue, const Upcoming&) {
    pair_kernel<ROWS, VECTORS>(depth / 2, reinterpret_cast<const Pair*>(a), lda / 2, reinterpret_cast<const Pair*>(b), c,
                               ldc, epilogue);
  }
};

}  // namespace
}  // namespace dcnzoo::cpu
