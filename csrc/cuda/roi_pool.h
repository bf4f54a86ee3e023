// RoIAlign (aligned, adaptive grid) and deformable RoI pooling over channels-last maps.
//
// A warp computes a bin; its threads load 16 bytes of channels each, of each of the four corners of a sample.
#pragma once

#include "elements.h"

namespace dcnzoo::cuda {

constexpr int roi_threads = 128, roi_bins = roi_threads / warp_threads;

// One axis of a bilinear sample with RoIAlign's border rule: zero beyond -1 and the size, clamped inside.
struct RoiAxis {
  int low, high;
  float low_weight, high_weight;
  bool inside;

  DCNZOO_DEVICE RoiAxis(float position, int size) {
    inside = position >= -1.0f && position <= static_cast<float>(size);
    position = inside ? larger(position, 0.0f) : 0.0f;
    low = smaller(static_cast<int>(position), size - 1);
    high = smaller(low + 1, size - 1);
    high_weight = low == high ? 0.0f : position - static_cast<float>(low);
    low_weight = 1.0f - high_weight;
  }
};

// Where a bin lies on its map.
struct RoiBin {
  float x, y, width, height;
};

// What a thread loads at once: `elements` channels, as float.
template <class Factors>
struct ChunkLoad {
  static constexpr int elements = 4 * Factors::elements;

  static DCNZOO_DEVICE void add(const void* address, float weight, float (&sums)[elements]) {
    const Chunk chunk = load_global(address);
    DCNZOO_UNROLL
    for (int w = 0; w < 4; ++w) {
      const Pair value = Factors::unpack(chunk.word[w]);
      sums[w * Factors::elements] += weight * value.low;
      if constexpr (Factors::elements == 2) sums[2 * w + 1] += weight * value.high;
    }
  }
};

template <class T>
struct ScalarLoad {
  static constexpr int elements = 1;

  static DCNZOO_DEVICE void add(const void* address, float weight, float (&sums)[1]) {
    sums[0] += weight * to_float(load_scalar(static_cast<const T*>(address)));
  }
};

template <class T, class LOAD>
class RoiWarp {
  using Load = LOAD;

 public:
  DCNZOO_DEVICE explicit RoiWarp(const RoiPool& call) : call_(call) {}

  DCNZOO_DEVICE void run() const {
    const int bins = call_.pooled_h * call_.pooled_w;
    const int64_t index = block_index() * roi_bins + thread_index() / warp_threads;
    if (index >= call_.num_rois * bins) return;
    const int64_t roi = index / bins;
    const float* corners = call_.rois + 5 * roi;
    const float image = load_scalar(corners);
    const int level = level_of(roi);
    const RoiBin bin = place(roi, static_cast<int>(index % bins), call_.levels[level].spatial_scale);
    T* output = static_cast<T*>(call_.output) + index * call_.channels;
    // written so that not-a-number fails
    const bool sound = bin.width <= most_samples && bin.height <= most_samples && image < static_cast<float>(call_.images);
    for (int c = thread_index() % warp_threads * Load::elements; c < call_.channels;
         c += warp_threads * Load::elements) {
      float sums[Load::elements] = {};
      if (image >= 0.0f && sound) average(bin, call_.levels[level], static_cast<int64_t>(image), c, sums);
      DCNZOO_UNROLL
      for (int k = 0; k < Load::elements; ++k) {
        from_float(sound || image < 0.0f ? sums[k] : bits_float(0x7fc00000u), output[c + k]);
      }
    }
  }

 private:
  DCNZOO_DEVICE int level_of(int64_t roi) const {
    if (call_.level_of_roi == nullptr) return 0;
    const int64_t last = call_.num_levels - 1;
    return static_cast<int>(larger<int64_t>(0, smaller(load_scalar(call_.level_of_roi + roi), last)));
  }

  static constexpr float most_samples = 65536.0f;  // per axis of a bin

  DCNZOO_DEVICE RoiBin place(int64_t roi, int bin, float scale) const {
    const float* corners = call_.rois + 5 * roi;
    const float x = product(load_scalar(corners + 1), scale) - 0.5f, y = product(load_scalar(corners + 2), scale) - 0.5f;
    const float width = product(load_scalar(corners + 3), scale) - 0.5f - x;
    const float height = product(load_scalar(corners + 4), scale) - 0.5f - y;
    const float bin_w = width / static_cast<float>(call_.pooled_w), bin_h = height / static_cast<float>(call_.pooled_h);
    RoiBin found{x + product(static_cast<float>(bin % call_.pooled_w), bin_w),
                 y + product(static_cast<float>(bin / call_.pooled_w), bin_h), bin_w, bin_h};
    if (call_.offset == nullptr) return found;
    const int bins = call_.pooled_h * call_.pooled_w;
    const int64_t index = 2 * bins * roi + bin;
    found.x += product(product(call_.gamma, width), read_element<float>(call_.offset, call_.offset_element, index));
    found.y += product(product(call_.gamma, height), read_element<float>(call_.offset, call_.offset_element, index + bins));
    return found;
  }

  static DCNZOO_DEVICE int round_up(float value) { return -static_cast<int>(round_down(-value)); }

  // Mean of the samples of a bin, for the channels from `channel` on.
  DCNZOO_DEVICE void average(const RoiBin& bin, const RoiLevel& level, int64_t image, int channel,
                             float (&sums)[Load::elements]) const {
    const int grid_w = round_up(bin.width), grid_h = round_up(bin.height);
    if (grid_w <= 0 || grid_h <= 0) return;
    const float share = 1.0f / (static_cast<float>(grid_w) * static_cast<float>(grid_h));
    const float step_x = bin.width / static_cast<float>(grid_w), step_y = bin.height / static_cast<float>(grid_h);
    const int64_t row = static_cast<int64_t>(level.width) * call_.channels;
    const T* source = static_cast<const T*>(level.input) + image * level.height * row + channel;
    for (int i = 0; i < grid_h; ++i) {
      const RoiAxis y(bin.y + product(static_cast<float>(i) + 0.5f, step_y), level.height);
      if (!y.inside) continue;
      for (int j = 0; j < grid_w; ++j) {
        const RoiAxis x(bin.x + product(static_cast<float>(j) + 0.5f, step_x), level.width);
        if (!x.inside) continue;
        const T* top = source + y.low * row;
        const T* bottom = source + y.high * row;
        const int64_t left = static_cast<int64_t>(x.low) * call_.channels;
        const int64_t right = static_cast<int64_t>(x.high) * call_.channels;
        const float upper = y.low_weight * share, lower = y.high_weight * share;
        Load::add(top + left, upper * x.low_weight, sums);
        Load::add(top + right, upper * x.high_weight, sums);
        Load::add(bottom + left, lower * x.low_weight, sums);
        Load::add(bottom + right, lower * x.high_weight, sums);
      }
    }
  }

  const RoiPool& call_;
};

}  // namespace dcnzoo::cuda
