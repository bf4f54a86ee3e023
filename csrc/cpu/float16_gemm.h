// Matrix product of float32 matrices that are rounded to float16, by fused multiply-add of float16 (AVX512-FP16), at twice the
// rate of float32.
//
// Along the depth two elements at a time, since processors broadcast 32 bits as they load them, but not 16: a vector of
// sums is 16 columns, those over even rows of B beside those over odd ones. Sums of up to 128 products are float16, too, the
// sums of those float32: the error is about that of factors rounded to bfloat16 (1.7e-3 standard deviations of the result; with
// sums of 64, 1.2e-3). What exceeds 65504 becomes infinite. A's rows and depth are even.
#pragma once

#include <type_traits>

#include "elements.h"
#include "gemm.h"

namespace dcnzoo::cpu {
namespace {

#ifdef DCNZOO_FLOAT16_FMA

// Sums of products for one or two vectors of 16 columns; a function of its own, as in gemm.h. From pair to pair of its rows B
// goes on by `b_stride` elements.
template <int ROWS, int VECTORS>
__attribute__((noinline)) void half_kernel(int64_t pairs, const Float16* a, int64_t lda, const Float16* b, int64_t b_stride,
                                           float* c, int64_t ldc, Epilogue<float> epilogue, Upcoming upcoming) {
  constexpr int width = Simd<float>::width;
  for (int i = 0; i < ROWS; ++i) {
    for (int j = 0; j < VECTORS * width; j += width) {
      __builtin_prefetch(c + (ROWS + i) * ldc + j, 0, 2);  // of the next call; of long rows the first level holds too few
      if (epilogue.ahead != 0) __builtin_prefetch(c + epilogue.ahead + i * ldc + j, 1, 2);
    }
  }
  __m512h acc[ROWS][VECTORS] = {};
  constexpr int stride = 3, pointers = (ROWS + stride - 1) / stride;
  const Float16* row_a[pointers];
  for (int i = 0; i < pointers; ++i) {
    row_a[i] = a + i * stride * lda;
    __asm__("" : "+r"(row_a[i]));
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < pairs; ++k, b += b_stride) {
    upcoming.fetch();
    __m512h row_b[VECTORS];
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; ++j) row_b[j] = _mm512_loadu_ph(b + 2 * width * j);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      int32_t pair;
      __builtin_memcpy(&pair, row_a[i / stride] + i % stride * lda + 2 * k, sizeof(pair));
      const __m512h element = (__m512h)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
      for (int j = 0; j < VECTORS; ++j) acc[i][j] = _mm512_fmadd_ph(element, row_b[j], acc[i][j]);
    }
  }
  const auto finish = [&](__m256i sums, float* row, int column) {
    Floats value = _mm512_maskz_cvtph_ps(0xffff, sums);
    if (epilogue.accumulate) value += load_vector(row + column);
    if (epilogue.bias != nullptr) value += load_vector(epilogue.bias + column);
    if (epilogue.relu) value = value < Floats{} ? Floats{} : value;  // keeps NaN
    store_vector(row + column, value);
  };
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    // Both sums of a column, those of the first vector in the lower halves of 32 bits, of the second in the upper ones.
    const auto low = (__m512i)_mm512_add_ph(acc[i][0], (__m512h)((Words)acc[i][0] >> 16));
    if constexpr (VECTORS == 1) {
      finish(_mm512_maskz_cvtepi32_epi16(0xffff, low), c + i * ldc, 0);
    } else {
      const auto high = (__m512i)_mm512_add_ph(acc[i][1], (__m512h)((Words)acc[i][1] << 16));
      const __m512i sums = _mm512_mask_mov_epi16(low, 0xaaaaaaaa, high);
      finish((__m256i)__builtin_shufflevector(sums, sums, 0, 1, 2, 3), c + i * ldc, 0);
      finish((__m256i)__builtin_shufflevector(sums, sums, 4, 5, 6, 7), c + i * ldc, width);
    }
  }
}

template <>
struct Multiplier<Float16> {
  using B = Float16;
  using C = float;
  static constexpr int width = Simd<float>::width, panel_vectors = 4;
  static constexpr int64_t depth_multiple = 2;

  // Of the columns of two vectors, even ones are in the first, whose sums `half_kernel` puts into the lower halves of 32 bits,
  // and odd ones in the second.
  static int64_t place(int64_t k, int64_t column, int64_t columns) {
    const int64_t first = column / (2 * width) * (2 * width), vectors = min<int64_t>(2, (columns - first) / width);
    column -= first;
    return k / 2 * 2 * columns + 2 * (first + column % vectors * width + column / vectors) + k % 2;
  }

  template <int ROWS, int VECTORS>
  static DCNZOO_INLINE void run(int64_t depth, const Float16* a, int64_t lda, const Float16* b, float* c, int64_t ldc,
                                const Epilogue<float>& epilogue, const Upcoming& upcoming) {
    constexpr int64_t b_stride = 2 * VECTORS * width;
    const int64_t longest_sum = epilogue.short_sums ? 128 : 256;  // half of even rows and half of odd ones
    Epilogue<float> step = epilogue;
    Upcoming ahead = upcoming;
    for (int64_t begin = 0; begin < depth; begin += longest_sum) {
      const int64_t pairs = (min(begin + longest_sum, depth) - begin) / 2;
      step.relu = epilogue.relu && begin + longest_sum >= depth;
      const auto multiply = [&](auto vectors, int64_t column) {
        if (epilogue.bias != nullptr && begin == 0) step.bias = epilogue.bias + column;
        half_kernel<ROWS, decltype(vectors)::value>(pairs, a + begin, lda, b + begin / 2 * b_stride + 2 * column, b_stride,
                                                    c + column, ldc, step, ahead);
      };
      for (int j = 0; j + 2 <= VECTORS; j += 2) multiply(std::integral_constant<int, 2>{}, j * width);
      if constexpr (VECTORS % 2 == 1) multiply(std::integral_constant<int, 1>{}, (VECTORS - 1) * width);
      ahead.begin += pairs * ahead.stride;
      step.accumulate = true, step.bias = nullptr, step.ahead = 0;
    }
  }
};

#endif

}  // namespace
}  // namespace dcnzoo::cpu
