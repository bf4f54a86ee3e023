// Pastes mask maps into their boxes: bilinear samples at the centres of the pixels, at least one half.
#pragma once

#include "device.h"

namespace dcnzoo::cuda {

constexpr int paste_threads = 256, paste_parts = 16;  // blocks per detection

// The two cells of a map around a position, by their weights; 0 for those outside.
struct MaskAxis {
  int low, high;
  float low_weight, high_weight;

  DCNZOO_DEVICE MaskAxis(int64_t pixel, float begin, float end, int side) {
    const float centre = static_cast<float>(pixel) + 0.5f;
    const float position = product((centre - begin) / (end - begin), static_cast<float>(side)) - 0.5f;
    const float floor = round_down(position), fraction = position - floor;
    const bool inside = position > -1.0f && position < static_cast<float>(side);
    const int whole = inside ? static_cast<int>(floor) : -1;
    low = larger(whole, 0);
    high = smaller(whole + 1, side - 1);
    low_weight = inside && whole >= 0 ? 1.0f - fraction : 0.0f;
    high_weight = inside && whole + 1 < side ? fraction : 0.0f;
  }
};

DCNZOO_DEVICE void paste_mask(const MaskPaste& call) {
  const int64_t detection = block_index() / paste_parts;
  const int64_t* region = call.regions + 5 * detection;
  const int64_t left = load_scalar(region), top = load_scalar(region + 1), width = load_scalar(region + 2);
  const int64_t height = load_scalar(region + 3), start = load_scalar(region + 4);
  const float* box = call.boxes + 4 * detection;
  const float x1 = load_scalar(box), y1 = load_scalar(box + 1), x2 = load_scalar(box + 2), y2 = load_scalar(box + 3);
  const float* probs = call.probs + detection * call.side * call.side;
  for (int64_t i = block_index() % paste_parts * paste_threads + thread_index(); i < width * height;
       i += paste_parts * paste_threads) {
    const MaskAxis x(left + i / height, x1, x2, call.side), y(top + i % height, y1, y2, call.side);
    const float* upper = probs + y.low * call.side;
    const float* lower = probs + y.high * call.side;
    const float value =
        y.low_weight * (x.low_weight * load_scalar(upper + x.low) + x.high_weight * load_scalar(upper + x.high)) +
        y.high_weight * (x.low_weight * load_scalar(lower + x.low) + x.high_weight * load_scalar(lower + x.high));
    call.output[start + i] = value >= 0.5f;
  }
}

}  // namespace dcnzoo::cuda
