// The stem of a ResNet in one pass: 7×7 convolution with stride 2 and padding 3, ReLU, 3×3 maximum with
// stride 2 and padding 1. The map between the two, four times as large as the result, never leaves the cache.
//
// The convolution is Winograd's, too: as an image of half the size whose pixels hold 2×2 of the original ones, it has a 4×4
// kernel with stride 1 and four times the channels. By F(3×3, 4×4) that takes 36 · 4 multiplications per channel for 9
// outputs instead of 49 · 9, a third, with rounding errors like those of the plain sum.
#pragma once

#include "linear_kernel.h"
#include "winograd_kernel.h"

namespace dcnzoo::cpu {
namespace {

// F(3, 4): its points are those of F(4, 3), and therefore the transform of the input.
struct StemFiltering {
  using Points = Filtering<4>;
  static constexpr int tile = 3, taps = 4, size = tile + taps - 1;
  static constexpr float p = Points::p, q = Points::q, p2 = Points::p2, q2 = Points::q2;

  template <class V>
  static DCNZOO_INLINE void input(const V* d, V* r) {
    Points::input(d, r);
  }
  template <class V>
  static DCNZOO_INLINE void output(const V* m, V* y) {
    const V even_p = m[1] + m[2], even_q = m[3] + m[4];
    y[0] = m[0] + even_p + even_q;
    y[1] = p * (m[1] - m[2]) + q * (m[3] - m[4]);
    y[2] = p2 * even_p + q2 * even_q + m[5];
  }
  static void weight(const double* g, double* u) {
    constexpr double a = p2, b = q2;
    u[0] = g[0] / (a * b);
    for (int i = 0; i < 2; ++i) {
      const double x = i == 0 ? p : -p, z = i == 0 ? q : -q;
      u[1 + i] = (g[0] + x * g[1] + a * (g[2] + x * g[3])) / (2 * a * (a - b));
      u[3 + i] = (g[0] + z * g[1] + b * (g[2] + z * g[3])) / (2 * b * (b - a));
    }
    u[5] = g[3];
  }
};

// The packed weights: of each point a linear layer.
struct StemLayout {
  static constexpr int64_t kernel = 7, points = StemFiltering::size * StemFiltering::size;

  int64_t depth, padded_depth;  // channels of a pixel of the halved image: (row, column, channel)
  LinearLayout<float> linear;

  StemLayout(int64_t out_channels, int64_t in_channels)
      : depth(4 * in_channels), padded_depth(round_up(depth, Simd<float>::width)), linear(out_channels, depth) {}

  int64_t numel() const { return points * linear.numel(); }
};

inline int64_t stem_packed_numel(int64_t out_channels, int64_t in_channels) {
  return StemLayout(out_channels, in_channels).numel();
}

// `dense` are points × out_channels × 4 · in_channels numbers to work with.
inline void pack_stem(const float* weight, int64_t out_channels, int64_t in_channels, float* dense, float* packed) {
  using F = StemFiltering;
  const StemLayout layout(out_channels, in_channels);
  const int64_t matrix = out_channels * layout.depth;
  for (int64_t out = 0; out < out_channels; ++out) {
    for (int64_t channel = 0; channel < layout.depth; ++channel) {
      const int64_t row = channel / (2 * in_channels), column = channel / in_channels % 2;
      const float* taps = weight + (out * in_channels + channel % in_channels) * layout.kernel * layout.kernel;
      float* target = dense + out * layout.depth + channel;
      transform_axes<double, F::taps, F::size>(
          F::weight,
          [&](int j, int i) {  // the kernel has 8×8 taps, of which the first row and column are 0
            const int64_t y = 2 * i + row - 1, x = 2 * j + column - 1;
            return y < 0 || x < 0 ? 0.0 : static_cast<double>(taps[y * layout.kernel + x]);
          },
          [&](int j, const double* column) {
            for (int i = 0; i < F::size; ++i) target[(i * F::size + j) * matrix] = static_cast<float>(column[i]);
          });
    }
  }
  for (int64_t point = 0; point < layout.points; ++point) {
    pack_linear<float>(dense + point * matrix, out_channels, layout.depth, packed + point * layout.linear.numel(), 0,
                       layout.linear.pieces());
  }
}

// How the result is cut into blocks, each a task. At its borders rows and columns of the convolution are computed twice, and a
// block's products should stay in the cache.
struct StemBlocks {
  static constexpr int64_t most_rows = 10, most_columns = 40;

  int64_t height, width, rows, columns;  // of the result; blocks per column and row of it

  explicit StemBlocks(const Stem& call)
      : height(stem_size(call.height)),
        width(stem_size(call.width)),
        rows(ceil_div(height, most_rows)),
        columns(ceil_div(width, most_columns)) {}

  int64_t count() const { return rows * columns; }
};

class StemBlock {
 public:
  using F = StemFiltering;
  static constexpr int tile = F::tile, size = F::size, points = size * size;
  static constexpr int64_t ring = 2 * tile;    // rows of the convolution: of a row of tiles, and what is left of that before
  static constexpr int64_t stagger = 16;       // as in WinogradBlock

  static size_t scratch_bytes(const Stem& call) {
    const StemLayout layout(call.out_channels, call.in_channels);
    const StemBlocks blocks(call);
    const int64_t most_tiles = tiles_over(ceil_div(blocks.width, blocks.columns));
    const int64_t floats = pixels_numel(layout, most_tiles) + points * input_stride(layout, most_tiles) +
                           points * product_stride(call, most_tiles) + S::width + ring_numel(call, most_tiles);
    return static_cast<size_t>(round_up(floats, 16)) * sizeof(float) + layout.linear.scratch_bytes(most_tiles);
  }

  StemBlock(const Stem& call, int64_t task, float* scratch)
      : call_(call), layout_(call.out_channels, call.in_channels), conv_height_(stem_conv_size(call.height)),
        conv_width_(stem_conv_size(call.width)) {
    const StemBlocks blocks(call);
    const int64_t image = task / blocks.count(), row = task % blocks.count() / blocks.columns, column = task % blocks.columns;
    begin_y_ = blocks.height * row / blocks.rows, end_y_ = blocks.height * (row + 1) / blocks.rows;
    begin_x_ = blocks.width * column / blocks.columns, end_x_ = blocks.width * (column + 1) / blocks.columns;
    input_ = call.input + image * call.height * call.width * call.in_channels;
    output_ = call.output + image * blocks.height * blocks.width * call.out_channels;
    output_width_ = blocks.width;
    tiles_ = tiles_over(end_x_ - begin_x_);
    pixels_ = scratch;
    transformed_ = pixels_ + pixels_numel(layout_, tiles_);
    products_ = transformed_ + points * input_stride(layout_, tiles_);
    rows_ = products_ + points * product_stride(call, tiles_) + S::width;
    product_scratch_ = scratch + round_up(rows_ + ring_numel(call, tiles_) - scratch, 16);
  }

  void run() {
    for (int64_t i = 0; i < pixels_numel(layout_, tiles_); ++i) pixels_[i] = 0;
    const int64_t conv_rows = 2 * (end_y_ - begin_y_) + 1;
    int64_t y = begin_y_;
    for (int64_t row = 0; row < conv_rows; row += tile) {
      gather_pixels(row);
      for (int64_t index = 0; index < tiles_; ++index) transform_input(index, row);
      for (int64_t point = 0; point < points; ++point) multiply(point);
      for (int64_t index = 0; index < tiles_; ++index) transform_output(index, row);
      for (; y < end_y_ && 2 * (y - begin_y_) + 2 < row + tile; ++y) pool_row(y);
    }
  }

 private:
  using S = Simd<float>;
  using V = S::vector;

  static int64_t tiles_over(int64_t pooled) { return ceil_div(2 * pooled + 1, tile); }
  static int64_t pixel_columns(int64_t tiles) { return tiles * tile + F::taps - 1; }
  static int64_t pixels_numel(const StemLayout& layout, int64_t tiles) {
    return size * pixel_columns(tiles) * layout.padded_depth;
  }
  static int64_t input_stride(const StemLayout& layout, int64_t tiles) { return tiles * layout.padded_depth + stagger; }
  static int64_t product_stride(const Stem& call, int64_t tiles) { return tiles * call.out_channels + stagger; }
  static int64_t ring_numel(const Stem& call, int64_t tiles) { return ring * tiles * tile * call.out_channels; }

  // The convolution's first row and column, outside the map at its border.
  int64_t top() const { return 2 * begin_y_ - 1; }
  int64_t left() const { return 2 * begin_x_ - 1; }

  float* conv_row(int64_t row) const { return rows_ + row % ring * tiles_ * tile * call_.out_channels; }

  // Row i of those of the halved image that the tiles of a row of the convolution read. What the next tiles read, too, stays.
  float* pixel_row(int64_t row, int64_t i) const {
    return pixels_ + (row + i) % size * pixel_columns(tiles_) * layout_.padded_depth;
  }

  // What the tiles of a row need of the halved image beside what those of the row before needed.
  void gather_pixels(int64_t row) const {
    for (int64_t i = row == 0 ? 0 : size - tile; i < size; ++i) {
      for (int64_t odd = 0; odd < 2; ++odd) {
        float* target = pixel_row(row, i) + odd * 2 * call_.in_channels;
        const int64_t y = 2 * (top() + row - 2 + i) + odd;
        if (call_.in_channels == 3) {
          gather_row<3>(y, target);
        } else {
          gather_row<0>(y, target);
        }
      }
    }
  }

  // Pairs of columns of a row of the image, zeros outside. CHANNELS are those of the input, or 0 for any.
  template <int CHANNELS>
  void gather_row(int64_t y, float* target) const {
    const int64_t channels = CHANNELS != 0 ? CHANNELS : call_.in_channels, columns = pixel_columns(tiles_);
    const int64_t first = 2 * (left() - 2);  // column
    const bool inside = y >= 0 && y < call_.height;
    const float* source = input_ + (inside ? y : 0) * call_.width * channels;
    const float* ahead = source + 2 * tile * call_.width * channels;  // what the next row of tiles reads
    for (int64_t j = 0; j < columns; ++j, target += layout_.padded_depth) {
      const int64_t x = first + 2 * j;
      __builtin_prefetch(ahead + x * channels);
      if (inside && x >= 0 && x + 1 < call_.width) {
        for (int64_t c = 0; c < 2 * channels; ++c) target[c] = source[x * channels + c];
        continue;
      }
      for (int64_t c = 0; c < 2 * channels; ++c) {
        const int64_t column = x + c / channels;
        target[c] = inside && column >= 0 && column < call_.width ? source[x * channels + c] : 0;
      }
    }
  }

  void transform_input(int64_t index, int64_t row) const {
    const int64_t stride = input_stride(layout_, tiles_);
    const float* rows[size];
    for (int i = 0; i < size; ++i) rows[i] = pixel_row(row, i) + index * tile * layout_.padded_depth;
    for (int64_t c = 0; c < layout_.padded_depth; c += S::width) {
      float* target = transformed_ + index * layout_.padded_depth + c;
      transform_axes<V, size, size>(
          [](const V* d, V* r) __attribute__((always_inline)) { F::input(d, r); },
          [=](int i, int j) __attribute__((always_inline)) { return S::load(rows[i] + j * layout_.padded_depth + c); },
          [=](int i, const V* results) __attribute__((always_inline)) {
#pragma GCC unroll 6
            for (int j = 0; j < size; ++j) S::store(target + (i * size + j) * stride, results[j]);
          });
    }
  }

  void multiply(int64_t point) const {
    Linear product{};
    product.runs = 1, product.length = tiles_;
    product.row_stride = layout_.padded_depth, product.in_channels = layout_.depth;
    product.out_channels = call_.out_channels;
    product.input = transformed_ + point * input_stride(layout_, tiles_);
    product.packed_weight = call_.packed_weight + point * layout_.linear.numel();
    product.output = products_ + point * product_stride(call_, tiles_);
    run_linear<float>(product, LinearSchedule{1, 1, 0}, 0, product_scratch_);
  }

  void transform_output(int64_t index, int64_t row) const {
    const int64_t stride = product_stride(call_, tiles_), channels = call_.out_channels;
    for (int64_t c = 0; c < channels; c += S::width) {
      const float* source = products_ + index * channels + c;
      const V bias = call_.bias == nullptr ? V{} : Partial::load(call_.bias + c, channels - c);
      transform_axes<V, size, tile>(
          [](const V* m, V* r) __attribute__((always_inline)) { F::output(m, r); },
          [=](int i, int j) __attribute__((always_inline)) { return S::load(source + (i * size + j) * stride); },
          [=](int i, const V* y) __attribute__((always_inline)) {
            float* target = conv_row(row + i) + index * tile * channels + c;
#pragma GCC unroll 3
            for (int j = 0; j < tile; ++j) {
              V value = y[j] + bias;
              value = value < V{} ? V{} : value;  // keeps NaN
              Partial::store(target + j * channels, value, channels - c);
            }
          });
    }
  }

  void pool_row(int64_t y) const {
    const int64_t channels = call_.out_channels;
    const float* rows[3];
    for (int i = 0; i < 3; ++i) rows[i] = conv_row(min(max<int64_t>(0, 2 * y - 1 + i), conv_height_ - 1) - top());
    float* output = output_ + (y * output_width_ + begin_x_) * channels;
    for (int64_t x = begin_x_; x < end_x_; ++x, output += channels) {
      const int64_t begin = max<int64_t>(0, 2 * x - 1) - left(), end = min(2 * x + 2, conv_width_) - left();
      int64_t c = 0;
      for (; c + S::width <= channels; c += S::width) S::store(output + c, maximum<V>(rows, begin, end, c));
      for (; c < channels; ++c) output[c] = maximum<float>(rows, begin, end, c);
    }
  }

  // Of the channels from c on, over three rows, which may be the same, and columns [left, right). NaN wins, as in PyTorch: the
  // values are not negative, so that their sum is none unless one of them is.
  template <class T>
  DCNZOO_INLINE T maximum(const float* const* rows, int64_t left, int64_t right, int64_t c) const {
    T best{}, sum{};
    for (int64_t j = left; j < right; ++j) {
      for (int i = 0; i < 3; ++i) {
        T value;
        __builtin_memcpy(&value, rows[i] + j * call_.out_channels + c, sizeof(T));
        best = value > best ? value : best;
        sum += value;
      }
    }
    return sum != sum ? sum : best;
  }

  const Stem& call_;
  const StemLayout layout_;
  const int64_t conv_height_, conv_width_;
  int64_t begin_y_, end_y_, begin_x_, end_x_;  // of the result
  int64_t tiles_, output_width_;
  const float* input_;  // of the image
  float* output_;
  float *pixels_, *transformed_, *products_, *rows_, *product_scratch_;
};

inline int64_t stem_tasks(const Stem& call) { return call.images * StemBlocks(call).count(); }

inline void run_stem(const Stem& call, int64_t task, void* scratch) { StemBlock(call, task, static_cast<float*>(scratch)).run(); }

constexpr StemKernels stem_kernels() {
  return {stem_packed_numel, pack_stem, stem_tasks, StemBlock::scratch_bytes, run_stem};
}

}  // namespace
}  // namespace dcnzoo::cpu
