// Sums the parts of a split reduction axis, adds the bias, applies ReLU.
#pragma once

#include "elements.h"

namespace dcnzoo::cuda {

constexpr int reduce_threads = 256;

// One element per thread and round.
template <class T>
DCNZOO_DEVICE void reduce_splits(const DeformConv2d& call, int splits) {
  const int64_t count = call.shape.pixels() * call.shape.out_channels;
  for (int64_t i = block_index() * reduce_threads + thread_index(); i < count; i += grid_blocks() * reduce_threads) {
    float sum = 0.0f;
    for (int split = 0; split < splits; ++split) sum += call.partial[split * count + i];
    const int channel = static_cast<int>(i % call.shape.out_channels);
    if (call.bias != nullptr) sum += to_float(load_scalar(static_cast<const T*>(call.bias) + channel));
    if (call.relu) sum = sum < 0.0f ? 0.0f : sum;  // keeps NaN
    from_float(sum, static_cast<T*>(call.output)[i]);
  }
}

}  // namespace dcnzoo::cuda
