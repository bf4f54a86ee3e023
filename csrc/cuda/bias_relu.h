// What follows a library's convolution, in one pass over its output: bias, the sum with another map, ReLU.
#pragma once

#include "elements.h"

namespace dcnzoo::cuda {

constexpr int bias_relu_threads = 256;

// float32 as it is.
struct FloatWords {
  static DCNZOO_DEVICE Pair unpack(uint32_t word) { return {bits_float(word), 0.0f}; }
  static DCNZOO_DEVICE uint32_t pack(Pair value) { return float_bits(value.low); }
};

DCNZOO_DEVICE Pair sum(const Pair& a, const Pair& b) { return {a.low + b.low, a.high + b.high}; }

// A chunk per thread and round.
template <class Words>
DCNZOO_DEVICE void add_bias_relu(const BiasRelu& call) {
  char* const maps = static_cast<char*>(call.maps);
  for (int64_t i = block_index() * bias_relu_threads + thread_index(); i < call.chunks;
       i += grid_blocks() * bias_relu_threads) {
    const int64_t place = i * chunk_bytes, channel = divide(i, call.bias_chunks).rest * chunk_bytes;
    Chunk result = load_own(maps + place);
    const Chunk bias = load_global(static_cast<const char*>(call.bias) + channel);
    Chunk added{};
    if (call.added != nullptr) added = load_global(static_cast<const char*>(call.added) + place);
    DCNZOO_UNROLL
    for (int w = 0; w < 4; ++w) {
      // the convolution and its bias first
      const Pair shift = Words::unpack(bias.word[w]), own = Words::unpack(result.word[w]);
      Pair value = call.added == nullptr ? sum(own, shift) : sum(sum(Words::unpack(added.word[w]), shift), own);
      if (call.relu) value = {not_negative(value.low), not_negative(value.high)};
      result.word[w] = Words::pack(value);
    }
    store_global(maps + place, result);
  }
}

}  // namespace dcnzoo::cuda
