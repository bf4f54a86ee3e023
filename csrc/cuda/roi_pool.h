// RoIAlign (aligned, adaptive grid) and deformable RoI pooling over channels-last maps, and their derivatives.
//
// A warp computes a bin; its threads load 16 bytes of channels each, of each of the four corners of a sample, and store
// as many.
#pragma once

#include "elements.h"

namespace dcnzoo::cuda {

constexpr int roi_threads = 128, roi_bins = roi_threads / warp_threads;

// One axis of a bilinear sample with RoIAlign's border rule: zero beyond -1 and the size, clamped inside.
template <class T>
struct RoiAxis {
  int low, high;
  T low_weight, high_weight;
  T slope;  // by how much the upper weight grows, and the lower one falls, with the position
  bool inside;

  DCNZOO_DEVICE RoiAxis(T position, int size) {
    inside = position >= T{-1} && position <= static_cast<T>(size);
    const T clamped = inside ? larger(position, T{0}) : T{0};
    low = smaller(static_cast<int>(clamped), size - 1);
    high = smaller(low + 1, size - 1);
    high_weight = low == high ? T{0} : clamped - static_cast<T>(low);
    low_weight = T{1} - high_weight;
    slope = low == high || position < T{0} ? T{0} : T{1};
  }
};

// Where a bin lies on its map, and how far an offset of 1 moves it.
template <class T>
struct RoiBin {
  T x, y, width, height;
  T reach_x, reach_y;
};

template <class T>
DCNZOO_DEVICE T roi_number(const RoiPool& call, int64_t roi, int index) {
  return read_element<T>(call.rois, call.rois_element, 5 * roi + index);
}

template <class T>
DCNZOO_DEVICE RoiBin<T> roi_bin(const RoiPool& call, int64_t roi, int bin, T scale) {
  const T x = product(roi_number<T>(call, roi, 1), scale) - T{0.5}, y = product(roi_number<T>(call, roi, 2), scale) - T{0.5};
  const T width = product(roi_number<T>(call, roi, 3), scale) - T{0.5} - x;
  const T height = product(roi_number<T>(call, roi, 4), scale) - T{0.5} - y;
  const T bin_w = width / static_cast<T>(call.pooled_w), bin_h = height / static_cast<T>(call.pooled_h);
  RoiBin<T> found{x + product(static_cast<T>(bin % call.pooled_w), bin_w),
                  y + product(static_cast<T>(bin / call.pooled_w), bin_h),
                  bin_w,
                  bin_h,
                  product(static_cast<T>(call.gamma), width),
                  product(static_cast<T>(call.gamma), height)};
  if (call.offset == nullptr) return found;
  const int bins = call.pooled_h * call.pooled_w;
  const int64_t index = 2 * bins * roi + bin;
  found.x += product(found.reach_x, read_element<T>(call.offset, call.offset_element, index));
  found.y += product(found.reach_y, read_element<T>(call.offset, call.offset_element, index + bins));
  return found;
}

template <class T>
DCNZOO_DEVICE int samples_of(T side) {
  return -static_cast<int>(round_down(-side));
}

// Calls function(vertical, horizontal, share) for the samples of a bin that lie on the map; `share` of each is what it
// counts in the mean.
template <class T, class Function>
DCNZOO_DEVICE void for_each_sample(const RoiBin<T>& bin, const RoiLevel& level, const Function& function) {
  const int grid_w = samples_of(bin.width), grid_h = samples_of(bin.height);
  if (grid_w <= 0 || grid_h <= 0) return;
  const T share = T{1} / (static_cast<T>(grid_w) * static_cast<T>(grid_h));
  const T step_x = bin.width / static_cast<T>(grid_w), step_y = bin.height / static_cast<T>(grid_h);
  for (int i = 0; i < grid_h; ++i) {
    const RoiAxis<T> y(bin.y + product(static_cast<T>(i) + T{0.5}, step_y), level.height);
    if (!y.inside) continue;
    for (int j = 0; j < grid_w; ++j) {
      const RoiAxis<T> x(bin.x + product(static_cast<T>(j) + T{0.5}, step_x), level.width);
      if (x.inside) function(y, x, share);
    }
  }
}

// A bin of a call: the RoI's image (-1 for none), its level, its place.
template <class T>
struct RoiTask {
  int64_t index;  // of the bin among those of all RoIs
  const RoiLevel& level;
  RoiBin<T> bin;
  T image;
  bool sound;  // pools to numbers

  DCNZOO_DEVICE RoiTask(const RoiPool& call, int64_t bin_index)
      : RoiTask(call, bin_index, divide(bin_index, call.pooled_h * call.pooled_w)) {}

  DCNZOO_DEVICE bool exists() const { return image >= T{0} && sound; }

  // The first element of a row of a map, (N, H, W, C).
  DCNZOO_DEVICE int64_t row(const RoiPool& call, int y) const {
    return (static_cast<int64_t>(image) * level.height + y) * level.width * call.channels;
  }

 private:
  // `roi` is the number of the RoI, and of the bin in it.
  DCNZOO_DEVICE RoiTask(const RoiPool& call, int64_t bin_index, const Division& roi)
      : index(bin_index),
        level(call.levels[level_of(call, roi.quotient)]),
        bin(roi_bin<T>(call, roi.quotient, static_cast<int>(roi.rest), static_cast<T>(level.spatial_scale))),
        image(roi_number<T>(call, roi.quotient, 0)) {
    // written so that not-a-number fails
    sound = bin.width <= most_samples && bin.height <= most_samples && image < static_cast<T>(call.images);
  }

  static constexpr T most_samples = T{65536};  // per axis of a bin

  static DCNZOO_DEVICE int level_of(const RoiPool& call, int64_t roi) {
    if (call.level_of_roi == nullptr) return 0;
    const int64_t last = call.num_levels - 1;
    return static_cast<int>(larger<int64_t>(0, smaller(load_scalar(call.level_of_roi + roi), last)));
  }
};

// The bin that a warp computes; beyond the last one there are none.
DCNZOO_DEVICE int64_t roi_bin_of_warp() { return block_index() * roi_bins + thread_index() / warp_threads; }

DCNZOO_DEVICE int64_t num_roi_bins(const RoiPool& call) {
  return call.num_rois * call.pooled_h * call.pooled_w;
}

template <class ACCESS>
class RoiWarp {
  using Storage = typename ACCESS::Storage;
  using T = typename Accumulator<Storage>::type;

 public:
  DCNZOO_DEVICE explicit RoiWarp(const RoiPool& call) : call_(call) {}

  DCNZOO_DEVICE void run() const {
    if (roi_bin_of_warp() >= num_roi_bins(call_)) return;
    const RoiTask<T> task(call_, roi_bin_of_warp());
    const bool number = task.sound || task.image < T{0};
    Storage* output = static_cast<Storage*>(call_.output) + task.index * call_.channels;
    for (int c = thread_index() % warp_threads * ACCESS::elements; c < call_.channels;
         c += warp_threads * ACCESS::elements) {
      T sums[ACCESS::elements] = {};
      if (task.exists()) average(task, c, sums);
      DCNZOO_UNROLL
      for (int k = 0; k < ACCESS::elements; ++k) {
        sums[k] = number ? sums[k] : static_cast<T>(bits_float(0x7fc00000u));
      }
      ACCESS::store(output + c, sums);
    }
  }

 private:
  // Mean of the samples of a bin, for the channels from `channel` on.
  DCNZOO_DEVICE void average(const RoiTask<T>& task, int channel, T (&sums)[ACCESS::elements]) const {
    const Storage* source = static_cast<const Storage*>(task.level.input) + channel;
    for_each_sample(task.bin, task.level, [&](const RoiAxis<T>& y, const RoiAxis<T>& x, T share) {
      const Storage* top = source + task.row(call_, y.low);
      const Storage* bottom = source + task.row(call_, y.high);
      const int64_t left = static_cast<int64_t>(x.low) * call_.channels;
      const int64_t right = static_cast<int64_t>(x.high) * call_.channels;
      const T upper = y.low_weight * share, lower = y.high_weight * share;
      add(top + left, upper * x.low_weight, sums);
      add(top + right, upper * x.high_weight, sums);
      add(bottom + left, lower * x.low_weight, sums);
      add(bottom + right, lower * x.high_weight, sums);
    });
  }

  static DCNZOO_DEVICE void add(const Storage* address, T weight, T (&sums)[ACCESS::elements]) {
    T values[ACCESS::elements];
    ACCESS::load(address, values);
    DCNZOO_UNROLL
    for (int k = 0; k < ACCESS::elements; ++k) sums[k] += weight * values[k];
  }

  const RoiPool& call_;
};

template <class STORAGE>
class RoiGradWarp {
  using T = typename Accumulator<STORAGE>::type;

 public:
  DCNZOO_DEVICE explicit RoiGradWarp(const RoiPoolGrad& call) : call_(call), pool_(call.pool) {}

  DCNZOO_DEVICE void run() const {
    if (roi_bin_of_warp() >= num_roi_bins(pool_)) return;
    const RoiTask<T> task(pool_, roi_bin_of_warp());
    T by_x{0}, by_y{0};
    if (task.exists()) {
      for_each_sample(task.bin, task.level, [&](const RoiAxis<T>& y, const RoiAxis<T>& x, T share) {
        for (int c = thread_index() % warp_threads; c < pool_.channels; c += warp_threads) {
          scatter(task, y, x, share, c, by_x, by_y);
        }
      });
    }
    by_x = sum_over_warp(by_x), by_y = sum_over_warp(by_y);
    if (pool_.offset == nullptr || thread_index() % warp_threads > 0) return;
    const int64_t bins = static_cast<int64_t>(pool_.pooled_h) * pool_.pooled_w;
    const Division roi = divide(task.index, bins);
    const int64_t index = roi.quotient * 2 * bins + roi.rest;
    write_element(call_.grad_offset, pool_.offset_element, index, by_x * task.bin.reach_x);
    write_element(call_.grad_offset, pool_.offset_element, index + bins, by_y * task.bin.reach_y);
  }

 private:
  // Adds a channel of a sample to the gradients of the input and of the place of its bin.
  DCNZOO_DEVICE void scatter(const RoiTask<T>& task, const RoiAxis<T>& y, const RoiAxis<T>& x, T share, int channel,
                             T& by_x, T& by_y) const {
    const T gradient =
        share * widen(load_scalar(static_cast<const STORAGE*>(call_.grad_output) + task.index * pool_.channels + channel));
    const int64_t top = task.row(pool_, y.low) + channel, bottom = task.row(pool_, y.high) + channel;
    const int64_t left = static_cast<int64_t>(x.low) * pool_.channels, right = static_cast<int64_t>(x.high) * pool_.channels;
    const int64_t index[4] = {top + left, top + right, bottom + left, bottom + right};
    const T weights[4] = {y.low_weight * x.low_weight, y.low_weight * x.high_weight, y.high_weight * x.low_weight,
                          y.high_weight * x.high_weight};
    T corners[4];
    DCNZOO_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (weights[k] != T{0}) add_atomically(static_cast<T*>(call_.grad_input) + index[k], gradient * weights[k]);
      if (pool_.offset != nullptr) corners[k] = widen(load_scalar(static_cast<const STORAGE*>(task.level.input) + index[k]));
    }
    if (pool_.offset == nullptr) return;
    by_x += gradient * x.slope * (y.low_weight * (corners[1] - corners[0]) + y.high_weight * (corners[3] - corners[2]));
    by_y += gradient * y.slope * (x.low_weight * (corners[2] - corners[0]) + x.high_weight * (corners[3] - corners[1]));
  }

  const RoiPoolGrad& call_;
  const RoiPool& pool_;
};

}  // namespace dcnzoo::cuda
