// Matrix product of float32 matrices that are rounded to float16, by fused multiply-add of float16 (AVX512-FP16), at twice the
// rate of float32.
//
// Sums of up to 64 products are float16, too, the sums of those float32: the error is about that of factors rounded to
// bfloat16 (1.2e-3 standard deviations of the result; with sums of 128, 1.7e-3). What exceeds 65504 becomes infinite.
#pragma once

#include "elements.h"
#include "gemm.h"

namespace dcnzoo::cpu {
namespace {

#ifdef DCNZOO_FLOAT16_FMA

// A float16 twice, in either half of 32 bits: processors broadcast those as they load them, but not 16 bits.
struct Twice {
  uint32_t bits;
};

DCNZOO_INLINE void store_vector(Twice* target, Floats value) {
  const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, value, _MM_FROUND_TO_NEAREST_INT);
  const Words words = (Words)_mm512_maskz_cvtepu16_epi32(0xffff, halves);
  const Words twice = words | words << 16;
  __builtin_memcpy(target, &twice, sizeof(twice));
}

inline void store_number(Twice* target, float value) {
  target->bits = narrowed<uint32_t>(value, Float16{}) * 0x10001;
}

// One sum of products; a function of its own, as in gemm.h.
template <int ROWS, int VECTORS>
__attribute__((noinline)) void half_kernel(int64_t depth, const Twice* a, int64_t lda, const Float16* b, float* c,
                                           int64_t ldc, Epilogue<float> epilogue, Upcoming upcoming) {
  constexpr int columns = 32, width = Simd<float>::width;  // a vector of sums is two of C
  __m512h acc[ROWS][VECTORS] = {};
  constexpr int stride = 3, pointers = (ROWS + stride - 1) / stride;
  const Twice* row_a[pointers];
  for (int i = 0; i < pointers; ++i) {
    row_a[i] = a + i * stride * lda;
    __asm__("" : "+r"(row_a[i]));
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    upcoming.fetch();
    __m512h row_b[VECTORS];
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; ++j) row_b[j] = _mm512_loadu_ph(b + (k * VECTORS + j) * columns);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const auto bits = static_cast<int32_t>(row_a[i / stride][i % stride * lda + k].bits);
      const __m512h element = (__m512h)_mm512_set1_epi32(bits);
#pragma GCC unroll 2
      for (int j = 0; j < VECTORS; ++j) acc[i][j] = _mm512_fmadd_ph(element, row_b[j], acc[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 2 * VECTORS; ++j) {
      const auto sums = (__m512i)acc[i][j / 2];
      const auto part = j % 2 == 0 ? __builtin_shufflevector(sums, sums, 0, 1, 2, 3)
                                   : __builtin_shufflevector(sums, sums, 4, 5, 6, 7);
      Floats value = _mm512_maskz_cvtph_ps(0xffff, (__m256i)part);
      float* target = c + i * ldc + j * width;
      if (epilogue.accumulate) value += load_vector(target);
      if (epilogue.bias != nullptr) value += load_vector(epilogue.bias + j * width);
      if (epilogue.relu) value = value < Floats{} ? Floats{} : value;  // keeps NaN
      store_vector(target, value);
    }
  }
}

template <>
struct Multiplier<Twice> {
  using B = Float16;
  using C = float;
  static constexpr int width = 32;

  template <int ROWS, int VECTORS>
  static DCNZOO_INLINE void run(int64_t depth, const Twice* a, int64_t lda, const Float16* b, float* c, int64_t ldc,
                                const Epilogue<float>& epilogue, const Upcoming& upcoming) {
    constexpr int64_t longest_sum = 64;
    if (epilogue.ahead != 0) {
      for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < 2 * VECTORS; ++j)
          __builtin_prefetch(c + epilogue.ahead + i * ldc + j * Simd<float>::width, 1, 2);
      }
    }
    Epilogue<float> step = epilogue;
    Upcoming ahead = upcoming;
    step.relu = false;
    for (int64_t begin = 0; begin < depth; begin += longest_sum) {
      const int64_t end = min(begin + longest_sum, depth);
      if (end == depth) step.relu = epilogue.relu;
      half_kernel<ROWS, VECTORS>(end - begin, a + begin, lda, b + begin * VECTORS * width, c, ldc, step, ahead);
      step.accumulate = true, step.bias = nullptr;
      ahead.begin += longest_sum * ahead.stride;
    }
  }
};

#endif

}  // namespace
}  // namespace dcnzoo::cpu
