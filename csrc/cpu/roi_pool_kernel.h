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

  // Where a bin begins.
  struct Corner {
    T x, y;
  };

  DCNZOO_INLINE Corner corner(const RoiPool& call, int64_t index, int64_t bin) const {
    Corner at{x + static_cast<T>(bin % pooled_w) * bin_w, y + static_cast<T>(bin / pooled_w) * bin_h};
    if (call.offset != nullptr) {
      const int64_t bins = call.pooled_h * call.pooled_w;
      const T* offset = static_cast<const T*>(call.offset) + 2 * bins * index + bin;
      at.x += static_cast<T>(call.gamma) * width * offset[0];
      at.y += static_cast<T>(call.gamma) * height * offset[bins];
    }
    return at;
  }

  // The position of a sample along an axis on which the bin begins at `begin`.
  static T sample_at(T begin, T step, int64_t number) { return begin + (static_cast<T>(number) + T{0.5}) * step; }

  // Calls function(vertical, horizontal) for the samples of a bin that lie on the map.
  template <class Function>
  DCNZOO_INLINE void for_each_sample(const RoiPool& call, int64_t index, int64_t bin, const Function& function) const {
    const Corner begin = corner(call, index, bin);
    for (int64_t row = 0; row < grid_h; ++row) {
      const RoiAxis<T> vertical(sample_at(begin.y, step_y, row), call.height);
      if (!vertical.inside) continue;
      for (int64_t column = 0; column < grid_w; ++column) {
        const RoiAxis<T> horizontal(sample_at(begin.x, step_x, column), call.width);
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

template <class Element, class Output>
class RoiPooling {
  using T = Computed<Element>;

 public:
  // `sums` has room for all channels; it is needed for an output of short floats only.
  RoiPooling(const RoiPool& call, T* sums) : call_(call), sums_(sums) {}

  void pool(int64_t index) {
    const RoiBins<T> roi(call_, index);
    const int64_t bins = call_.pooled_h * call_.pooled_w;
    image_ = static_cast<const Element*>(call_.input) + roi.image * call_.height * call_.width * call_.channels;
    Output* output = static_cast<Output*>(call_.output) + index * bins * call_.channels;
    for (int64_t bin = 0; bin < bins; ++bin, output += call_.channels) {
      if constexpr (std::is_same_v<Output, T>) {
        average(roi, index, bin, output);
      } else {
        average(roi, index, bin, sums_);
        store_numbers(output, sums_, call_.channels);
      }
    }
  }

 private:
  // Mean of the samples of one bin, all channels. The samples form a grid, neighbours share corners, and a corner's
  // weight is that of its row times that of its column: each is read once, with the sum of its weights.
  void average(const RoiBins<T>& roi, int64_t index, int64_t bin, T* output) const {
    for (int64_t c = 0; c < call_.channels; ++c) output[c] = 0;
    const typename RoiBins<T>::Corner begin = roi.corner(call_, index, bin);
    for_each_lines(begin.y, roi.step_y, roi.grid_h, call_.height, [&](Lines rows) {
      for (int i = 0; i < rows.count; ++i) rows.weights[i] *= roi.share;
      for_each_lines(begin.x, roi.step_x, roi.grid_w, call_.width,
                     [&](const Lines& columns) { add(rows, columns, output); });
    });
  }

  // Some rows or columns of pixels, ascending, and their weights.
  struct Lines {
    static constexpr int most = 16;

    int count = 0;
    int64_t at[most];
    T weights[most];

    bool full() const { return count > most - 2; }

    void add(const RoiAxis<T>& sample) {
      add(sample.low, sample.low_weight);
      add(sample.high, sample.high_weight);
    }

    // One of the last two, or a new one.
    void add(int64_t line, T weight) {
      for (int i = max(count - 2, 0); i < count; ++i) {
        if (at[i] == line) {
          weights[i] += weight;
          return;
        }
      }
      at[count] = line, weights[count] = weight;
      ++count;
    }
  };

  // Calls function(lines) for the lines of the samples along an axis, some at a time.
  template <class Function>
  static DCNZOO_INLINE void for_each_lines(T begin, T step, int64_t samples, int64_t size, const Function& function) {
    Lines lines;
    for (int64_t number = 0; number < samples; ++number) {
      const RoiAxis<T> sample(RoiBins<T>::sample_at(begin, step, number), size);
      if (!sample.inside) continue;
      if (lines.full()) {
        function(lines);
        lines.count = 0;
      }
      lines.add(sample);
    }
    if (lines.count > 0) function(lines);
  }

  void add(const Lines& rows, const Lines& columns, T* output) const {
    constexpr int64_t width = Simd<T>::width;
    int64_t c = 0;
    for (; c + 8 * width <= call_.channels; c += 8 * width) add_block<8>(rows, columns, c, output);
    for (; c + width <= call_.channels; c += width) add_block<1>(rows, columns, c, output);
    for (; c < call_.channels; ++c) {
      for (int i = 0; i < rows.count; ++i) {
        for (int j = 0; j < columns.count; ++j)
          output[c] += rows.weights[i] * columns.weights[j] * number(pixel(rows.at[i], columns.at[j])[c]);
      }
    }
  }

  template <int VECTORS>
  DCNZOO_INLINE void add_block(const Lines& rows, const Lines& columns, int64_t channel, T* output) const {
    using V = Simd<T>;
    typename V::vector sums[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sums[v] = V::load(output + channel + v * V::width);
    for (int i = 0; i < rows.count; ++i) {
      for (int j = 0; j < columns.count; ++j) {
        const Element* source = pixel(rows.at[i], columns.at[j]) + channel;
        const typename V::vector weight = V::splat(rows.weights[i] * columns.weights[j]);
        for (int v = 0; v < VECTORS; ++v) sums[v] += weight * load_vector(source + v * V::width);
      }
    }
    for (int v = 0; v < VECTORS; ++v) V::store(output + channel + v * V::width, sums[v]);
  }

  const Element* pixel(int64_t y, int64_t x) const { return image_ + (y * call_.width + x) * call_.channels; }

  const RoiPool& call_;
  T* const sums_;
  const Element* image_ = nullptr;
};

template <class Output>
size_t roi_scratch_bytes(const RoiPool& call) {
  if constexpr (std::is_same_v<Output, Computed<Output>>) return 0;
  return static_cast<size_t>(call.channels) * sizeof(Computed<Output>);
}

template <class Element, class Output>
void pool_rois(const RoiPool& call, int64_t begin, int64_t end, void* scratch) {
  RoiPooling<Element, Output> pooling(call, static_cast<Computed<Element>*>(scratch));
  for (int64_t index = begin; index < end; ++index) pooling.pool(index);
}

template <class Element, class Output = Element>
constexpr RoiPoolKernels roi_pool_kernels() {
  return {roi_scratch_bytes<Output>, pool_rois<Element, Output>};
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
