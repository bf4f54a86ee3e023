// The number formats of the kernels: how they are stored, and how 16 bytes of them are interpolated.
#pragma once

#include "device.h"

namespace dcnzoo::cuda {

// The two elements of a 32-bit word of half, or of bfloat16.
DCNZOO_DEVICE Pair unpack_bfloat16(uint32_t word) { return {bits_float(word << 16), bits_float(word & 0xffff0000u)}; }

// What the tensor cores multiply. `elements` is the number per 32-bit word.
struct HalfFactors {
  using Storage = Half;
  static constexpr int elements = 2;

  static DCNZOO_DEVICE Pair unpack(uint32_t word) { return unpack_half(word); }
  static DCNZOO_DEVICE uint32_t pack(Pair value) { return pack_half(value.low, value.high); }
  // A weight's word as it lies in memory, as a factor.
  static DCNZOO_DEVICE uint32_t factor(uint32_t word) { return word; }
  static DCNZOO_DEVICE void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                     uint32_t b1) {
    multiply_half(c, a0, a1, a2, a3, b0, b1);
  }
  template <int TILES>
  static DCNZOO_DEVICE void multiply_async(float (&c)[TILES][4], uint64_t a, uint64_t b) {
    multiply_half_async(c, a, b);
  }
};

struct Bfloat16Factors {
  using Storage = Bfloat16;
  static constexpr int elements = 2;

  static DCNZOO_DEVICE Pair unpack(uint32_t word) { return unpack_bfloat16(word); }
  static DCNZOO_DEVICE uint32_t pack(Pair value) { return pack_bfloat16(value.low, value.high); }
  static DCNZOO_DEVICE uint32_t factor(uint32_t word) { return word; }
  static DCNZOO_DEVICE void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                     uint32_t b1) {
    multiply_bfloat16(c, a0, a1, a2, a3, b0, b1);
  }
  template <int TILES>
  static DCNZOO_DEVICE void multiply_async(float (&c)[TILES][4], uint64_t a, uint64_t b) {
    multiply_bfloat16_async(c, a, b);
  }
};

// float32 in memory, TensorFloat-32 in the product.
struct Tf32Factors {
  using Storage = float;
  static constexpr int elements = 1;

  static DCNZOO_DEVICE Pair unpack(uint32_t word) { return {bits_float(word), 0.0f}; }
  static DCNZOO_DEVICE uint32_t pack(Pair value) { return round_tf32(value.low); }
  static DCNZOO_DEVICE uint32_t factor(uint32_t word) { return round_tf32(bits_float(word)); }
  static DCNZOO_DEVICE void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                     uint32_t b1) {
    multiply_tf32(c, a0, a1, a2, a3, b0, b1);
  }
};

// ReLU, which keeps NaN.
template <class T>
DCNZOO_DEVICE T not_negative(T value) {
  return value < 0 ? T{0} : value;
}

DCNZOO_DEVICE float to_float(float value) { return value; }
DCNZOO_DEVICE void from_float(float value, float& target) { target = value; }

// An element of a tensor whose type is known at run time only.
template <class T>
DCNZOO_DEVICE T read_element(const void* data, Element element, int64_t index) {
  switch (element) {
    case Element::float16: return static_cast<T>(to_float(load_scalar(static_cast<const Half*>(data) + index)));
    case Element::bfloat16: return static_cast<T>(to_float(load_scalar(static_cast<const Bfloat16*>(data) + index)));
    case Element::float32: return static_cast<T>(load_scalar(static_cast<const float*>(data) + index));
    default: return static_cast<T>(load_scalar(static_cast<const double*>(data) + index));
  }
}

// The same for writing.
template <class T>
DCNZOO_DEVICE void write_element(void* data, Element element, int64_t index, T value) {
  switch (element) {
    case Element::float16: return from_float(static_cast<float>(value), static_cast<Half*>(data)[index]);
    case Element::bfloat16: return from_float(static_cast<float>(value), static_cast<Bfloat16*>(data)[index]);
    case Element::float32: return from_float(static_cast<float>(value), static_cast<float*>(data)[index]);
    default: static_cast<double*>(data)[index] = static_cast<double>(value);
  }
}

// The type that sums of products of T are kept in, and the coordinates too.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

template <class T>
DCNZOO_DEVICE typename Accumulator<T>::type widen(T value) {
  return to_float(value);
}
template <>
DCNZOO_DEVICE double widen(double value) {
  return value;
}

template <class T>
DCNZOO_DEVICE T narrow(typename Accumulator<T>::type value) {
  T target;
  from_float(value, target);
  return target;
}
template <>
DCNZOO_DEVICE double narrow<double>(double value) {
  return value;
}

// How a thread reads and writes channels: 16 bytes of them at once,
template <class FACTORS>
struct ChunkAccess {
  using Storage = typename FACTORS::Storage;
  static constexpr int elements = 4 * FACTORS::elements;

  static DCNZOO_DEVICE void load(const Storage* address, float (&values)[elements]) {
    const Chunk chunk = load_global(address);
    DCNZOO_UNROLL
    for (int w = 0; w < 4; ++w) {
      const Pair pair = FACTORS::unpack(chunk.word[w]);
      values[w * FACTORS::elements] = pair.low;
      if constexpr (FACTORS::elements == 2) values[2 * w + 1] = pair.high;
    }
  }

  static DCNZOO_DEVICE void store(Storage* address, const float (&values)[elements]) {
    Chunk chunk;
    DCNZOO_UNROLL
    for (int w = 0; w < 4; ++w) {
      if constexpr (FACTORS::elements == 2) {
        chunk.word[w] = FACTORS::pack({values[2 * w], values[2 * w + 1]});
      } else {
        chunk.word[w] = float_bits(values[w]);  // not rounded to what the tensor cores multiply
      }
    }
    store_global(address, chunk);
  }
};

// or one.
template <class STORAGE>
struct ScalarAccess {
  using Storage = STORAGE;
  using T = typename Accumulator<STORAGE>::type;
  static constexpr int elements = 1;

  static DCNZOO_DEVICE void load(const Storage* address, T (&values)[1]) { values[0] = widen(load_scalar(address)); }
  static DCNZOO_DEVICE void store(Storage* address, const T (&values)[1]) { *address = narrow<Storage>(values[0]); }
};

}  // namespace dcnzoo::cuda
