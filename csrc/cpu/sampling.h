// Bilinear sampling of channels-last maps: per output pixel and kernel tap a table entry of four
// corner pixels and four weights, then plain vector arithmetic over the channels.
#pragma once

#include <cmath>

#include "elements.h"
#include "kernels.h"

namespace dcnzoo::cpu {
namespace {

// The sampling points of one tap and one deformable group, for the pixels of a block.
template <class T>
struct SampleTable {
  int32_t* pixel[4];  // corners y0x0, y0x1, y1x0, y1x1 as row · width + column, always inside the map
  T* weight[4];       // bilinear weight · mask; 0 where the corner lies outside

  static constexpr size_t bytes_per_pixel = 4 * (sizeof(int32_t) + sizeof(T));

  // Carves the arrays for `pixels` (a multiple of 16) out of `memory`.
  SampleTable(char* memory, int64_t pixels) {
    for (int corner = 0; corner < 4; ++corner) {
      weight[corner] = reinterpret_cast<T*>(memory) + corner * pixels;
      pixel[corner] = reinterpret_cast<int32_t*>(memory + 4 * sizeof(T) * pixels) + corner * pixels;
    }
  }

  char* end(int64_t pixels) const { return reinterpret_cast<char*>(pixel[3] + pixels); }
};

// A rectangle of output pixels; its pixels are numbered row by row.
struct Rectangle {
  int64_t y, x, height, width;

  int64_t pixels() const { return height * width; }
};

template <class Source, class T>
void gather_elements(const StridedMaps& maps, int64_t first, const Rectangle& pixels, T* target) {
  const Source* source = static_cast<const Source*>(maps.data) + first + pixels.y * maps.h + pixels.x * maps.w;
  for (int64_t row = 0; row < pixels.height; ++row, source += maps.h) {
    for (int64_t column = 0; column < pixels.width; ++column) *target++ = static_cast<T>(number(source[column * maps.w]));
  }
}

// Reads one channel of one image at the given output pixels.
template <class T>
void gather_channel(const StridedMaps& maps, int64_t image, int64_t channel, const Rectangle& pixels, T* target) {
  const int64_t first = image * maps.n + channel * maps.c;
  switch (maps.element) {
    case Element::float32: return gather_elements<float>(maps, first, pixels, target);
    case Element::float64: return gather_elements<double>(maps, first, pixels, target);
    case Element::bfloat16: return gather_elements<BFloat16>(maps, first, pixels, target);
    case Element::float16: return gather_elements<Float16>(maps, first, pixels, target);
  }
}

// Adds the undisplaced positions of a tap, out · stride − pad + tap · dilation, to its offsets.
template <class T>
void add_origins(const ConvShape& shape, int64_t tap, const Rectangle& pixels, T* y, T* x) {
  const int64_t tap_y = tap / shape.kernel_w * shape.dilation_h - shape.pad_h;
  const int64_t tap_x = tap % shape.kernel_w * shape.dilation_w - shape.pad_w;
  for (int64_t row = 0; row < pixels.height; ++row) {
    const T origin_y = static_cast<T>((pixels.y + row) * shape.stride_h + tap_y);
    for (int64_t column = 0; column < pixels.width; ++column) {
      *y++ += origin_y;
      *x++ += static_cast<T>((pixels.x + column) * shape.stride_w + tap_x);
    }
  }
}

template <class T>
void sigmoid(T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = 1 / (1 + std::exp(-values[i]));
}

// One axis of the bilinear interpolation, for a vector of coordinates.
template <class T>
struct Axis {
  using V = typename Simd<T>::vector;
  using Mask = decltype(V{} < V{});
  typedef int32_t Index __attribute__((vector_size(Simd<T>::width * sizeof(int32_t))));

  Index low, high;            // clamped to the map
  V low_weight, high_weight;  // 0 where the corner or the point lies outside
  V low_slope, high_slope;    // how the weights change with the coordinate

  // Not-a-number counts as outside. Indices are valid whatever the coordinate: it is bounded before it
  // becomes an integer.
  DCNZOO_INLINE Axis(V coordinate, T size) {
    const V lowest = Simd<T>::splat(-2), highest = Simd<T>::splat(size + 1);
    V bounded = coordinate > lowest ? coordinate : lowest;
    bounded = bounded < highest ? bounded : highest;
    V floor = __builtin_convertvector(__builtin_convertvector(bounded, Index), V);
    floor = floor > bounded ? floor - 1 : floor;
    const V fraction = coordinate - floor, last = Simd<T>::splat(size - 1);
    const Mask inside = (coordinate > -1) & (coordinate < size);
    const Mask low_inside = inside & (floor >= 0), high_inside = inside & (floor < last);
    low_weight = low_inside ? 1 - fraction : V{};
    high_weight = high_inside ? fraction : V{};
    low_slope = low_inside ? Simd<T>::splat(-1) : V{};
    high_slope = high_inside ? Simd<T>::splat(1) : V{};
    low = clamped(floor, last);
    high = clamped(floor + 1, last);
  }

  static DCNZOO_INLINE Index clamped(V value, V last) {
    value = value > V{} ? value : V{};
    value = value < last ? value : last;
    return __builtin_convertvector(value, Index);
  }
};

// Fills a table from absolute coordinates and the modulation of each point (`scale`, may be null).
// The arrays are padded to whole vectors.
template <class T>
void fill_table(const T* y, const T* x, const T* scale, int64_t count, int64_t height, int64_t width,
                const SampleTable<T>& table) {
  using S = Simd<T>;
  using Index = typename Axis<T>::Index;
  for (int64_t i = 0; i < count; i += S::width) {
    Axis<T> vertical(S::load(y + i), static_cast<T>(height));
    const Axis<T> horizontal(S::load(x + i), static_cast<T>(width));
    if (scale != nullptr) {
      const auto factor = S::load(scale + i);
      vertical.low_weight *= factor;
      vertical.high_weight *= factor;
    }
    const Index row[2] = {vertical.low * static_cast<int32_t>(width), vertical.high * static_cast<int32_t>(width)};
    const Index pixel[4] = {row[0] + horizontal.low, row[0] + horizontal.high, row[1] + horizontal.low,
                            row[1] + horizontal.high};
    for (int corner = 0; corner < 4; ++corner) __builtin_memcpy(table.pixel[corner] + i, &pixel[corner], sizeof(Index));
    S::store(table.weight[0] + i, vertical.low_weight * horizontal.low_weight);
    S::store(table.weight[1] + i, vertical.low_weight * horizontal.high_weight);
    S::store(table.weight[2] + i, vertical.high_weight * horizontal.low_weight);
    S::store(table.weight[3] + i, vertical.high_weight * horizontal.high_weight);
  }
}

// The four corners of one table entry, ready for the channel loop.
template <class Source>
struct Corners {
  using T = Computed<Source>;

  const Source* source[4];
  T weight[4];

  DCNZOO_INLINE Corners(const SampleTable<T>& table, int64_t i, const Source* image, int64_t channels) {
    for (int corner = 0; corner < 4; ++corner) {
      source[corner] = image + table.pixel[corner][i] * channels;
      weight[corner] = table.weight[corner][i];
    }
  }

  // Interpolates some vectors of consecutive channels from channel `first`.
  template <int VECTORS, class Target>
  DCNZOO_INLINE void sample_vectors(int64_t first, Target* target) const {
    constexpr int width = Simd<T>::width;
    typename Simd<T>::vector value[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) value[v] = load_vector(source[0] + first + v * width) * weight[0];
#pragma GCC unroll 3
    for (int corner = 1; corner < 4; ++corner) {
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) value[v] += load_vector(source[corner] + first + v * width) * weight[corner];
    }
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store_vector(target + v * width, value[v]);
  }

  // Interpolates `count` consecutive channels.
  template <class Target>
  DCNZOO_INLINE void sample(int64_t first, int64_t count, Target* target) const {
    constexpr int width = Simd<T>::width;
    int64_t c = 0;
    for (; c + 4 * width <= count; c += 4 * width) sample_vectors<4>(first + c, target + c);
    for (; c + width <= count; c += width) sample_vectors<1>(first + c, target + c);
    for (; c < count; ++c) {
      T value = 0;
      for (int corner = 0; corner < 4; ++corner) value += number(source[corner][first + c]) * weight[corner];
      store_number(target + c, value);
    }
  }
};

}  // namespace
}  // namespace dcnzoo::cpu
