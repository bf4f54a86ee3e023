// The element types of tensors, and how vectors and single numbers of them are loaded and stored.
//
// Short floats (bfloat16, float16) are computed with as float32: converted as they are loaded, rounded to the
// nearest (ties to even) as they are stored.
#pragma once

#include "simd.h"

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace dcnzoo::cpu {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// What numbers of an element type are computed with.
template <class Element>
struct ComputedAs {
  using type = float;
};
template <>
struct ComputedAs<double> {
  using type = double;
};
template <class Element>
using Computed = typename ComputedAs<Element>::type;

template <class To, class From>
DCNZOO_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// The conversions below serve single numbers (F float, U uint32_t) and vectors of them alike. Short
// floats are in the lower half of U.

template <class F, class U>
DCNZOO_INLINE F widened(U bits, BFloat16) {
  return bit_cast<F>(bits << 16);
}

// Scaling by 2^112 moves the exponent's bias from 15 to 127, of subnormal numbers too.
template <class F, class U>
DCNZOO_INLINE F widened(U bits, Float16) {
  const U scaled = bit_cast<U>(bit_cast<F>((bits & 0x7fff) << 13) * 0x1p112f);
  const U special = (bits & 0x7fff) << 13 | 0x7f800000;  // infinity, not-a-number
  return bit_cast<F>(((bits & 0x7c00) == 0x7c00 ? special : scaled) | (bits & 0x8000) << 16);
}

template <class U, class F>
DCNZOO_INLINE U narrowed(F value, BFloat16) {
  const U bits = bit_cast<U>(value);
  const U rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
  return (bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded;
}

template <class U, class F>
DCNZOO_INLINE U narrowed(F value, Float16) {
  const U bits = bit_cast<U>(value), magnitude = bits & 0x7fffffff;
  const U normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  // The unit of a subnormal number, 2^-24, is that of the last place of 0.5: the sum rounds to it.
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude) + 0.5f) - 0x3f000000;
  U result = magnitude < 0x38800000 ? subnormal : normal;
  result = magnitude >= 0x477ff000 ? result - result + 0x7c00 : result;  // rounds to infinity
  result = magnitude > 0x7f800000 ? result - result + 0x7e00 : result;
  return result | (bits >> 16 & 0x8000);
}

inline float number(float value) { return value; }
inline double number(double value) { return value; }
template <class Element>
inline float number(Element value) {
  return widened<float>(static_cast<uint32_t>(value.bits), value);
}

inline void store_number(float* target, float value) { *target = value; }
inline void store_number(double* target, double value) { *target = value; }
template <class Element>
inline void store_number(Element* target, float value) {
  target->bits = static_cast<uint16_t>(narrowed<uint32_t>(value, Element{}));
}

using Floats = typename Simd<float>::vector;
typedef uint32_t Words __attribute__((vector_size(DCNZOO_VECTOR_BYTES)));
typedef uint16_t HalfWords __attribute__((vector_size(DCNZOO_VECTOR_BYTES / 2)));

// Loads and stores vectors of Simd<Computed<Element>>::width elements.

DCNZOO_INLINE Floats load_vector(const float* source) { return Simd<float>::load(source); }
DCNZOO_INLINE typename Simd<double>::vector load_vector(const double* source) { return Simd<double>::load(source); }
template <class Element>
DCNZOO_INLINE Floats load_vector(const Element* source) {
  HalfWords bits;
  __builtin_memcpy(&bits, source, sizeof(bits));
  return widened<Floats>(__builtin_convertvector(bits, Words), Element{});
}

DCNZOO_INLINE void store_vector(float* target, Floats value) { Simd<float>::store(target, value); }
DCNZOO_INLINE void store_vector(double* target, typename Simd<double>::vector value) { Simd<double>::store(target, value); }
template <class Element>
DCNZOO_INLINE void store_vector(Element* target, Floats value) {
  const HalfWords bits = __builtin_convertvector(narrowed<Words>(value, Element{}), HalfWords);
  __builtin_memcpy(target, &bits, sizeof(bits));
}

// Instructions for these conversions. (GCC 12 warns of its own header at the forms without a mask.)
#if defined(__F16C__) && DCNZOO_VECTOR_BYTES == 32
template <>
DCNZOO_INLINE Floats load_vector(const Float16* source) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}
template <>
DCNZOO_INLINE void store_vector(Float16* target, Floats value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
#endif
#if defined(__AVX512F__) && DCNZOO_VECTOR_BYTES == 64
template <>
DCNZOO_INLINE Floats load_vector(const Float16* source) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}
template <>
DCNZOO_INLINE void store_vector(Float16* target, Floats value) {
  const __m256i bits = _mm512_maskz_cvtps_ph(0xffff, value, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), bits);
}
#endif
#if defined(__AVX512F__) && DCNZOO_VECTOR_BYTES == 64
template <>
DCNZOO_INLINE Floats load_vector(const BFloat16* source) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return (Floats)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16);
}
#endif
#if defined(__AVX512BF16__) && DCNZOO_VECTOR_BYTES == 64
template <>
DCNZOO_INLINE void store_vector(BFloat16* target, Floats value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), (__m256i)_mm512_cvtneps_pbh(value));
}
#endif

// Copies a run of numbers, rounding them to the target's type.
template <class Element>
void store_numbers(Element* target, const Computed<Element>* source, int64_t count) {
  constexpr int width = Simd<Computed<Element>>::width;
  int64_t i = 0;
  for (; i + width <= count; i += width) store_vector(target + i, load_vector(source + i));
  for (; i < count; ++i) store_number(target + i, source[i]);
}

}  // namespace
}  // namespace dcnzoo::cpu
