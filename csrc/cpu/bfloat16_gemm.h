// Matrix product of bfloat16 with float32 sums, by the instruction vdpbf16ps: like gemm.h, but along the
// depth two elements at a time. A's rows and depth are even; B's panels hold, per pair of rows, the pair of
// the first column, that of the second …
#pragma once

#include <immintrin.h>

#include "elements.h"
#include "gemm.h"

namespace dcnzoo::cpu {
namespace {

#ifdef DCNZOO_BF16_DOT

// Two bfloat16 that follow each other along the depth.
typedef int32_t Pair __attribute__((may_alias));

struct PairProducts {
  using Element = Pair;
  using Sum = float;
  using Factors = __m512bh;

  static DCNZOO_INLINE Factors load(const Pair* source) { return (__m512bh)_mm512_loadu_si512(source); }
  static DCNZOO_INLINE Factors splat(Pair element) { return (__m512bh)_mm512_set1_epi32(element); }
  static DCNZOO_INLINE void multiply(Floats& sum, Factors a, Factors b) { sum = _mm512_dpbf16_ps(sum, a, b); }
};

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
                                const Epilogue<float>& epilogue, const Upcoming& upcoming) {
    micro_kernel<PairProducts, ROWS, VECTORS>(depth / 2, reinterpret_cast<const Pair*>(a), lda / 2,
                                              reinterpret_cast<const Pair*>(b), c, ldc, epilogue, upcoming);
  }
};

#endif

}  // namespace
}  // namespace dcnzoo::cpu
