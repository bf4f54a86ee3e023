// The stem of a ResNet in one pass: 7×7 convolution with stride 2 and padding 3, ReLU, 3×3 maximum with
// stride 2 and padding 1. The map between the two, four times as large as the result, never leaves the cache.
#pragma once

#include "linear_kernel.h"

namespace dcnzoo::cpu {
namespace {

class StemBand {
 public:
  static constexpr int64_t kernel = 7, stride = 2, padding = 3;
  static constexpr int64_t tile_pixels = 96;  // of the convolution, multiplied at a time
  static constexpr int64_t ring = 3;          // rows of the convolution that a row of the maximum needs

  static int64_t conv_size(int64_t size) { return (size + 2 * padding - kernel) / stride + 1; }
  static int64_t pooled_size(int64_t size) { return (conv_size(size) - 1) / 2 + 1; }
  static int64_t depth(const Stem& call) { return kernel * kernel * call.in_channels; }

  static size_t scratch_bytes(const Stem& call) {
    const int64_t numel = tile_pixels * depth(call) + ring * conv_size(call.width) * call.out_channels;
    const LinearLayout<float> layout(call.out_channels, depth(call));
    return static_cast<size_t>(round_up(numel, 16)) * sizeof(float) + layout.scratch_bytes(tile_pixels);
  }

  StemBand(const Stem& call, float* scratch)
      : call_(call),
        conv_height_(conv_size(call.height)),
        conv_width_(conv_size(call.width)),
        tile_(scratch),
        rows_(scratch + tile_pixels * depth(call)),
        product_(rows_ + ring * conv_width_ * call.out_channels) {}

  // Rows [begin, end) of the result of one image.
  void run(int64_t image, int64_t begin, int64_t end) {
    input_ = call_.input + image * call_.height * call_.width * call_.in_channels;
    const int64_t pooled_width = pooled_size(call_.width);
    float* output = call_.output + image * pooled_size(call_.height) * pooled_width * call_.out_channels;
    int64_t next = max<int64_t>(0, 2 * begin - 1);  // row of the convolution
    for (int64_t y = begin; y < end; ++y) {
      for (; next < min(2 * y + 2, conv_height_); ++next) convolve_row(next);
      pool_row(y, pooled_width, output + y * pooled_width * call_.out_channels);
    }
  }

 private:
  using S = Simd<float>;

  float* conv_row(int64_t y) const { return rows_ + y % ring * conv_width_ * call_.out_channels; }

  void convolve_row(int64_t y) {
    for (int64_t x = 0; x < conv_width_; x += tile_pixels) {
      const int64_t count = min(tile_pixels, conv_width_ - x);
      for (int64_t i = 0; i < count; ++i) gather_window(y, x + i, tile_ + i * depth(call_));
      Linear product{};
      product.runs = 1, product.length = count;
      product.row_stride = product.in_channels = depth(call_);
      product.out_channels = call_.out_channels;
      product.input = tile_, product.packed_weight = call_.packed_weight, product.bias = call_.bias;
      product.output = conv_row(y) + x * call_.out_channels;
      product.relu = true;
      run_linear<float>(product, LinearSchedule{1, 1, 0}, 0, product_);
    }
  }

  // The 7×7 pixels under one output pixel, zeros outside the image.
  DCNZOO_INLINE void gather_window(int64_t y, int64_t x, float* target) const {
    const int64_t top = y * stride - padding, left = x * stride - padding, row = kernel * call_.in_channels;
    const int64_t first = max<int64_t>(0, -left), last = min(kernel, call_.width - left);  // columns inside
    for (int64_t i = 0; i < kernel; ++i, target += row) {
      const bool inside = top + i >= 0 && top + i < call_.height;
      const float* source = input_ + ((top + i) * call_.width + left) * call_.in_channels;
      if (inside && last - first == kernel) {
        copy(source, row, target);
        continue;
      }
      for (int64_t j = 0; j < row; ++j) target[j] = 0;
      if (inside) copy(source + first * call_.in_channels, (last - first) * call_.in_channels, target + first * call_.in_channels);
    }
  }

  // The last vector overlaps the one before it.
  static DCNZOO_INLINE void copy(const float* source, int64_t count, float* target) {
    int64_t i = 0;
    for (; i + S::width <= count; i += S::width) S::store(target + i, S::load(source + i));
    if (i == 0) {
      for (; i < count; ++i) target[i] = source[i];
    } else if (i < count) {
      S::store(target + count - S::width, S::load(source + count - S::width));
    }
  }

  void pool_row(int64_t y, int64_t width, float* output) const {
    const int64_t top = max<int64_t>(0, 2 * y - 1), bottom = min(2 * y + 2, conv_height_);
    for (int64_t x = 0; x < width; ++x, output += call_.out_channels) {
      const int64_t left = max<int64_t>(0, 2 * x - 1), right = min(2 * x + 2, conv_width_);
      int64_t c = 0;
      for (; c + S::width <= call_.out_channels; c += S::width) {
        S::store(output + c, maximum<S::vector>(top, bottom, left, right, c));
      }
      for (; c < call_.out_channels; ++c) output[c] = maximum<float>(top, bottom, left, right, c);
    }
  }

  // Of the channels from c on, over rows [top, bottom) and columns [left, right). NaN wins, as in PyTorch.
  template <class V>
  DCNZOO_INLINE V maximum(int64_t top, int64_t bottom, int64_t left, int64_t right, int64_t c) const {
    V best;
    __builtin_memcpy(&best, conv_row(top) + left * call_.out_channels + c, sizeof(V));
    for (int64_t i = top; i < bottom; ++i) {
      const float* row = conv_row(i) + c;
      for (int64_t j = left; j < right; ++j) {
        V value;
        __builtin_memcpy(&value, row + j * call_.out_channels, sizeof(V));
        best = value > best ? value : best;
        best = value != value ? value : best;
      }
    }
    return best;
  }

  const Stem& call_;
  const int64_t conv_height_, conv_width_;
  float *tile_, *rows_, *product_;
  const float* input_ = nullptr;
};

inline int64_t stem_bands(const Stem& call, int threads) {
  constexpr int64_t rows = 10;  // of the result: its first row of the convolution is computed twice
  const int64_t height = StemBand::pooled_size(call.height);
  return min(height, round_up(ceil_div(height, rows), threads));
}

inline void run_stem(const Stem& call, int64_t bands, int64_t task, void* scratch) {
  const int64_t height = StemBand::pooled_size(call.height), band = task % bands;
  StemBand(call, static_cast<float*>(scratch)).run(task / bands, height * band / bands, height * (band + 1) / bands);
}

constexpr StemKernels stem_kernels() { return {stem_bands, StemBand::scratch_bytes, run_stem}; }

}  // namespace
}  // namespace dcnzoo::cpu
