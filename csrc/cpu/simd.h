// A thin layer over the vector extensions of GCC and Clang: one source for every vector width.
//
// Included by the kernel translation units only; `DCNZOO_VECTOR_BYTES` is the width of the registers
// that the unit is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dcnzoo::cpu {
namespace {  // every translation unit has its own copy, compiled for its own instruction set

#define DCNZOO_INLINE inline __attribute__((always_inline))

template <class T>
struct Simd {
  static constexpr int width = DCNZOO_VECTOR_BYTES / static_cast<int>(sizeof(T));
  typedef T vector __attribute__((vector_size(DCNZOO_VECTOR_BYTES)));

  static DCNZOO_INLINE vector load(const T* source) {
    vector value;
    __builtin_memcpy(&value, source, sizeof(value));
    return value;
  }
  static DCNZOO_INLINE void store(T* target, vector value) { __builtin_memcpy(target, &value, sizeof(value)); }
  static DCNZOO_INLINE vector splat(T value) { return value - vector{}; }
};

template <class T>
DCNZOO_INLINE T sum_of_lanes(typename Simd<T>::vector value) {
  T lanes[Simd<T>::width];
  Simd<T>::store(lanes, value);
  for (int half = Simd<T>::width / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace
}  // namespace dcnzoo::cpu
