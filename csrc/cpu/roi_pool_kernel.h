// RoIAlign (aligned, adaptive grid) and deformable RoI pooling over channels-last maps.
//
// The samples of a bin are turned into pointers and weights once; then all channels are read through
// them, a register block at a time.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace dcnzoo::cpu {
namespace {

// The four corners of one bilinear sample, and their weights.
struct RoiSample {
  const float* corners[4];
  float weights[4];
};

// One axis of a bilinear sample with RoIAlign's border rule: zero beyond -1 and the size, clamped inside.
struct RoiAxis {
  int64_t low, high;
  float low_weight, high_weight;
  bool inside;

  RoiAxis(float position, int64_t size) {
    inside = position >= -1.0f && position <= static_cast<float>(size);
    position = inside ? max(position, 0.0f) : 0.0f;
    low = min(static_cast<int64_t>(position), size - 1);
    high = min(low + 1, size - 1);
    high_weight = low == high ? 0.0f : position - static_cast<float>(low);
    low_weight = 1.0f - high_weight;
  }
};

inline int64_t round_up_to_int(float value) {
  const int64_t whole = static_cast<int64_t>(value);
  return whole + (static_cast<float>(whole) < value);
}

class RoiPooling {
 public:
  explicit RoiPooling(const RoiPool& call) : call_(call) {}

  void pool(int64_t index) {
    const float* roi = call_.rois + 5 * index;
    const int64_t pixels = call_.height * call_.width;
    image_ = call_.input + static_cast<int64_t>(roi[0]) * pixels * call_.channels;
    const float x = roi[1] * call_.spatial_scale - 0.5f, y = roi[2] * call_.spatial_scale - 0.5f;
    const float width = roi[3] * call_.spatial_scale - 0.5f - x, height = roi[4] * call_.spatial_scale - 0.5f - y;
    const float bin_w = width / static_cast<float>(call_.pooled_w);
    const float bin_h = height / static_cast<float>(call_.pooled_h);
    const int64_t bins = call_.pooled_h * call_.pooled_w;
    const float* offset = call_.offset == nullptr ? nullptr : call_.offset + 2 * bins * index;
    float* output = call_.output + index * bins * call_.channels;
    for (int64_t bin = 0; bin < bins; ++bin, output += call_.channels) {
      float bin_x = x + static_cast<float>(bin % call_.pooled_w) * bin_w;
      float bin_y = y + static_cast<float>(bin / call_.pooled_w) * bin_h;
      if (offset != nullptr) {
        bin_x += call_.gamma * width * offset[bin];
        bin_y += call_.gamma * height * offset[bins + bin];
      }
      average(bin_x, bin_y, bin_w, bin_h, output);
    }
  }

 private:
  static constexpr int batch = 16;

  // Mean of the samples of one bin, all channels.
  void average(float x, float y, float bin_w, float bin_h, float* output) {
    for (int64_t c = 0; c < call_.channels; ++c) output[c] = 0.0f;
    const int64_t grid_w = round_up_to_int(bin_w), grid_h = round_up_to_int(bin_h);
    if (grid_w <= 0 || grid_h <= 0) return;
    const float share = 1.0f / static_cast<float>(grid_w * grid_h);
    const float step_x = bin_w / static_cast<float>(grid_w), step_y = bin_h / static_cast<float>(grid_h);
    RoiSample samples[batch];
    int count = 0;
    for (int64_t row = 0; row < grid_h; ++row) {
      const RoiAxis vertical(y + (static_cast<float>(row) + 0.5f) * step_y, call_.height);
      if (!vertical.inside) continue;
      for (int64_t column = 0; column < grid_w; ++column) {
        const RoiAxis horizontal(x + (static_cast<float>(column) + 0.5f) * step_x, call_.width);
        if (!horizontal.inside) continue;
        samples[count++] = sample(vertical, horizontal, share);
        if (count == batch) add(samples, count, output), count = 0;
      }
    }
    add(samples, count, output);
  }

  RoiSample sample(const RoiAxis& vertical, const RoiAxis& horizontal, float share) const {
    const float* top = image_ + vertical.low * call_.width * call_.channels;
    const float* bottom = image_ + vertical.high * call_.width * call_.channels;
    const int64_t left = horizontal.low * call_.channels, right = horizontal.high * call_.channels;
    const float upper = vertical.low_weight * share, lower = vertical.high_weight * share;
    return {{top + left, top + right, bottom + left, bottom + right},
            {upper * horizontal.low_weight, upper * horizontal.high_weight, lower * horizontal.low_weight,
             lower * horizontal.high_weight}};
  }

  void add(const RoiSample* samples, int count, float* output) const {
    constexpr int64_t width = Simd<float>::width;
    int64_t c = 0;
    for (; c + 8 * width <= call_.channels; c += 8 * width) add_block<8>(samples, count, c, output);
    for (; c + width <= call_.channels; c += width) add_block<1>(samples, count, c, output);
    for (; c < call_.channels; ++c) {
      for (int s = 0; s < count; ++s) {
        for (int k = 0; k < 4; ++k) output[c] += samples[s].weights[k] * samples[s].corners[k][c];
      }
    }
  }

  template <int VECTORS>
  static DCNZOO_INLINE void add_block(const RoiSample* samples, int count, int64_t channel, float* output) {
    using V = Simd<float>;
    typename V::vector sums[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sums[v] = V::load(output + channel + v * V::width);
    for (int s = 0; s < count; ++s) {
      for (int k = 0; k < 4; ++k) {
        const float* corner = samples[s].corners[k] + channel;
        const typename V::vector weight = V::splat(samples[s].weights[k]);
        for (int v = 0; v < VECTORS; ++v) sums[v] += weight * V::load(corner + v * V::width);
      }
    }
    for (int v = 0; v < VECTORS; ++v) V::store(output + channel + v * V::width, sums[v]);
  }

  const RoiPool& call_;
  const float* image_ = nullptr;
};

void pool_rois(const RoiPool& call, int64_t begin, int64_t end) {
  RoiPooling pooling(call);
  for (int64_t index = begin; index < end; ++index) pooling.pool(index);
}

}  // namespace
}  // namespace dcnzoo::cpu
