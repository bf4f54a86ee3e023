// Where a deformable convolution samples: per output pixel, kernel tap and deformable group an entry of four
// bilinear weights and one address, computed once and used for all channels.
#pragma once

#include "elements.h"

namespace dcnzoo::cuda {

// An output pixel.
struct Pixel {
  int64_t image;
  int y, x;
};

// The pixel that comes `step` (0 <= step < 2^20) after `first` in the order image, row, column.
DCNZOO_BOTH Pixel pixel_after(const Pixel& first, int step, const ConvShape& shape) {
  const int x = first.x + step, y = first.y + x / shape.out_width;
  return {first.image + y / shape.out_height, y % shape.out_height, x % shape.out_width};
}

DCNZOO_BOTH Pixel pixel_at(int64_t index, const ConvShape& shape) {
  const Division row = divide(index, shape.out_width), image = divide(row.quotient, shape.out_height);
  return {image.quotient, static_cast<int>(image.rest), static_cast<int>(row.rest)};
}

// One axis of the bilinear interpolation. Not-a-number counts as outside.
template <class T>
struct Axis {
  int low;                    // lower corner, clamped to the map
  bool step;                  // whether the upper corner is the next one; otherwise it is the same
  T low_weight, high_weight;  // 0 where the corner or the point lies outside
  T low_slope, high_slope;    // derivatives of the weights

  DCNZOO_DEVICE Axis(T coordinate, int size) {
    const bool inside = coordinate > T{-1} && coordinate < static_cast<T>(size);
    const T bounded = inside ? coordinate : T{0};
    const T floor = round_down(bounded), fraction = bounded - floor;
    const int whole = static_cast<int>(floor);
    const bool has_low = whole >= 0, has_high = whole + 1 < size;
    low = has_low ? whole : 0;
    step = has_low && has_high;
    low_weight = inside && has_low ? 1 - fraction : T{0};
    high_weight = inside && has_high ? fraction : T{0};
    low_slope = inside && has_low ? T{-1} : T{0};
    high_slope = inside && has_high ? T{1} : T{0};
  }
};

template <class T>
struct alignas(4 * sizeof(T)) Weights {
  T corner[4];  // y0x0, y0x1, y1x0, y1x1
};

// The pixel y0x0: its index times a multiple of 4 that the kernel chooses, and in the two lowest bits whether
// the other corners are pixels of their own.
struct Corner {
  static constexpr int64_t step_x = 1, step_y = 2, steps = 3;

  int64_t address;

  DCNZOO_BOTH int64_t base() const { return address & ~steps; }
  DCNZOO_BOTH uint32_t steps_x() const { return static_cast<uint32_t>(address) & step_x; }        // 0 or 1
  DCNZOO_BOTH uint32_t twice_steps_y() const { return static_cast<uint32_t>(address) & step_y; }  // 0 or 2
};

template <class T>
struct Sample {
  Weights<T> weights;
  Corner corner;
};

DCNZOO_BOTH int64_t map_index(const StridedMaps& maps, const Pixel& pixel, int64_t channel) {
  return pixel.image * maps.n + channel * maps.c + pixel.y * maps.h + pixel.x * maps.w;
}

// What scales the samples of a tap: 1 without a mask.
template <class T>
DCNZOO_DEVICE T modulation(const DeformConv2d& call, const Pixel& pixel, int tap, int deform_group) {
  if (call.mask.data == nullptr) return T{1};
  const int64_t channel = static_cast<int64_t>(deform_group) * call.shape.taps() + tap;
  const T value = read_element<T>(call.mask.data, call.mask.element, map_index(call.mask, pixel, channel));
  return call.mask_is_logits ? 1 / (1 + exponential(-value)) : value;
}

// Position of a sample: the undisplaced one, out · stride − pad + tap · dilation, plus its offset.
template <class T>
struct Position {
  T y, x;
};

template <class T>
DCNZOO_DEVICE Position<T> sample_position(const DeformConv2d& call, const Pixel& pixel, int tap, int deform_group) {
  const ConvShape& shape = call.shape;
  const int64_t channel = 2 * (static_cast<int64_t>(deform_group) * shape.taps() + tap);
  const int64_t index = map_index(call.offset, pixel, channel);
  const int origin_y = pixel.y * shape.stride_h - shape.pad_h + tap / shape.kernel_w * shape.dilation_h;
  const int origin_x = pixel.x * shape.stride_w - shape.pad_w + tap % shape.kernel_w * shape.dilation_w;
  return {static_cast<T>(origin_y) + read_element<T>(call.offset.data, call.offset.element, index),
          static_cast<T>(origin_x) + read_element<T>(call.offset.data, call.offset.element, index + call.offset.c)};
}

// The raw numbers that a sample is made of; read first, for many samples at once, since memory is slow.
template <class T>
struct SampleSource {
  Position<T> position;
  T scale;
  int64_t image;
};

template <class T>
DCNZOO_DEVICE SampleSource<T> read_sample(const DeformConv2d& call, const Pixel& pixel, int tap, int deform_group) {
  return {sample_position<T>(call, pixel, tap, deform_group), modulation<T>(call, pixel, tap, deform_group),
          pixel.image};
}

// `stride` is what the index of an input pixel is multiplied with, a multiple of 4.
template <class T>
DCNZOO_DEVICE Sample<T> make_sample(const ConvShape& shape, const SampleSource<T>& source, int64_t stride) {
  const Axis<T> y(source.position.y, shape.height), x(source.position.x, shape.width);
  const T low = y.low_weight * source.scale, high = y.high_weight * source.scale;
  const int64_t index = (source.image * shape.height + y.low) * shape.width + x.low;
  return {{{low * x.low_weight, low * x.high_weight, high * x.low_weight, high * x.high_weight}},
          {index * stride | (x.step ? Corner::step_x : 0) | (y.step ? Corner::step_y : 0)}};
}

// The taps and deformable groups whose samples a table holds.
struct Window {
  int tap, taps, deform_group, deform_groups;
};

// The samples of PIXELS consecutive output pixels for a window of taps and deformable groups, in shared memory.
template <class T, int PIXELS>
class SampleTable {
 public:
  // Of a tap and a deformable group.
  static constexpr int bytes = PIXELS * static_cast<int>(sizeof(Weights<T>) + sizeof(Corner));

  // `memory` has room for `capacity` pairs of a tap and a deformable group.
  DCNZOO_DEVICE SampleTable(void* memory, int capacity, int64_t stride)
      : weights_(static_cast<Weights<T>*>(memory)),
        corners_(reinterpret_cast<Corner*>(weights_ + capacity * PIXELS)),
        stride_(stride) {}

  // This is one of the `threads` threads that take part, counted from 0. Of the pixels from `first` on, those from
  // number `pixels` on do not exist: they get no weight.
  DCNZOO_DEVICE void fill(const DeformConv2d& call, const Pixel& first, int pixels, const Window& window, int thread,
                          int threads) {
    window_ = window;
    const int entries = window.taps * window.deform_groups * PIXELS;
    for (int begin = thread; begin < entries; begin += at_once * threads) {
      SampleSource<T> sources[at_once];
      DCNZOO_UNROLL
      for (int i = 0; i < at_once; ++i) sources[i] = read(call, first, pixels, begin + i * threads, entries);
      DCNZOO_UNROLL
      for (int i = 0; i < at_once; ++i) write(call.shape, sources[i], begin + i * threads, entries);
    }
  }

  DCNZOO_DEVICE int index(int tap, int deform_group, int pixel) const {
    return ((tap - window_.tap) * window_.deform_groups + deform_group - window_.deform_group) * PIXELS + pixel;
  }
  DCNZOO_DEVICE Weights<T> weights(int index) const { return load_shared(weights_ + index); }
  DCNZOO_DEVICE Corner corner(int index) const { return load_shared(corners_ + index); }

 private:
  static constexpr int at_once = sizeof(T) == 4 ? 5 : 2;

  DCNZOO_DEVICE SampleSource<T> read(const DeformConv2d& call, const Pixel& first, int pixels, int entry,
                                     int entries) const {
    const int pixel = entry % PIXELS, part = entry / PIXELS;
    if (entry >= entries || pixel >= pixels) return {{T{-2}, T{-2}}, T{0}, 0};  // outside: no weight
    return read_sample<T>(call, pixel_after(first, pixel, call.shape), window_.tap + part / window_.deform_groups,
                          window_.deform_group + part % window_.deform_groups);
  }

  DCNZOO_DEVICE void write(const ConvShape& shape, const SampleSource<T>& source, int entry, int entries) const {
    if (entry >= entries) return;
    const Sample<T> sample = make_sample(shape, source, stride_);
    store_shared(weights_ + entry, sample.weights);
    store_shared(corners_ + entry, sample.corner);
  }

  Weights<T>* weights_;
  Corner* corners_;
  int64_t stride_;
  Window window_{};
};

}  // namespace dcnzoo::cuda
