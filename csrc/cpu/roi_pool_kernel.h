// RoIAlign (aligned, adaptive grid) and deformable RoI pooling over channels-last maps, and their gradients.
//
// The samples of a bin are turned into pointers and weights once; then all channels are read through
// them, a register block at a time.
#pragma once

#include <type_traits>

#include "chunks.h"
#include "elements.h"
#include "kernels.h"

namespace dcnzoo::cpu {
namespace {

// One axis of a bilinear sample with RoIAlign's border rule: zero beyond -1 and the size, clamped inside.
template <class T>
struct RoiAxis {
  int64_t low, high;
  T low_weight, high_weight;
  T slope;  // by how much the upper weight grows, and the lower one falls, with the position
  bool inside;

  RoiAxis(T position, int64_t size) {
    inside = position >= T{-1} && position <= static_cast<T>(size);
    const T clamped = inside ? max(position, T{0}) : T{0};
    low = min(static_cast<int64_t>(clamped), size - 1);
    high = min(low + 1, size - 1);
    high_weight = low == high ? T{0} : clamped - static_cast<T>(low);
    low_weight = T{1} - high_weight;
    slope = low == high || position < 0 ? T{0} : T{1};
  }
};

template <class T>
int64_t round_up_to_int(T value) {
  if (!(value > 0)) return 0;  // a RoI may end at minus infinity
  const int64_t whole = static_cast<int64_t>(value);
  return whole + (static_cast<T>(whole) < value);
}

// A RoI on its feature map: the bins and their samples.
template <class T>
struct RoiBins {
  int64_t image;
  T x, y, width, height;
  T bin_w, bin_h, step_x, step_y;
  int64_t pooled_w, grid_w, grid_h;
  T share;  // of a sample in its bin

  RoiBins(const RoiPool& call, int64_t index) : pooled_w(call.pooled_w) {
    const T* roi = static_cast<const T*>(call.rois) + 5 * index;
    const T scale = static_cast<T>(call.spatial_scale);
    image = static_cast<int64_t>(roi[0]);
    x = roi[1] * scale - T{0.5}, y = roi[2] * scale - T{0.5};
    width = roi[3] * scale - T{0.5} - x, height = roi[4] * scale - T{0.5} - y;
    bin_w = width / static_cast<T>(call.pooled_w), bin_h = height / static_cast<T>(call.pooled_h);
    grid_w = max<int64_t>(round_up_to_int(bin_w), 0), grid_h = max<int64_t>(round_up_to_int(bin_h), 0);
    share = T{1} / static_cast<T>(grid_w * grid_h);
    step_x = bin_w / static_cast<T>(grid_w), step_y = bin_h / static_cast<T>(grid_h);
  }

  // Calls function(vertical, horizontal) for the samples of a bin that lie on the map.
  template <class Function>
  DCNZOO_INLINE void for_each_sample(const RoiPool& call, int64_t index, int64_t bin, const Function& function) const {
    T bin_x = x + static_cast<T>(bin % pooled_w) * bin_w, bin_y = y + static_cast<T>(bin / pooled_w) * bin_h;
    if (call.offset != nullptr) {
      const int64_t bins = call.pooled_h * call.pooled_w;
      const T* offset = static_cast<const T*>(call.offset) + 2 * bins * index + bin;
      bin_x += static_cast<T>(call.gamma) * width * offset[0];
      bin_y += static_cast<T>(call.gamma) * height * offset[bins];
    }
    for (int64_t row = 0; row < grid_h; ++row) {
      const RoiAxis<T> vertical(bin_y + (static_cast<T>(row) + T{0.5}) * step_y, call.height);
      if (!vertical.inside) continue;
      for (int64_t column = 0; column < grid_w; ++column) {
        const RoiAxis<T> horizontal(bin_x + (static_cast<T>(column) + T{0.5}) * step_x, call.width);
        if (horizontal.inside) function(vertical, horizontal);
      }
    }
  }
};

// The elements of an image at which the pixels of a sample's corners begin.
struct RoiCorners {
  int64_t at[4];

  template <class T>
  DCNZOO_INLINE RoiCorners(const RoiPool& call, const RoiAxis<T>& vertical, const RoiAxis<T>& horizontal) {
    const int64_t top = vertical.low * call.width, bottom = vertical.high * call.width;
    at[0] = (top + horizontal.low) * call.channels, at[1] = (top + horizontal.high) * call.channels;
    at[2] = (bottom + horizontal.low) * call.channels, at[3] = (bottom + horizontal.high) * call.channels;
  }
};

template <class Element>
class RoiPooling {
  using T = Computed<Element>;

 public:
  // `sums` has room for all channels; it is needed for short floats only.
  RoiPooling(const RoiPool& call, T* sums) : call_(call), sums_(sums) {}

  void pool(int64_t index) {
    const RoiBins<T> roi(call_, index);
    const int64_t bins = call_.pooled_h * call_.pooled_w;
    image_ = static_cast<const Element*>(call_.input) + roi.image * call_.height * call_.width * call_.channels;
    Element* output = static_cast<Element*>(call_.output) + index * bins * call_.channels;
    for (int64_t bin = 0; bin < bins; ++bin, output += call_.channels) {
      if constexpr (std::is_same_v<Element, T>) {
        average(roi, index, bin, output);
      } else {
        average(roi, index, bin, sums_);
        store_numbers(output, sums_, call_.channels);
      }
    }
  }

 private:
  static constexpr int batch = 16;

  // The four corners of one bilinear sample, and their weights.
  struct Sample {
    const Element* corners[4];
    T weights[4];
  };

  // Mean of the samples of one bin, all channels.
  void average(const RoiBins<T>& roi, int64_t index, int64_t bin, T* output) const {
    for (int64_t c = 0; c < call_.channels; ++c) output[c] = 0;
    Sample samples[batch];
    int count = 0;
    roi.for_each_sample(call_, index, bin, [&](const RoiAxis<T>& vertical, const RoiAxis<T>& horizontal) {
      const RoiCorners corners(call_, vertical, horizontal);
      Sample& sample = samples[count++];
      for (int k = 0; k < 4; ++k) sample.corners[k] = image_ + corners.at[k];
      const T upper = vertical.low_weight * roi.share, lower = vertical.high_weight * roi.share;
      sample.weights[0] = upper * horizontal.low_weight, sample.weights[1] = upper * horizontal.high_weight;
      sample.weights[2] = lower * horizontal.low_weight, sample.weights[3] = lower * horizontal.high_weight;
      if (count == batch) add(samples, count, output), count = 0;
    });
    add(samples, count, output);
  }

  void add(const Sample* samples, int count, T* output) const {
    constexpr int64_t width = Simd<T>::width;
    int64_t c = 0;
    for (; c + 8 * width <= call_.channels; c += 8 * width) add_block<8>(samples, count, c, output);
    for (; c + width <= call_.channels; c += width) add_block<1>(samples, count, c, output);
    for (; c < call_.channels; ++c) {
      for (int s = 0; s < count; ++s) {
        for (int k = 0; k < 4; ++k) output[c] += samples[s].weights[k] * number(samples[s].corners[k][c]);
      }
    }
  }

  template <int VECTORS>
  static DCNZOO_INLINE void add_block(const Sample* samples, int count, int64_t channel, T* output) {
    using V = Simd<T>;
    typename V::vector sums[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sums[v] = V::load(output + channel + v * V::width);
    for (int s = 0; s < count; ++s) {
      for (int k = 0; k < 4; ++k) {
        const Element* corner = samples[s].corners[k] + channel;
        const typename V::vector weight = V::splat(samples[s].weights[k]);
        for (int v = 0; v < VECTORS; ++v) sums[v] += weight * load_vector(corner + v * V::width);
      }
    }
    for (int v = 0; v < VECTORS; ++v) V::store(output + channel + v * V::width, sums[v]);
  }

  const RoiPool& call_;
  T* const sums_;
  const Element* image_ = nullptr;
};

template <class Element>
size_t roi_scratch_bytes(const RoiPool& call) {
  if constexpr (std::is_same_v<Element, Computed<Element>>) return 0;
  return static_cast<size_t>(call.channels) * sizeof(Computed<Element>);
}

template <class Element>
void pool_rois(const RoiPool& call, int64_t begin, int64_t end, void* scratch) {
  RoiPooling<Element> pooling(call, static_cast<Computed<Element>*>(scratch));
  for (int64_t index = begin; index < end; ++index) pooling.pool(index);
}

template <class Element>
constexpr RoiPoolKernels roi_pool_kernels() {
  return {roi_scratch_bytes<Element>, pool_rois<Element>};
}

// ---- gradients ----

template <class T>
int64_t roi_grad_chunks(const RoiPoolGrad& call, int threads) {
  // The geometry of a sample costs about as much as reading and writing a few vectors of its channels.
  return best_chunks(max<int64_t>(call.images, 1), ceil_div(call.pool.channels, Simd<T>::width), 1, 4, threads);
}

// Some channels of one image: its RoIs one after the other, so that sums have a fixed order.
template <class T>
class RoiGradient {
 public:
  RoiGradient(const RoiPoolGrad& call, int64_t chunks, int64_t task)
      : call_(call), pool_(call.pool), image_(task / chunks), chunk_(task % chunks) {
    const int64_t parts = ceil_div(pool_.channels, Simd<T>::width);
    begin_ = parts * chunk_ / chunks * Simd<T>::width;
    end_ = min(parts * (chunk_ + 1) / chunks * Simd<T>::width, pool_.channels);
  }

  void run() const {
    const int64_t bins = pool_.pooled_h * pool_.pooled_w;
    for (int64_t index = 0; index < pool_.num_rois; ++index) {
      const RoiBins<T> roi(pool_, index);
      if (roi.image != image_) continue;
      for (int64_t bin = 0; bin < bins; ++bin) {
        T shift[2] = {};
        roi.for_each_sample(pool_, index, bin, [&](const RoiAxis<T>& vertical, const RoiAxis<T>& horizontal) {
          scatter(vertical, horizontal, roi.share, (index * bins + bin) * pool_.channels, shift);
        });
        if (pool_.offset == nullptr) continue;
        T* grad_offset = static_cast<T*>(call_.grad_offset) + 2 * bins * (chunk_ * pool_.num_rois + index) + bin;
        grad_offset[0] = shift[0] * static_cast<T>(pool_.gamma) * roi.width;
        grad_offset[bins] = shift[1] * static_cast<T>(pool_.gamma) * roi.height;
      }
    }
  }

 private:
  // Adds a sample's part to the gradient of the input, and to that of its bin's position (x, y).
  void scatter(const RoiAxis<T>& vertical, const RoiAxis<T>& horizontal, T share, int64_t bin, T* shift) const {
    const RoiCorners corners(pool_, vertical, horizontal);
    const T upper = vertical.low_weight * share, lower = vertical.high_weight * share;
    const T weights[4] = {upper * horizontal.low_weight, upper * horizontal.high_weight, lower * horizontal.low_weight,
                          lower * horizontal.high_weight};
    const T* grad = static_cast<const T*>(call_.grad_output) + bin;
    T products[4];
    if (pool_.offset == nullptr) return scatter_channels<false>(grad, corners, weights, products);
    scatter_channels<true>(grad, corners, weights, products);
    shift[0] += horizontal.slope * (upper * (products[1] - products[0]) + lower * (products[3] - products[2]));
    shift[1] += vertical.slope * share * (horizontal.low_weight * (products[2] - products[0]) +
                                          horizontal.high_weight * (products[3] - products[1]));
  }

  template <bool PRODUCTS>
  DCNZOO_INLINE void scatter_channels(const T* grad, const RoiCorners& corners, const T* weights, T* products) const {
    using S = Simd<T>;
    const int64_t image = image_ * pool_.height * pool_.width * pool_.channels;
    const T* source[4];
    T* target[4];
    for (int k = 0; k < 4; ++k) {
      source[k] = static_cast<const T*>(pool_.input) + image + corners.at[k];
      target[k] = static_cast<T*>(call_.grad_input) + image + corners.at[k];
    }
    typename S::vector sums[4] = {};
    T rest[4] = {};
    int64_t c = begin_;
    for (; c + S::width <= end_; c += S::width) {
      const auto value = S::load(grad + c);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        if constexpr (PRODUCTS) sums[k] += value * S::load(source[k] + c);
        S::store(target[k] + c, S::load(target[k] + c) + value * weights[k]);
      }
    }
    for (; c < end_; ++c) {
      for (int k = 0; k < 4; ++k) {
        if constexpr (PRODUCTS) rest[k] += grad[c] * source[k][c];
        target[k][c] += grad[c] * weights[k];
      }
    }
    if constexpr (PRODUCTS) {
      for (int k = 0; k < 4; ++k) products[k] = sum_of_lanes<T>(sums[k]) + rest[k];
    }
  }

  const RoiPoolGrad& call_;
  const RoiPool& pool_;
  const int64_t image_, chunk_;
  int64_t begin_, end_;
};

template <class T>
void run_roi_grad(const RoiPoolGrad& call, int64_t chunks, int64_t task) {
  RoiGradient<T>(call, chunks, task).run();
}

template <class T>
constexpr RoiPoolGradKernels roi_pool_grad_kernels() {
  return {roi_grad_chunks<T>, run_roi_grad<T>};
}

}  // namespace
}  // namespace dcnzoo::cpu
