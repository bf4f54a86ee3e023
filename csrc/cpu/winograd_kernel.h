// Winograd's minimal filtering F(4×4, 3×3) (arXiv:1509.09308): a tile of 4×4 outputs needs 36
// multiplications per pair of channels instead of 144. For maps of 14×14, as the mask heads', F(7×7, 3×3): 81 instead
// of 441, with ten times the rounding error. With factors of bfloat16 F(3×3, 3×3): 25 instead of 81, with half the rounding
// error of F(4×4, 3×3); and in the mask heads, as with float16, F(5×5, 3×3).
//
// A block of tiles at a time: its inputs are transformed into a matrix per point [tile × channel]; each is
// multiplied with its packed weights, a chunk of output channels at a time; the products are transformed back.
// Everything between input and output stays in the caches. Factor is what is multiplied: float, or 16 bits to which
// the transformed input is rounded.
#pragma once

#include "dense.h"
#include "gemm.h"
#include "half_factor.h"
#include "linear_kernel.h"

namespace dcnzoo::cpu {
namespace {

// Interpolation at 0 and pairs ±x of points. Of those in sixteenths, these have about the least errors.
template <int TILE>
struct PairedPoints;
template <>
struct PairedPoints<3> {
  static constexpr float x[] = {0.8125f, 2.5f};
};
template <>
struct PairedPoints<5> {
  static constexpr float x[] = {0.5625f, 1.25f, 3.5f};
};
template <>
struct PairedPoints<7> {
  static constexpr float x[] = {0.5f, 0.875f, 1.5f, 4.0f};
};

// A point's polynomial is the product of (X - other point) over all others: in X², but for a factor of it.
template <int TILE>
struct PairedTransforms {
  static constexpr int pairs = (TILE + 1) / 2;

  // The coefficients, with alternating signs, from the highest power on: of each pair's points, and last those of 0. They are
  // scaled by a power of two to a sum of about 1, so that transformed inputs are about as large as the inputs.
  float coefficient[pairs + 1][pairs + 1] = {};
  double divisor[pairs + 1] = {};  // of the weight: the products themselves, scaled likewise
  float power[TILE][pairs] = {};

  constexpr PairedTransforms() {
    const auto& x = PairedPoints<TILE>::x;
    for (int k = 0; k <= pairs; ++k) {
      double polynomial[pairs + 1] = {1}, product = k < pairs ? 2.0 * x[k] * x[k] : pairs % 2 == 0 ? 1 : -1, sum = 0;
      for (int j = 0; j < pairs; ++j) {
        if (j == k) continue;
        const double square = static_cast<double>(x[j]) * x[j];
        for (int i = pairs; i > 0; --i) polynomial[i] -= square * polynomial[i - 1];
        product *= k < pairs ? static_cast<double>(x[k]) * x[k] - square : square;
      }
      for (int i = 0; i <= pairs; ++i) sum += polynomial[i] < 0 ? -polynomial[i] : polynomial[i];
      double scale = 1;
      for (; sum * scale > 1.5; scale /= 2) {}
      for (int i = 0; i <= pairs; ++i) coefficient[k][i] = static_cast<float>(scale * polynomial[i]);
      divisor[k] = scale * product;
    }
    for (int k = 0; k < pairs; ++k) {
      power[0][k] = 1;
      for (int i = 1; i < TILE; ++i) power[i][k] = power[i - 1][k] * x[k];
    }
  }
};

// The one-dimensional transforms of F(TILE, 3).
template <int TILE>
struct Filtering {
  static constexpr int tile = TILE, size = tile + 2, pairs = (tile + 1) / 2;
  static constexpr PairedTransforms<TILE> transforms{};

  template <class V>
  static DCNZOO_INLINE void input(const V* d, V* t) {
    t[0] = filter<pairs>(d + size - 1, pairs);
#pragma GCC unroll 4
    for (int k = 0; k < pairs; ++k) {
      const V even = filter<pairs - 1>(d + size - 1, k), odd = PairedPoints<TILE>::x[k] * filter<pairs - 1>(d + size - 2, k);
      t[1 + 2 * k] = even + odd;
      t[2 + 2 * k] = even - odd;
    }
  }
  template <class V>
  static DCNZOO_INLINE void output(const V* m, V* y) {
    V even[pairs], odd[pairs];
#pragma GCC unroll 4
    for (int k = 0; k < pairs; ++k) even[k] = m[1 + 2 * k] + m[2 + 2 * k], odd[k] = m[1 + 2 * k] - m[2 + 2 * k];
#pragma GCC unroll 8
    for (int i = 0; i < tile; ++i) {
      const V* terms = i % 2 == 0 ? even : odd;
      V sum = transforms.power[i][0] * terms[0];
#pragma GCC unroll 4
      for (int k = 1; k < pairs; ++k) sum += transforms.power[i][k] * terms[k];
      y[i] = sum;
    }
    y[0] += m[0];
  }
  static void weight(const double* g, double* u) {
    u[0] = g[0] / transforms.divisor[pairs];
    for (int k = 0; k < pairs; ++k) {
      const double x = PairedPoints<TILE>::x[k], even = g[0] + x * x * g[2], odd = x * g[1];
      u[1 + 2 * k] = (even + odd) / transforms.divisor[k];
      u[2 + 2 * k] = (even - odd) / transforms.divisor[k];
    }
  }

 private:
  // Every second element, from the last one on, times the coefficients.
  template <int LAST, class V>
  static DCNZOO_INLINE V filter(const V* last, int k) {
    V sum = transforms.coefficient[k][0] * last[0];
#pragma GCC unroll 8
    for (int i = 1; i <= LAST; ++i) sum += transforms.coefficient[k][i] * last[-2 * i];
    return sum;
  }
};

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

// Applies a transform of one axis, of FROM numbers to TO, to both axes of a tile: of load(i, j) along i first, then along j.
// store(i, row) takes the results row by row.
template <class V, int FROM, int TO, class Transform, class Load, class Store>
DCNZOO_INLINE void transform_axes(const Transform& transform, const Load& load, const Store& store) {
  V half[TO][FROM];
#pragma GCC unroll 9
  for (int j = 0; j < FROM; ++j) {
    V column[FROM], result[TO];
#pragma GCC unroll 9
    for (int i = 0; i < FROM; ++i) column[i] = load(i, j);
    transform(column, result);
#pragma GCC unroll 9
    for (int i = 0; i < TO; ++i) half[i][j] = result[i];
  }
#pragma GCC unroll 9
  for (int i = 0; i < TO; ++i) {
    V result[TO];
    transform(half[i], result);
    store(i, result);
  }
}

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
  transform_axes<double, 3, size>(
      Filtering<TILE>::weight, [&](int x, int y) { return static_cast<double>(weight[3 * y + x]); },
      [&](int x, const double* column) {
        for (int y = 0; y < size; ++y) transformed[y * size + x] = static_cast<float>(column[y]);
      });
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
  template <class Element>
  static DCNZOO_INLINE S::vector load(const Element* source, int64_t count) {
    if (count >= S::width) return load_vector(source);
    float elements[S::width] = {};
    for (int64_t i = 0; i < count; ++i) elements[i] = number(source[i]);
    return S::load(elements);
  }
  template <class Element>
  static DCNZOO_INLINE void store(Element* target, S::vector value, int64_t count) {
    if (count >= S::width) return store_vector(target, value);
    for (int64_t i = 0; i < count; ++i) store_number(target + i, value[i]);
  }
};

template <class Factor, int TILE>
class WinogradBlock {
 public:
  using F = Filtering<TILE>;
  using Layout = WinogradLayout<Factor, TILE>;
  static constexpr int tile = F::tile, size = F::size, points = size * size;
  // Off a multiple of 4096 bytes, so that the matrices of the points do not share cache sets.
  static constexpr int64_t stagger = 16, input_stagger = stagger * sizeof(float) / sizeof(Factor);

  static int64_t tiles(const Winograd& call) {
    return call.images * ceil_div(call.height, tile) * ceil_div(call.width, tile);
  }

  static size_t scratch_bytes(const Winograd& call, const Layout& layout, int64_t block_tiles) {
    const int64_t pixels = call.point_weight == nullptr ? 0 : block_tiles * tile * tile;
    const int64_t features = pixels * (call.out_channels + call.point_channels);
    const int64_t transformed = points * (block_tiles * layout.padded_channels + input_stagger);
    const int64_t products = points * (block_tiles * layout.chunk_columns + stagger);
    const int64_t floats = products + layout.padded_channels + layout.chunk_columns + features;
    return static_cast<size_t>(round_up(transformed * static_cast<int64_t>(sizeof(Factor)), 64) +
                               round_up(floats * static_cast<int64_t>(sizeof(float)), 64));
  }

  WinogradBlock(const Winograd& call, const WinogradSchedule& schedule, int64_t task, float* scratch)
      : call_(call), layout_(call.out_channels, call.in_channels) {
    const int64_t part = task % schedule.parts, block = task / schedule.parts;
    begin_ = tiles(call) * block / schedule.blocks;
    end_ = tiles(call) * (block + 1) / schedule.blocks;
    chunk_begin_ = layout_.chunks() * part / schedule.parts;
    chunk_end_ = layout_.chunks() * (part + 1) / schedule.parts;
    zeros_ = scratch;
    input_stride_ = (end_ - begin_) * layout_.padded_channels + input_stagger;
    product_stride_ = (end_ - begin_) * layout_.chunk_columns + stagger;
    discarded_ = zeros_ + layout_.padded_channels;
    products_ = discarded_ + layout_.chunk_columns;
    features_ = products_ + points * product_stride_;
    const int64_t pixels = call.point_weight == nullptr ? 0 : (end_ - begin_) * tile * tile;
    point_sums_ = features_ + pixels * call.out_channels;
    transformed_ = reinterpret_cast<Factor*>(point_sums_ + pixels * call.point_channels);
  }

  void run() {
    for (int64_t c = 0; c < layout_.padded_channels; ++c) zeros_[c] = 0;
    call_.half_input ? transform_inputs<Factor>() : transform_inputs<float>();
    for (int64_t chunk = chunk_begin_; chunk < chunk_end_; ++chunk) {
      for (int64_t point = 0; point < points; ++point) multiply(chunk, point);
      call_.half_output ? transform_outputs<Factor>(chunk) : transform_outputs<float>(chunk);
    }
    if (call_.point_weight != nullptr) convolve_points();
  }

 private:
  using S = Simd<float>;
  using V = S::vector;

  struct Place {
    int64_t image, y, x;  // of the tile's first output pixel
  };

  Place place(int64_t index) const {
    const int64_t tiles_y = ceil_div(call_.height, tile), tiles_x = ceil_div(call_.width, tile);
    const int64_t row = index / tiles_x;
    return {row / tiles_y, row % tiles_y * tile, index % tiles_x * tile};
  }

  // The pixel's number in all images, (i, j) from the first one of a tile; negative for none.
  int64_t pixel(const Place& at, int64_t i, int64_t j) const {
    const int64_t y = at.y + i, x = at.x + j;
    const bool inside = y >= 0 && y < call_.height && x >= 0 && x < call_.width;
    return inside ? (at.image * call_.height + y) * call_.width + x : -1;
  }

  // Calls find(tile, addresses) and then use(tile, its addresses, those of the next tile; its own again for the last one).
  template <class Address, int COUNT, class Find, class Use>
  void for_each_tile(const Find& find, const Use& use) const {
    Address addresses[2][COUNT];
    find(begin_, addresses[0]);
    for (int64_t index = begin_; index < end_; ++index) {
      Address *present = addresses[(index - begin_) % 2], *next = addresses[(index - begin_ + 1) % 2];
      const bool last = index + 1 == end_;
      if (!last) find(index + 1, next);
      use(index, present, last ? present : next);
    }
  }

  template <class Element>
  void transform_inputs() {
    for_each_tile<const Element*, points>([&](int64_t index, const Element** pixels) { find_inputs(index, pixels); },
                                          [&](int64_t index, const Element* const* pixels, const Element* const* next) {
                                            transform_input(index, pixels, next);
                                          });
  }

  // The pixels that a tile reads; those outside the map are a row of zeros.
  template <class Element>
  void find_inputs(int64_t index, const Element** pixels) const {
    const Place at = place(index);
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) {
        const int64_t source = pixel(at, i - 1, j - 1);
        pixels[i * size + j] = source >= 0 ? static_cast<const Element*>(call_.input) + source * call_.in_channels
                                           : reinterpret_cast<const Element*>(zeros_);
      }
    }
  }

  // Fetches what the next tile does not share with this one meanwhile.
  template <class Element>
  void transform_input(int64_t index, const Element* const* pixels, const Element* const* next) {
    const int64_t step = layout_.piece_channels();
    for (int64_t piece = 0; piece < layout_.channels; piece += step) {
      const int64_t depth = min(step, layout_.channels - piece);
      Factor* target = transformed_ + piece * (end_ - begin_) + (index - begin_) * round_up(depth, S::width);
      int64_t c = 0;
      for (; c + S::width <= depth; c += S::width) {
        for (int i = 0; i < size; ++i) {
          for (int j = size - tile; j < size; ++j) __builtin_prefetch(next[i * size + j] + piece + c);
        }
        transform_input_vector(pixels, piece + c, S::width, target + c);
      }
      if (c < depth) transform_input_vector(pixels, piece + c, depth - c, target + c);
    }
  }

  template <class Element>
  DCNZOO_INLINE void transform_input_vector(const Element* const* pixels, int64_t c, int64_t count, Factor* target) const {
    transform_axes<V, size, size>(
        [](const V* d, V* r) __attribute__((always_inline)) { F::input(d, r); },
        [&](int i, int j) __attribute__((always_inline)) { return Partial::load(pixels[i * size + j] + c, count); },
        [&](int i, const V* row) __attribute__((always_inline)) {
#pragma GCC unroll 9
          for (int j = 0; j < size; ++j) store_vector(target + (i * size + j) * input_stride_, row[j]);
        });
  }

  void multiply(int64_t chunk, int64_t point) {
    const auto* b = static_cast<const MultiplierB<Factor>*>(call_.packed_weight) + layout_.offset(chunk, point);
    const Factor *a = transformed_ + point * input_stride_, *next = point + 1 < points ? a + input_stride_ : transformed_;
    const int64_t step = layout_.piece_channels();
    for (int64_t piece = 0; piece < layout_.channels; piece += step) {
      const int64_t depth = min(step, layout_.packed_channels() - piece);
      const int64_t first = piece * (end_ - begin_), stride = round_up(depth, S::width);
      constexpr int64_t bytes = sizeof(Factor);
      matrix_product(Rows{1, end_ - begin_, 0}, layout_.padded_columns_of(chunk), depth, a + first, stride,
                     b + piece * layout_.padded_columns_of(chunk), products_ + point * product_stride_,
                     layout_.chunk_columns, Epilogue<float>{piece > 0, false, nullptr, 0, true},
                     NextRows{next + first, stride * bytes, depth * bytes});
    }
  }

  template <class Element>
  void transform_outputs(int64_t chunk) const {
    for_each_tile<Element*, tile * tile>([&](int64_t index, Element** targets) { locate(index, chunk, targets); },
                                         [&](int64_t index, Element* const* targets, Element* const* next) {
                                           transform_output(index, chunk, targets, next);
                                         });
  }

  // Where a tile's pixels go.
  template <class Element>
  void locate(int64_t index, int64_t chunk, Element** targets) const {
    const Place at = place(index);
    for (int i = 0; i < tile; ++i) {
      for (int j = 0; j < tile; ++j) {
        const int64_t target = pixel(at, i, j), first = chunk * layout_.chunk_columns;
        targets[i * tile + j] = call_.point_weight != nullptr ? reinterpret_cast<Element*>(feature(index, i, j)) + first
                                : target >= 0 ? static_cast<Element*>(call_.output) + target * call_.out_channels + first
                                              : reinterpret_cast<Element*>(discarded_);
      }
    }
  }

  // Fetches the next tile's pixels meanwhile: they are too many rows for the processor to do so by itself.
  template <class Element>
  void transform_output(int64_t index, int64_t chunk, Element* const* targets, Element* const* next) const {
    const int64_t first = chunk * layout_.chunk_columns, count = layout_.columns_of(chunk);
    const float* source = products_ + (index - begin_) * layout_.chunk_columns;
    for (int64_t c = 0; c < count; c += S::width) {
      for (int i = 0; i < tile * tile; ++i) __builtin_prefetch(next[i] + c, 1);
      V y[tile][tile];
      transform_output_vector(source + c, y);
      const V bias = call_.bias == nullptr ? V{} : Partial::load(call_.bias + first + c, count - c);
      for (int i = 0; i < tile; ++i) {
        for (int j = 0; j < tile; ++j) {
          V value = y[i][j] + bias;
          if (call_.relu) value = value < V{} ? V{} : value;  // keeps NaN
          Partial::store(targets[i * tile + j] + c, value, count - c);
        }
      }
    }
  }

  // Of a pixel of a tile, where a 1×1 convolution follows.
  float* feature(int64_t index, int i, int j) const {
    return features_ + (((index - begin_) * tile + i) * tile + j) * call_.out_channels;
  }

  // Pixels outside the map have features, too, and are left out of the output.
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
          const int64_t target = pixel(at, i, j);
          if (target < 0) continue;
          float* output = static_cast<float*>(call_.output) + target * call_.point_channels;
          for (int64_t c = 0; c < call_.point_channels; ++c) output[c] = sums[c];
        }
      }
    }
  }

  DCNZOO_INLINE void transform_output_vector(const float* source, V (*y)[tile]) const {
    transform_axes<V, size, tile>(
        [](const V* m, V* r) __attribute__((always_inline)) { F::output(m, r); },
        [&](int i, int j) __attribute__((always_inline)) { return S::load(source + (i * size + j) * product_stride_); },
        [&](int i, const V* row) __attribute__((always_inline)) {
#pragma GCC unroll 7
          for (int j = 0; j < tile; ++j) y[i][j] = row[j];
        });
  }

  const Winograd& call_;
  const Layout layout_;
  int64_t begin_, end_, chunk_begin_, chunk_end_;  // tiles and chunks of columns of this task
  int64_t input_stride_, product_stride_;          // from point to point
  float *zeros_, *products_, *features_, *point_sums_;
  float* discarded_;  // what is computed outside the map
  Factor* transformed_;
};

template <class Factor, int TILE>
int64_t winograd_packed_numel(int64_t out_channels, int64_t in_channels) {
  return WinogradLayout<Factor, TILE>(out_channels, in_channels).numel();
}

template <class Factor, int TILE>
WinogradSchedule schedule_winograd(const Winograd& call, int threads) {
  // Their matrices are somewhat larger than the second-level cache.
  constexpr int64_t most_tiles = DCNZOO_VECTOR_BYTES == 64 || TILE > 4 ? 32 : 48;
  const WinogradLayout<Factor, TILE> layout(call.out_channels, call.in_channels);
  const int64_t tiles = WinogradBlock<Factor, TILE>::tiles(call);
  WinogradSchedule schedule{};
  schedule.blocks = ceil_div(tiles, most_tiles);
  const bool whole = call.point_weight != nullptr;  // it takes all channels at once
  schedule.parts = whole ? 1 : min(layout.chunks(), ceil_div(threads, schedule.blocks));
  if (schedule.parts == 1) schedule.blocks = min(tiles, round_up(schedule.blocks, threads));
  schedule.scratch_bytes = WinogradBlock<Factor, TILE>::scratch_bytes(call, layout, ceil_div(tiles, schedule.blocks));
  return schedule;
}

template <class Factor, int TILE>
void run_winograd(const Winograd& call, const WinogradSchedule& schedule, int64_t task, void* scratch) {
  WinogradBlock<Factor, TILE>(call, schedule, task, static_cast<float*>(scratch)).run();
}

template <class Factor, int TILE>
constexpr WinogradKernels winograd_kernels() {
  return {winograd_packed_numel<Factor, TILE>, pack_winograd<Factor, TILE>, schedule_winograd<Factor, TILE>,
          run_winograd<Factor, TILE>};
}

}  // namespace
}  // namespace dcnzoo::cpu
