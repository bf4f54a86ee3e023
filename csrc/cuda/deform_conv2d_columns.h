// What the derivatives of the deformable convolution need beside matrix products: its samples, and the derivatives
// of its samples by input, offset and mask. A warp does the channels of a pixel, tap and deformable group.
#pragma once

#include "sampling.h"

namespace dcnzoo::cuda {

constexpr int column_threads = 256, column_warps = column_threads / warp_threads;

// The four corners of a sample: indices of their first channels, and how the sample depends on them.
template <class T>
struct SamplePlace {
  int64_t index[4];  // y0x0, y0x1, y1x0, y1x1
  Axis<T> y, x;
  T scale, scale_slope;  // of the mask, and by the number that it is made of

  DCNZOO_DEVICE SamplePlace(const DeformConv2d& call, const SampleSource<T>& source, int deform_group)
      : y(source.position.y, call.shape.height),
        x(source.position.x, call.shape.width),
        scale(source.scale),
        scale_slope(call.mask_is_logits ? scale * (1 - scale) : T{1}) {
    const ConvShape& shape = call.shape;
    const int64_t pixel = (source.image * shape.height + y.low) * shape.width + x.low;
    const int64_t first = pixel * shape.channels + static_cast<int64_t>(deform_group) * shape.deform_channels();
    const int64_t down = y.step ? static_cast<int64_t>(shape.width) * shape.channels : 0;
    const int64_t right = x.step ? shape.channels : 0;
    index[0] = first, index[1] = first + right, index[2] = first + down, index[3] = first + down + right;
  }

  DCNZOO_DEVICE T interpolate(const T (&c)[4]) const {
    return y.low_weight * (x.low_weight * c[0] + x.high_weight * c[1]) +
           y.high_weight * (x.low_weight * c[2] + x.high_weight * c[3]);
  }
  DCNZOO_DEVICE T slope_y(const T (&c)[4]) const {
    return y.low_slope * (x.low_weight * c[0] + x.high_weight * c[1]) +
           y.high_slope * (x.low_weight * c[2] + x.high_weight * c[3]);
  }
  DCNZOO_DEVICE T slope_x(const T (&c)[4]) const {
    return y.low_weight * (x.low_slope * c[0] + x.high_slope * c[1]) +
           y.high_weight * (x.low_slope * c[2] + x.high_slope * c[3]);
  }

  // Adds to the gradients of the corners.
  DCNZOO_DEVICE void add(T* grad_input, int channel, T value) const {
    const T weights[4] = {y.low_weight * x.low_weight, y.low_weight * x.high_weight, y.high_weight * x.low_weight,
                          y.high_weight * x.high_weight};
    DCNZOO_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (weights[k] != T{0}) add_atomically(grad_input + index[k] + channel, value * weights[k]);
    }
  }
};

template <class ACCESS>
class ColumnWarp {
  using Storage = typename ACCESS::Storage;
  using T = typename Accumulator<Storage>::type;

 public:
  DCNZOO_DEVICE explicit ColumnWarp(const DeformConv2dColumns& work) : work_(work), call_(work.call) {}

  DCNZOO_DEVICE void sample() const {
    for_each([this](int64_t row, const Pixel& pixel, int tap, int deform_group) {
      const SamplePlace<T> place(call_, read_sample<T>(call_, pixel, tap, deform_group), deform_group);
      const int channels = call_.shape.deform_channels();
      for (int c = lane() * ACCESS::elements; c < channels; c += warp_threads * ACCESS::elements) {
        T corners[4][ACCESS::elements], values[ACCESS::elements];
        DCNZOO_UNROLL
        for (int k = 0; k < 4; ++k) ACCESS::load(input(c) + place.index[k], corners[k]);
        DCNZOO_UNROLL
        for (int i = 0; i < ACCESS::elements; ++i) {
          values[i] = place.scale * place.interpolate({corners[0][i], corners[1][i], corners[2][i], corners[3][i]});
        }
        ACCESS::store(column(row, tap, deform_group * channels + c), values);
      }
    });
  }

  // One channel at a time whatever ACCESS is, so that a warp's atomic additions are to consecutive addresses.
  DCNZOO_DEVICE void scatter() const {
    for_each([this](int64_t row, const Pixel& pixel, int tap, int deform_group) {
      const SamplePlace<T> place(call_, read_sample<T>(call_, pixel, tap, deform_group), deform_group);
      const int channels = call_.shape.deform_channels();
      T by_y{0}, by_x{0}, by_scale{0};
      for (int c = lane(); c < channels; c += warp_threads) {
        const T gradient = widen(load_scalar(column(row, tap, deform_group * channels + c)));
        T corners[4];
        DCNZOO_UNROLL
        for (int k = 0; k < 4; ++k) corners[k] = widen(load_scalar(input(c) + place.index[k]));
        by_scale += gradient * place.interpolate(corners);
        by_y += gradient * place.slope_y(corners);
        by_x += gradient * place.slope_x(corners);
        place.add(static_cast<T*>(work_.grad_input), c, gradient * place.scale);
      }
      by_y = sum_over_warp(by_y), by_x = sum_over_warp(by_x), by_scale = sum_over_warp(by_scale);
      if (lane() > 0) return;
      const int64_t point = static_cast<int64_t>(deform_group) * call_.shape.taps() + tap;
      store(work_.grad_offset, call_.offset.element, pixel, 2, 2 * point, by_y * place.scale);
      store(work_.grad_offset, call_.offset.element, pixel, 2, 2 * point + 1, by_x * place.scale);
      if (work_.grad_mask == nullptr) return;
      store(work_.grad_mask, call_.mask.element, pixel, 1, point, by_scale * place.scale_slope);
    });
  }

 private:
  static DCNZOO_DEVICE int lane() { return thread_index() % warp_threads; }

  template <class Function>
  DCNZOO_DEVICE void for_each(const Function& function) const {
    const ConvShape& shape = call_.shape;
    const int64_t per_pixel = static_cast<int64_t>(shape.taps()) * shape.deform_groups;
    const int64_t first = block_index() * column_warps + thread_index() / warp_threads;
    for (int64_t i = first; i < work_.pixels * per_pixel; i += grid_blocks() * column_warps) {
      const Division row = divide(i, per_pixel);
      const int part = static_cast<int>(row.rest);
      function(row.quotient, pixel_at(work_.first_pixel + row.quotient, shape), part / shape.deform_groups,
               part % shape.deform_groups);
    }
  }

  // Of a pixel, a tap and a channel, which belongs to a group.
  DCNZOO_DEVICE Storage* column(int64_t row, int tap, int channel) const {
    const ConvShape& shape = call_.shape;
    Storage* columns = static_cast<Storage*>(work_.columns);
    if (shape.groups == 1) return columns + (row * shape.taps() + tap) * shape.channels + channel;
    const int channels = shape.group_channels(), group = channel / channels;
    return columns + ((group * work_.pixels + row) * shape.taps() + tap) * channels + channel % channels;
  }

  // A channel of a deformable group, from where the places of its samples count.
  DCNZOO_DEVICE const Storage* input(int channel) const { return static_cast<const Storage*>(call_.input) + channel; }

  // Into maps that have `channels_per_point` channels for each tap and deformable group.
  DCNZOO_DEVICE void store(void* maps, Element element, const Pixel& pixel, int channels_per_point, int64_t channel,
                           T value) const {
    const ConvShape& shape = call_.shape;
    const int64_t channels = static_cast<int64_t>(channels_per_point) * shape.deform_groups * shape.taps();
    const int64_t index = ((pixel.image * channels + channel) * shape.out_height + pixel.y) * shape.out_width + pixel.x;
    write_element(maps, element, index, value);
  }

  const DeformConv2dColumns& work_;
  const DeformConv2d& call_;
};

// Whether the channels of every group, of either kind, come in whole chunks.
template <class Factors>
bool has_whole_chunks(const ConvShape& shape) {
  constexpr int elements = ChunkAccess<Factors>::elements;
  return shape.group_channels() % elements == 0 && shape.deform_channels() % elements == 0;
}

}  // namespace dcnzoo::cuda
