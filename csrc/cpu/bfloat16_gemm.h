// Matrix product of bfloat16 with float32 sums, by the instruction vdpbf16ps: like gemm.h, but along the
// depth two elements at a time. A's rows have an even depth; B's panels hold, per pair of rows, the pair of
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

template <int ROWS, int VECTORS>
DCNZOO_INLINE void pair_kernel_rows(int64_t rows, int64_t pairs, const Pair* a, int64_t lda, const Pair* b, float* c,
                                    int64_t ldc, const Epilogue<float>& epilogue) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return pair_kernel_rows<ROWS - 1, VECTORS>(rows, pairs, a, lda, b, c, ldc, epilogue);
  }
  pair_kernel<ROWS, VECTORS>(pairs, a, lda, b, c, ldc, epilogue);
}

// The last panel, whose columns do not fill its vectors, goes through a small copy of C and bias.
template <int ROWS, int VECTORS>
void ragged_pair_panel(int64_t rows, int64_t columns, int64_t pairs, const Pair* a, int64_t lda, const Pair* b,
                       float* c, int64_t ldc, Epilogue<float> epilogue) {
  constexpr int padded = VECTORS * Simd<float>::width;
  float tile[ROWS * padded] = {}, bias[padded] = {};
  if (epilogue.accumulate) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) tile[i * padded + j] = c[i * ldc + j];
  }
  if (epilogue.bias != nullptr) {
    for (int64_t j = 0; j < columns; ++j) bias[j] = epilogue.bias[j];
    epilogue.bias = bias;
  }
  pair_kernel_rows<ROWS, VECTORS>(rows, pairs, a, lda, b, tile, padded, epilogue);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) c[i * ldc + j] = tile[i * padded + j];
}

template <int VECTORS>
void pair_panel_product(const Rows& rows, int64_t columns, int64_t pairs, const Pair* a, const Pair* b, float* c,
                        int64_t ldc, const Epilogue<float>& epilogue) {
  constexpr int most = VECTORS == 2 ? Tile<float>::rows2 : Tile<float>::rows1;
  const int64_t steps = ceil_div(rows.length, most);
  for (int64_t run = 0; run < rows.runs; ++run) {
    float* target = c + run * rows.c_stride;
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t count = rows.length * (step + 1) / steps - rows.length * step / steps;
      if (columns == VECTORS * Simd<float>::width) {
        pair_kernel_rows<most, VECTORS>(count, pairs, a, pairs, b, target, ldc, epilogue);
      } else {
        ragged_pair_panel<most, VECTORS>(count, columns, pairs, a, pairs, b, target, ldc, epilogue);
      }
      a += count * pairs;
      target += count * ldc;
    }
  }
}

// Columns [0, columns) of C, as the product for other types in gemm.h. A is dense.
inline void matrix_product(const Rows& rows, int64_t columns, int64_t depth, const BFloat16* a, int64_t,
                           const BFloat16* b, float* c, int64_t ldc, Epilogue<float> epilogue) {
  constexpr int64_t width = Simd<float>::width, panel = Tile<float>::panel;
  const auto* pairs_a = reinterpret_cast<const Pair*>(a);
  const float* bias = epilogue.bias;
  for (int64_t j = 0; j < columns; j += panel) {
    const int64_t count = min(panel, columns - j);
    const auto* panel_b = reinterpret_cast<const Pair*>(b + j * depth);
    epilogue.bias = bias == nullptr ? nullptr : bias + j;
    if (count > width) {
      pair_panel_product<2>(rows, count, depth / 2, pairs_a, panel_b, c + j, ldc, epilogue);
    } else {
      pair_panel_product<1>(rows, count, depth / 2, pairs_a, panel_b, c + j, ldc, epilogue);
    }
  }
}

}  // namespace
}  // namespace dcnzoo::cpu
