// Sums the parts of a split reduction axis, adds the bias, applies ReLU.
#pragma once

#include "elements.h"

namespace dcnzoo::cuda {

constexpr int reduce_threads = 256;

// How many consecutive elements a thread sums at once. A chunk of sums is 4.
DCNZOO_BOTH int reduce_width(const ConvShape& shape) { return shape.out_channels % 4 == 0 ? 4 : 1; }

// The parts come in a fixed order, so that results repeat.
template <class T, int WIDTH>
DCNZOO_DEVICE void reduce_elements(const DeformConv2d& call, int splits) {
  const int64_t count = call.shape.pixels() * call.shape.out_channels;
  const int64_t step = grid_blocks() * reduce_threads * WIDTH;
  for (int64_t i = (block_index() * reduce_threads + thread_index()) * WIDTH; i < count; i += step) {
    float sums[WIDTH] = {};
    DCNZOO_UNROLL_4
    for (int split = 0; split < splits; ++split) {
      const float* part = call.partial + split * count + i;
      if constexpr (WIDTH == 4) {
        const Chunk values = load_global(part);
        DCNZOO_UNROLL
        for (int k = 0; k < WIDTH; ++k) sums[k] += bits_float(values.word[k]);
      } else {
        sums[0] += load_scalar(part);
      }
    }
    struct alignas(WIDTH * sizeof(T)) Elements {
      T value[WIDTH];
    } elements;
    const int channel = static_cast<int>(divide(i, call.shape.out_channels).rest);
    DCNZOO_UNROLL
    for (int k = 0; k < WIDTH; ++k) {
      if (call.bias != nullptr) sums[k] += to_float(load_scalar(static_cast<const T*>(call.bias) + channel + k));
      if (call.relu) sums[k] = not_negative(sums[k]);
      from_float(sums[k], elements.value[k]);
    }
    *reinterpret_cast<Elements*>(static_cast<T*>(call.output) + i) = elements;
  }
}

template <class T>
DCNZOO_DEVICE void reduce_splits(const DeformConv2d& call, int splits) {
  reduce_width(call.shape) == 4 ? reduce_elements<T, 4>(call, splits) : reduce_elements<T, 1>(call, splits);
}

}  // namespace dcnzoo::cuda
