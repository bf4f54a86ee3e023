// Winograd's minimal filtering F(4×4, 3×3) (arXiv:1509.09308): a tile of 4×4 outputs needs 36
// multiplications per pair of channels instead of 144. For many small maps, as the mask heads', F(6×6, 3×3): 64 instead
// of 324, with ten times the rounding error; the maps are laid side by side, so that tiles reach from one into the next.
//
// A block of tiles at a time: its inputs are transformed into a matrix per point [tile × channel]; each is
// multiplied with its packed weights, a chunk of output channels at a time; the products are transformed back.
// Everything between input and output stays in the caches. Factor is what is multiplied: float, or a float16 to which
// the transformed input is rounded.
#pragma once

#include "dense.h"
#include "float16_gemm.h"
#include "gemm.h"
#include "linear_kernel.h"

namespace dcnzoo::cpu {
namespace {

// The one-dimensional transforms of F(TILE, 3).
template <int TILE>
struct Filtering;

// Interpolation at 0, ±p, ±q and infinity. With the usual ±1, ±2 the largest error is five times as large:
// the powers of these are balanced, and still exact in binary.
template <>
struct Filtering<4> {
  static constexpr int tile = 4, size = tile + 2;
  static constexpr float p = 0.625f, q = 1.5f, p2 = p * p, q2 = q * q;

  template <class V>
  static DCNZOO_INLINE void input(const V* d, V* r) {
    const V even_p = d[4] - q2 * d[2], odd_p = p * (d[3] - q2 * d[1]);
    const V even_q = d[4] - p2 * d[2], odd_q = q * (d[3] - p2 * d[1]);
    r[0] = d[4] - (p2 + q2) * d[2] + p2 * q2 * d[0];
    r[1] = even_p + odd_p;
    r[2] = even_p - odd_p;
    r[3] = even_q + odd_q;
    r[4] = even_q - odd_q;
    r[5] = d[5] - (p2 + q2) * d[3] + p2 * q2 * d[1];
  }
  template <class V>
  static DCNZOO_INLINE void output(const V* m, V* y) {
    const V even_p = m[1] + m[2], odd_p = m[1] - m[2];
    const V even_q = m[3] + m[4], odd_q = m[3] - m[4];
    y[0] = m[0] + even_p + even_q;
    y[1] = p * odd_p + q * odd_q;
    y[2] = p2 * even_p + q2 * even_q;
    y[3] = p2 * p * odd_p + q2 * q * odd_q + m[5];
  }
  static void weight(const double* g, double* u) {
    constexpr double a = p2, b = q2;
    u[0] = g[0] / (a * b);
    for (int i = 0; i < 2; ++i) {
      const double sign = i == 0 ? 1 : -1;
      u[1 + i] = (g[0] + sign * p * g[1] + a * g[2]) / (2 * a * (a - b));
      u[3 + i] = (g[0] + sign * q * g[1] + b * g[2]) / (2 * b * (b - a));
    }
    u[5] = g[2];
  }
};

// Interpolation at 0, ±p, ±q, ±r and infinity, of all points those with the least of the largest errors that are exact
// in binary.
template <>
struct Filtering<6> {
  static constexpr int tile = 6, size = tile + 2;
  static constexpr float p = 0.5f, q = 1.0f, r = 2.0f, p2 = p * p, q2 = q * q, r2 = r * r;

  template <class V>
  static DCNZOO_INLINE void input(const V* d, V* t) {
    constexpr float sum = p2 + q2 + r2, pairs = p2 * q2 + p2 * r2 + q2 * r2, product = p2 * q2 * r2;
    t[0] = d[6] - sum * d[4] + pairs * d[2] - product * d[0];
    points(p, q2 + r2, q2 * r2, d, t + 1);
    points(q, p2 + r2, p2 * r2, d, t + 3);
    points(r, p2 + q2, p2 * q2, d, t + 5);
    t[7] = d[7] - sum * d[5] + pairs * d[3] - product * d[1];
  }
  template <class V>
  static DCNZOO_INLINE void output(const V* m, V* y) {
    const V even_p = m[1] + m[2], odd_p = p * (m[1] - m[2]);
    const V even_q = m[3] + m[4], odd_q = q * (m[3] - m[4]);
    const V even_r = m[5] + m[6], odd_r = r * (m[5] - m[6]);
    y[0] = m[0] + even_p + even_q + even_r;
    y[1] = odd_p + odd_q + odd_r;
    y[2] = p2 * even_p + q2 * even_q + r2 * even_r;
    y[3] = p2 * odd_p + q2 * odd_q + r2 * odd_r;
    y[4] = p2 * p2 * even_p + q2 * q2 * even_q + r2 * r2 * even_r;
    y[5] = p2 * p2 * odd_p + q2 * q2 * odd_q + r2 * r2 * odd_r + m[7];
  }
  static void weight(const double* g, double* u) {
    u[0] = -g[0] / (p2 * q2 * r2);
    points(p, 2 * p2 * (p2 - q2) * (p2 - r2), g, u + 1);
    points(q, 2 * q2 * (q2 - p2) * (q2 - r2), g, u + 3);
    points(r, 2 * r2 * (r2 - p2) * (r2 - q2), g, u + 5);
    u[7] = g[2];
  }

 private:
  // The points x and -x of the input; `sum` and `product` of the squares of the two others.
  template <class V>
  static DCNZOO_INLINE void points(float x, float sum, float product, const V* d, V* t) {
    const V even = d[6] - sum * d[4] + product * d[2], odd = x * (d[5] - sum * d[3] + product * d[1]);
    t[0] = even + odd;
    t[1] = even - odd;
  }
  // The points x and -x of the weight.
  static void points(double x, double divisor, const double* g, double* u) {
    const double even = g[0] + x * x * g[2], odd = x * g[1];
    u[0] = (even + odd) / divisor;
    u[1] = (even - odd) / divisor;
  }
};

// The packed weights: [chunk of columns][point][piece of channels], each a matrix in panels.
template <class Factor, int TILE>
struct WinogradLayout {
  static constexpr int64_t points = Filtering<TILE>::size * Filtering<TILE>::size;
  // Products and transformed input are to stay in the second-level cache, while the chunk's weights pass through it. It
  // is larger where vectors are: 1 to 2 MiB instead of 256 to 512 KiB.
  static constexpr int64_t chunk_columns = DCNZOO_VECTOR_BYTES == 64 ? 256 : 64, longest_piece = 256;
  static constexpr int width = Simd<float>::width, column_width = Multiplier<Factor>::width;

  int64_t channels, columns;
  int64_t padded_channels;  // a row of transformed input

  WinogradLayout(int64_t out_channels, int64_t in_channels)
      : channels(in_channels),
        columns(out_channels),
        padded_channels(round_up(in_channels, width)) {}

  int64_t chunks() const { return ceil_div(columns, chunk_columns); }
  int64_t columns_of(int64_t chunk) const { return min(chunk_columns, columns - chunk * chunk_columns); }
  int64_t padded_columns_of(int64_t chunk) const { return round_up(columns_of(chunk), column_width); }
  int64_t piece_channels() const {
    return min(packed_channels(), round_up(ceil_div(channels, ceil_div(channels, longest_piece)), width));
  }
  int64_t packed_channels() const { return round_up(channels, Multiplier<Factor>::depth_multiple); }
  int64_t offset(int64_t chunk, int64_t point) const {
    return packed_channels() * (points * chunk * chunk_columns + point * padded_columns_of(chunk));
  }
  int64_t numel() const { return points * packed_channels() * round_up(columns, column_width); }
};

template <int TILE>
void transform_weight(const float* weight, float* transformed) {
  constexpr int size = Filtering<TILE>::size;
  double rows[3][size], columns[3], result[size];
  for (int i = 0; i < 3; ++i) {
    const double g[3] = {weight[3 * i], weight[3 * i + 1], weight[3 * i + 2]};
    Filtering<TILE>::weight(g, rows[i]);
  }
  for (int j = 0; j < size; ++j) {
    for (int i = 0; i < 3; ++i) columns[i] = rows[i][j];
    Filtering<TILE>::weight(columns, result);
    for (int i = 0; i < size; ++i) transformed[i * size + j] = static_cast<float>(result[i]);
  }
}

// Packs the input channels [begin, end).
template <class Factor, int TILE>
void pack_winograd(const float* weight, int64_t out_channels, int64_t in_channels, void* packed, int64_t begin,
                   int64_t end) {
  constexpr int64_t panel = panel_columns<Factor>;
  const WinogradLayout<Factor, TILE> layout(out_channels, in_channels);
  float transformed[layout.points] = {};
  for (int64_t chunk = 0; chunk < layout.chunks(); ++chunk) {
    const int64_t padded = layout.padded_columns_of(chunk);
    for (int64_t channel = begin; channel < (end == in_channels ? layout.packed_channels() : end); ++channel) {
      const int64_t piece = channel / layout.piece_channels() * layout.piece_channels();
      const int64_t depth = min(layout.piece_channels(), layout.packed_channels() - piece);
      for (int64_t column = 0; column < padded; ++column) {
        const int64_t row = chunk * layout.chunk_columns + column;
        const bool real = row < layout.columns && channel < in_channels;  // the rest are zeros
        if (real) transform_weight<TILE>(weight + (row * layout.channels + channel) * 9, transformed);
        const int64_t first = column / panel * panel, columns = min(panel, padded - first);
        auto* target = static_cast<MultiplierB<Factor>*>(packed) + layout.offset(chunk, 0) + piece * padded +
                       first * depth + Multiplier<Factor>::place(channel - piece, column - first, columns);
        for (int64_t point = 0; point < layout.points; ++point)
          store_number(target + point * layout.packed_channels() * padded, real ? transformed[point] : 0.0f);
      }
    }
  }
}

// Vectors whose last elements may not exist.
struct Partial {
  using S = Simd<float>;
  static DCNZOO_INLINE S::vector load(const float* source, int64_t count) {
    if (count >= S::width) return S::load(source);
    float elements[S::width] = {};
    for (int64_t i = 0; i < count; ++i) elements[i] = source[i];
    return S::load(elements);
  }
  static DCNZOO_INLINE void store(float* target, S::vector value, int64_t count) {
    if (count >= S::width) return S::store(target, value);
    for (int64_t i = 0; i < count; ++i) target[i] = value[i];
  }
};

// The map that is cut into tiles: an image's own, or a mosaic of all.
struct PlainMaps {
  const Winograd& call;

  int64_t count() const { return call.images; }
  int64_t height() const { return call.height; }
  int64_t width() const { return call.width; }

  // The pixel's number in all images; negative for none.
  int64_t pixel(int64_t map, int64_t y, int64_t x) const {
    const bool inside = y >= 0 && y < call.height && x >= 0 && x < call.width;
    return inside ? (map * call.height + y) * call.width + x : -1;
  }
};

// The images in two columns, with a line of zeros between neighbours, which serves both as padding.
struct Mosaic {
  const Winograd& call;

  int64_t count() const { return 1; }
  int64_t height() const { return ceil_div(call.images, 2) * (call.height + 1) - 1; }
  int64_t width() const { return min<int64_t>(call.images, 2) * (call.width + 1) - 1; }

  int64_t pixel(int64_t, int64_t y, int64_t x) const {
    if (y < 0 || x < 0) return -1;
    const int64_t column = x > call.width, image = y / (call.height + 1) * 2 + column;
    y %= call.height + 1;
    x -= column * (call.width + 1);
    const bool inside = image < call.images && y < call.height && x < call.width;
    return inside ? (image * call.height + y) * call.width + x : -1;
  }
};

template <class Factor, int TILE, class Maps>
class WinogradBlock {
 public:
  using F = Filtering<TILE>;
  using Layout = WinogradLayout<Factor, TILE>;
  static constexpr int tile = F::tile, size = F::size, points = size * size;
  // Off a multiple of 4096 bytes, so that the matrices of the points do not share cache sets.
  static constexpr int64_t stagger = 16, input_stagger = stagger * sizeof(float) / sizeof(Factor);

  static int64_t tiles(const Winograd& call) {
    const Maps maps{call};
    return maps.count() * ceil_div(maps.height(), tile) * ceil_div(maps.width(), tile);
  }

  static size_t scratch_bytes(const Winograd& call, const Layout& layout, int64_t block_tiles) {
    const int64_t pixels = call.point_weight == nullptr ? 0 : block_tiles * tile * tile;
    const int64_t features = pixels * (call.out_channels + call.point_channels);
    const int64_t transformed = points * (block_tiles * layout.padded_channels + input_stagger);
    const int64_t products = points * (block_tiles * layout.chunk_columns + stagger);
    return static_cast<size_t>(round_up(transformed, 16)) * sizeof(Factor) +
           static_cast<size_t>(round_up(products + layout.padded_channels + features, 16)) * sizeof(float);
  }

  WinogradBlock(const Winograd& call, const WinogradSchedule& schedule, int64_t task, float* scratch)
      : call_(call), maps_{call}, layout_(call.out_channels, call.in_channels) {
    const int64_t part = task % schedule.parts, block = task / schedule.parts;
    begin_ = tiles(call) * block / schedule.blocks;
    end_ = tiles(call) * (block + 1) / schedule.blocks;
    chunk_begin_ = layout_.chunks() * part / schedule.parts;
    chunk_end_ = layout_.chunks() * (part + 1) / schedule.parts;
    zeros_ = scratch;
    input_stride_ = (end_ - begin_) * layout_.padded_channels + input_stagger;
    product_stride_ = (end_ - begin_) * layout_.chunk_columns + stagger;
    products_ = zeros_ + layout_.padded_channels;
    features_ = products_ + points * product_stride_;
    const int64_t pixels = call.point_weight == nullptr ? 0 : (end_ - begin_) * tile * tile;
    point_sums_ = features_ + pixels * call.out_channels;
    transformed_ = reinterpret_cast<Factor*>(point_sums_ + pixels * call.point_channels);
  }

  void run() {
    for (int64_t c = 0; c < layout_.padded_channels; ++c) zeros_[c] = 0;
    for (int64_t index = begin_; index < end_; ++index) transform_input(index);
    for (int64_t chunk = chunk_begin_; chunk < chunk_end_; ++chunk) {
      for (int64_t point = 0; point < points; ++point) multiply(chunk, point);
      for (int64_t index = begin_; index < end_; ++index) transform_output(chunk, index);
    }
    if (call_.point_weight != nullptr) convolve_points();
  }

 private:
  using S = Simd<float>;
  using V = S::vector;

  struct Place {
    int64_t map, y, x;  // of the tile's first output pixel
  };

  Place place(int64_t index) const {
    const int64_t tiles_y = ceil_div(maps_.height(), tile), tiles_x = ceil_div(maps_.width(), tile);
    const int64_t row = index / tiles_x;
    return {row / tiles_y, row % tiles_y * tile, index % tiles_x * tile};
  }

  void transform_input(int64_t index) {
    const Place at = place(index);
    const float* pixels[points];  // those outside the map are a row of zeros
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) {
        const int64_t pixel = maps_.pixel(at.map, at.y + i - 1, at.x + j - 1);
        pixels[i * size + j] = pixel >= 0 ? call_.input + pixel * call_.in_channels : zeros_;
      }
    }
    const int64_t step = layout_.piece_channels();
    for (int64_t piece = 0; piece < layout_.channels; piece += step) {
      const int64_t depth = min(step, layout_.channels - piece);
      Factor* target = transformed_ + piece * (end_ - begin_) + (index - begin_) * round_up(depth, S::width);
      int64_t c = 0;
      for (; c + S::width <= depth; c += S::width) transform_input_vector(pixels, piece + c, S::width, target + c);
      if (c < depth) transform_input_vector(pixels, piece + c, depth - c, target + c);
    }
  }

  DCNZOO_INLINE void transform_input_vector(const float* const* pixels, int64_t c, int64_t count, Factor* target) const {
    V half[size][size];
#pragma GCC unroll 8
    for (int j = 0; j < size; ++j) {
      V d[size], r[size];
#pragma GCC unroll 8
      for (int i = 0; i < size; ++i) d[i] = Partial::load(pixels[i * size + j] + c, count);
      F::input(d, r);
#pragma GCC unroll 8
      for (int i = 0; i < size; ++i) half[i][j] = r[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < size; ++i) {
      V r[size];
      F::input(half[i], r);
#pragma GCC unroll 8
      for (int j = 0; j < size; ++j) store_vector(target + (i * size + j) * input_stride_, r[j]);
    }
  }

  void multiply(int64_t chunk, int64_t point) {
    const auto* b = static_cast<const MultiplierB<Factor>*>(call_.packed_weight) + layout_.offset(chunk, point);
    const Factor* a = transformed_ + point * input_stride_;
    const int64_t step = layout_.piece_channels();
    for (int64_t piece = 0; piece < layout_.channels; piece += step) {
      const int64_t depth = min(step, layout_.packed_channels() - piece);
      matrix_product(Rows{1, end_ - begin_, 0}, layout_.padded_columns_of(chunk), depth, a + piece * (end_ - begin_),
                     round_up(depth, S::width), b + piece * layout_.padded_columns_of(chunk),
                     products_ + point * product_stride_, layout_.chunk_columns, Epilogue<float>{piece > 0, false, nullptr},
                     point + 1 < points ? input_stride_ : -point * input_stride_);
    }
  }

  void transform_output(int64_t chunk, int64_t index) {
    const Place at = place(index);
    const int64_t first = chunk * layout_.chunk_columns, count = layout_.columns_of(chunk);
    const float* source = products_ + (index - begin_) * layout_.chunk_columns;
    float* pixels[tile * tile];  // null for those outside the map
    for (int i = 0; i < tile; ++i) {
      for (int j = 0; j < tile; ++j) {
        const int64_t pixel = maps_.pixel(at.map, at.y + i, at.x + j);
        float* target = call_.point_weight == nullptr ? call_.output + pixel * call_.out_channels
                                                      : feature(index, i, j);
        pixels[i * tile + j] = pixel >= 0 ? target + first : nullptr;
      }
    }
    for (int64_t c = 0; c < count; c += S::width) {
      V y[tile][tile];
      transform_output_vector(source + c, y);
      const V bias = call_.bias == nullptr ? V{} : Partial::load(call_.bias + first + c, count - c);
      for (int i = 0; i < tile; ++i) {
        for (int j = 0; j < tile; ++j) {
          float* target = pixels[i * tile + j];
          if (target == nullptr) continue;
          V value = y[i][j] + bias;
          if (call_.relu) value = value < V{} ? V{} : value;  // keeps NaN
          Partial::store(target + c, value, count - c);
        }
      }
    }
  }

  // Of a pixel of a tile, where a 1×1 convolution follows.
  float* feature(int64_t index, int i, int j) const {
    return features_ + (((index - begin_) * tile + i) * tile + j) * call_.out_channels;
  }

  // Pixels outside the map have numbers of earlier tasks as features, and are left out of the output.
  void convolve_points() const {
    Linear product{};
    product.runs = 1, product.length = (end_ - begin_) * tile * tile;
    product.row_stride = product.in_channels = call_.out_channels;
    product.out_channels = call_.point_channels;
    product.input = features_, product.packed_weight = call_.point_weight, product.bias = call_.point_bias;
    product.output = point_sums_;
    run_linear<float>(product, LinearSchedule{1, 1, 0}, 0, nullptr);
    const float* sums = point_sums_;
    for (int64_t index = begin_; index < end_; ++index) {
      const Place at = place(index);
      for (int i = 0; i < tile; ++i) {
        for (int j = 0; j < tile; ++j, sums += call_.point_channels) {
          const int64_t pixel = maps_.pixel(at.map, at.y + i, at.x + j);
          if (pixel < 0) continue;
          for (int64_t c = 0; c < call_.point_channels; ++c) call_.output[pixel * call_.point_channels + c] = sums[c];
        }
      }
    }
  }

  DCNZOO_INLINE void transform_output_vector(const float* source, V (*y)[tile]) const {
    V half[tile][size];
#pragma GCC unroll 8
    for (int j = 0; j < size; ++j) {
      V m[size], r[tile];
#pragma GCC unroll 8
      for (int i = 0; i < size; ++i) m[i] = S::load(source + (i * size + j) * product_stride_);
      F::output(m, r);
#pragma GCC unroll 6
      for (int i = 0; i < tile; ++i) half[i][j] = r[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < tile; ++i) F::output(half[i], y[i]);
  }

  const Winograd& call_;
  const Maps maps_;
  const Layout layout_;
  int64_t begin_, end_, chunk_begin_, chunk_end_;  // tiles and chunks of columns of this task
  int64_t input_stride_, product_stride_;          // from point to point
  float *zeros_, *products_, *features_, *point_sums_;
  Factor* transformed_;
};

template <class Factor, int TILE>
int64_t winograd_packed_numel(int64_t out_channels, int64_t in_channels) {
  return WinogradLayout<Factor, TILE>(out_channels, in_channels).numel();
}

template <class Factor, int TILE, class Maps>
WinogradSchedule schedule_winograd(const Winograd& call, int threads) {
  // Their matrices are somewhat larger than the second-level cache.
  constexpr int64_t most_tiles = DCNZOO_VECTOR_BYTES == 64 ? (TILE == 4 ? 32 : 24) : (TILE == 4 ? 48 : 32);
  const WinogradLayout<Factor, TILE> layout(call.out_channels, call.in_channels);
  const int64_t tiles = WinogradBlock<Factor, TILE, Maps>::tiles(call);
  WinogradSchedule schedule{};
  schedule.blocks = ceil_div(tiles, most_tiles);
  const bool whole = call.point_weight != nullptr;  // it takes all channels at once
  schedule.parts = whole ? 1 : min(layout.chunks(), ceil_div(threads, schedule.blocks));
  if (schedule.parts == 1) schedule.blocks = min(tiles, round_up(schedule.blocks, threads));
  schedule.scratch_bytes = WinogradBlock<Factor, TILE, Maps>::scratch_bytes(call, layout, ceil_div(tiles, schedule.blocks));
  return schedule;
}

template <class Factor, int TILE, class Maps>
void run_winograd(const Winograd& call, const WinogradSchedule& schedule, int64_t task, void* scratch) {
  WinogradBlock<Factor, TILE, Maps>(call, schedule, task, static_cast<float*>(scratch)).run();
}

template <class Factor, int TILE, class Maps>
constexpr WinogradKernels winograd_kernels() {
  return {winograd_packed_numel<Factor, TILE>, pack_winograd<Factor, TILE>, schedule_winograd<Factor, TILE, Maps>,
          run_winograd<Factor, TILE, Maps>};
}

}  // namespace
}  // namespace dcnzoo::cpu
