// Gradients of the deformable convolution, as matrix products with packed weights and with sampled tiles.
//
// With g the gradient of the output and the sampled input as columns (tap, channel), column · weight = output:
// the gradient of the columns is g · weightᵀ, one tap and one block of pixels at a time in a tile that stays in
// the cache, from where it is scattered to the gradient of the input; its product with the corners gives the
// gradients of the sampling points. The gradient of the weight is gᵀ · columns.
//
// Nothing depends on which thread is faster: a task owns some channels of an image's gradient (or some columns
// of the weight's), and adds up in a fixed order; the points' sums over channels come in chunks, which the caller
// adds up.
#pragma once

#include "chunks.h"
#include "deform_conv2d_kernel.h"

namespace dcnzoo::cpu {
namespace {

// Longest depth of one product; a panel of B with it fits the first-level cache.
constexpr int64_t grad_depth = 256;

// What the input channels are cut into: vectors of the only group up to a panel long, or whole merged groups.
template <class T>
struct ChannelParts {
  int64_t count, channels;  // parts, and channels in a full one

  explicit ChannelParts(const Layout& layout)
      : count(layout.groups > 1 ? layout.groups : ceil_div(layout.channels, panel_columns<T>)),
        channels(layout.groups > 1 ? layout.channels : panel_columns<T>) {}

  int64_t widest_chunk(int64_t chunks) const { return ceil_div(count, chunks) * channels; }

  // How many chunks, of at most so many channels, to cut each of `units` into.
  int64_t chunks(int64_t units, int64_t most_channels, const Layout& layout, int threads) const {
    // As measured: the sampling points of a dense convolution are a small part of the time, not those of a grouped one.
    const double extra = layout.groups > 1 ? 4 : 0.5;
    return best_chunks(units, count, ceil_div(count, max<int64_t>(1, most_channels / channels)), extra, threads);
  }
};

// The input channels [begin, end) of one task; merged groups [group_begin, group_end).
struct Channels {
  int64_t begin, end, group_begin, group_end;

  template <class T>
  static Channels of(const ConvShape& shape, const Layout& layout, int64_t chunk, int64_t chunks) {
    const ChannelParts<T> parts(layout);
    const int64_t first = parts.count * chunk / chunks, last = parts.count * (chunk + 1) / chunks;
    const int64_t end = min(last * parts.channels, shape.in_channels);
    return {first * parts.channels, end, layout.groups > 1 ? first : 0, layout.groups > 1 ? last : 1};
  }

  int64_t count() const { return end - begin; }
  // The channels of one group among these, counted from the group's first.
  int64_t first_of(int64_t group, const Layout& layout) const { return max<int64_t>(begin - group * layout.channels, 0); }
  int64_t last_of(int64_t group, const Layout& layout) const {
    return min(end - group * layout.channels, layout.channels);
  }
};

// Calls function(rectangle, index of its first pixel in the range) for the rows that the pixels [begin, end) of the
// output lie in.
template <class Function>
DCNZOO_INLINE void for_each_row(const ConvShape& shape, int64_t begin, int64_t end, const Function& function) {
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t y = pixel / shape.out_width, x = pixel % shape.out_width;
    const int64_t width = min(shape.out_width - x, end - pixel);
    function(Rectangle{y, x, 1, width}, pixel - begin);
    pixel += width;
  }
}

// Sampling positions and modulation of one tap and deformable group, for the pixels [begin, end) of an image.
template <class T>
void gather_points(const ConvShape& shape, const StridedMaps& offset, const StridedMaps& mask, bool mask_is_logits,
                   int64_t image, int64_t point, int64_t begin, int64_t end, T* y, T* x, T* scale) {
  for_each_row(shape, begin, end, [&](const Rectangle& row, int64_t i) {
    gather_channel(offset, image, 2 * point, row, y + i);
    gather_channel(offset, image, 2 * point + 1, row, x + i);
    add_origins(shape, point % shape.taps(), row, y + i, x + i);
    if (mask.data != nullptr) gather_channel(mask, image, point, row, scale + i);
  });
  if (mask.data != nullptr && mask_is_logits) sigmoid(scale, end - begin);
}

// ---- gradients of input, offset and mask ----

// The transposed weight, [merged group][tap], then by pieces of the output channels as B's panels.
template <class T>
int64_t transposed_numel(const ConvShape& shape) {
  const Layout layout = Layout::of<T>(shape);
  return layout.groups * layout.taps * layout.columns * round_up(layout.channels, Simd<T>::width);
}

// A unit is one tap of one merged group.
template <class T>
int64_t transpose_units(const ConvShape& shape) {
  const Layout layout = Layout::of<T>(shape);
  return layout.groups * layout.taps;
}

template <class T>
void transpose(const ConvShape& shape, const void* weight, void* packed, int64_t begin, int64_t end) {
  const Layout layout = Layout::of<T>(shape);
  const int64_t padded = round_up(layout.channels, Simd<T>::width);
  const int64_t channels = layout.channels / layout.merged, columns = layout.columns / layout.merged;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit / layout.taps, tap = unit % layout.taps;
    const T* source = static_cast<const T*>(weight) + group * layout.columns * channels * layout.taps + tap;
    T* target = static_cast<T*>(packed) + unit * layout.columns * padded;
    for (int64_t piece = 0; piece < layout.columns; piece += grad_depth) {
      const int64_t piece_end = min(piece + grad_depth, layout.columns);
      for (int64_t panel = 0; panel < padded; panel += panel_columns<T>) {
        const int64_t panel_end = min(panel + panel_columns<T>, padded);
        for (int64_t column = piece; column < piece_end; ++column) {
          const int64_t own = column / columns * channels;  // the other channels of a merged group are zeros
          for (int64_t c = panel; c < panel_end; ++c)
            *target++ = c >= own && c < own + channels ? source[(column * channels + c - own) * layout.taps] : T{0};
        }
      }
    }
  }
}

// Sampling points with what their derivatives need: per axis the weights of the two corners and how fast
// they change (-1 and 1, or 0 where the corner or the point lies outside).
template <class T>
struct PointTable {
  enum Array { y_low, y_high, y_low_slope, y_high_slope, x_low, x_high, x_low_slope, x_high_slope, num_arrays };

  T* values;        // [array][pixel]
  int32_t* corner;  // [corner][pixel] as in SampleTable
  int64_t pixels;

  static constexpr size_t bytes_per_pixel = num_arrays * sizeof(T) + 4 * sizeof(int32_t);

  T at(Array array, int64_t i) const { return values[array * pixels + i]; }

  void fill(const T* y, const T* x, int64_t count, int64_t height, int64_t width) const {
    using Index = typename Axis<T>::Index;
    for (int64_t i = 0; i < count; i += Simd<T>::width) {
      const Axis<T> vertical(Simd<T>::load(y + i), static_cast<T>(height));
      const Axis<T> horizontal(Simd<T>::load(x + i), static_cast<T>(width));
      store(vertical, y_low, i);
      store(horizontal, x_low, i);
      const Index low = vertical.low * static_cast<int32_t>(width), high = vertical.high * static_cast<int32_t>(width);
      const Index corners[4] = {low + horizontal.low, low + horizontal.high, high + horizontal.low,
                                high + horizontal.high};
      for (int k = 0; k < 4; ++k) __builtin_memcpy(corner + k * pixels + i, &corners[k], sizeof(Index));
    }
  }

 private:
  void store(const Axis<T>& axis, Array first, int64_t i) const {
    T* target = values + first * pixels + i;
    Simd<T>::store(target, axis.low_weight);
    Simd<T>::store(target + pixels, axis.high_weight);
    Simd<T>::store(target + 2 * pixels, axis.low_slope);
    Simd<T>::store(target + 3 * pixels, axis.high_slope);
  }
};

// What the gradient of a sample gives to the corners (`weight`), and what its products with the corners give
// to the point's modulation and position.
template <class T>
struct PointGradient {
  T weight[4], scale[4], y[4], x[4];

  DCNZOO_INLINE PointGradient(const PointTable<T>& table, int64_t i, T modulation) {
    using P = PointTable<T>;
    for (int k = 0; k < 4; ++k) {
      const bool lower = k >= 2, right = k % 2 == 1;
      const T vertical = table.at(lower ? P::y_high : P::y_low, i), horizontal = table.at(right ? P::x_high : P::x_low, i);
      scale[k] = vertical * horizontal;
      weight[k] = modulation * scale[k];
      y[k] = modulation * table.at(lower ? P::y_high_slope : P::y_low_slope, i) * horizontal;
      x[k] = modulation * vertical * table.at(right ? P::x_high_slope : P::x_low_slope, i);
    }
  }
};

template <class T>
int64_t input_grad_chunks(const ConvShape& shape, int threads) {
  const Layout layout = Layout::of<T>(shape);
  return ChannelParts<T>(layout).chunks(max<int64_t>(shape.images, 1), 2048, layout, threads);
}

template <class T>
class InputGradient {
 public:
  static size_t scratch_bytes(const ConvShape& shape, int64_t chunks) {
    const int64_t channels = ChannelParts<T>(Layout::of<T>(shape)).widest_chunk(chunks), pixels = block_pixels(channels);
    const size_t bytes = pixels * (3 * sizeof(T) + PointTable<T>::bytes_per_pixel + channels * sizeof(T));
    return round_up(static_cast<int64_t>(bytes), 64);
  }

  InputGradient(const DeformConv2dGrad& call, int64_t chunks, int64_t task, void* memory)
      : call_(call),
        shape_(call.shape),
        layout_(Layout::of<T>(call.shape)),
        chunk_(task % chunks),
        image_(task / chunks),
        channels_(Channels::of<T>(shape_, layout_, chunk_, chunks)),
        pixels_(block_pixels(ChannelParts<T>(layout_).widest_chunk(chunks))) {
    T* arrays = static_cast<T*>(memory);
    y_ = arrays, x_ = y_ + pixels_, scale_ = x_ + pixels_;
    table_.values = scale_ + pixels_;
    table_.corner = reinterpret_cast<int32_t*>(table_.values + PointTable<T>::num_arrays * pixels_);
    table_.pixels = pixels_;
    tile_ = reinterpret_cast<T*>(table_.corner + 4 * pixels_);
  }

  void run() {
    const int64_t deform_channels = shape_.in_channels / shape_.deform_groups;
    for (int64_t begin = 0; begin < shape_.out_pixels(); begin += pixels_) {
      const int64_t end = min(begin + pixels_, shape_.out_pixels());
      for (int64_t tap = 0; tap < layout_.taps; ++tap) {
        multiply(tap, begin, end);
        for (int64_t d = channels_.begin / deform_channels; d * deform_channels < channels_.end; ++d) {
          scatter(d * layout_.taps + tap, max(channels_.begin, d * deform_channels),
                  min(channels_.end, (d + 1) * deform_channels), begin, end);
        }
      }
    }
  }

 private:
  // The tile of a block should leave room for the block's gradient of the output in the second-level cache.
  static int64_t block_pixels(int64_t channels) {
    return min<int64_t>(192, max<int64_t>(32, 262144 / (channels * static_cast<int64_t>(sizeof(T))) / 16 * 16));
  }

  // The tile: the gradient of the columns of one tap, [pixel][channel].
  void multiply(int64_t tap, int64_t begin, int64_t end) const {
    const int64_t padded = round_up(layout_.channels, Simd<T>::width);
    const Rows rows{1, end - begin, 0};
    for (int64_t group = channels_.group_begin; group < channels_.group_end; ++group) {
      const int64_t first = channels_.first_of(group, layout_), last = channels_.last_of(group, layout_);
      const T* weight = static_cast<const T*>(call_.packed_weight) + (group * layout_.taps + tap) * layout_.columns * padded;
      const T* grad = static_cast<const T*>(call_.grad_output) +
                      (image_ * shape_.out_pixels() + begin) * shape_.out_channels + group * layout_.columns;
      for (int64_t piece = 0; piece < layout_.columns; piece += grad_depth) {
        const int64_t depth = min(grad_depth, layout_.columns - piece);
        matrix_product(rows, last - first, depth, grad + piece, shape_.out_channels,
                       weight + piece * padded + first * depth, tile_ + (group * layout_.channels + first - channels_.begin),
                       channels_.count(), Epilogue<T>{piece > 0, false, nullptr});
      }
    }
  }

  // From the tile, channels [first, last), to the gradients of the input and of one point per pixel.
  void scatter(int64_t point, int64_t first, int64_t last, int64_t begin, int64_t end) const {
    const bool masked = call_.mask.data != nullptr;
    gather_points(shape_, call_.offset, call_.mask, call_.mask_is_logits, image_, point, begin, end, y_, x_, scale_);
    table_.fill(y_, x_, end - begin, shape_.height, shape_.width);
    const int64_t points = shape_.deform_groups * layout_.taps, pixels = shape_.out_pixels();
    const int64_t row = (chunk_ * shape_.images + image_) * points + point;
    T* grad_y = static_cast<T*>(call_.grad_offset) + 2 * row * pixels + begin;
    T* grad_mask = masked ? static_cast<T*>(call_.grad_mask) + row * pixels + begin : nullptr;
    for (int64_t i = 0; i < end - begin; ++i) {
      const T scale = masked ? scale_[i] : T{1};
      T sums[3];
      scatter_pixel(PointGradient<T>(table_, i, scale), i, first, last, sums);
      grad_y[i] = sums[0];
      grad_y[pixels + i] = sums[1];
      if (masked) grad_mask[i] = call_.mask_is_logits ? sums[2] * scale * (1 - scale) : sums[2];
    }
  }

  // Channels [first, last) of one sample. `sums`: gradients of y, x and modulation.
  DCNZOO_INLINE void scatter_pixel(const PointGradient<T>& gradient, int64_t i, int64_t first, int64_t last,
                                   T* sums) const {
    using S = Simd<T>;
    const int64_t image_numel = shape_.height * shape_.width * shape_.in_channels;
    const T* grad = tile_ + i * channels_.count() - channels_.begin;
    const T* source[4];
    T* target[4];
    for (int k = 0; k < 4; ++k) {
      const int64_t at = image_ * image_numel + table_.corner[k * pixels_ + i] * shape_.in_channels;
      source[k] = static_cast<const T*>(call_.input) + at;
      target[k] = static_cast<T*>(call_.grad_input) + at;
    }
    typename S::vector products[4] = {};
    T rest[4] = {};
    int64_t c = first;
    for (; c + S::width <= last; c += S::width) {
      const auto value = S::load(grad + c);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        products[k] += value * S::load(source[k] + c);
        S::store(target[k] + c, S::load(target[k] + c) + value * gradient.weight[k]);
      }
    }
    for (; c < last; ++c) {
      for (int k = 0; k < 4; ++k) {
        rest[k] += grad[c] * source[k][c];
        target[k][c] += grad[c] * gradient.weight[k];
      }
    }
    sums[0] = combined(products, rest, gradient.y);
    sums[1] = combined(products, rest, gradient.x);
    sums[2] = combined(products, rest, gradient.scale);
  }

  static DCNZOO_INLINE T combined(const typename Simd<T>::vector (&products)[4], const T (&rest)[4], const T (&weights)[4]) {
    auto sum = products[0] * weights[0];
    T tail = rest[0] * weights[0];
    for (int k = 1; k < 4; ++k) {
      sum += products[k] * weights[k];
      tail += rest[k] * weights[k];
    }
    return sum_of_lanes<T>(sum) + tail;
  }

  const DeformConv2dGrad& call_;
  const ConvShape& shape_;
  const Layout layout_;
  const int64_t chunk_, image_;
  const Channels channels_;
  const int64_t pixels_;
  T *y_, *x_, *scale_, *tile_;
  PointTable<T> table_;
};

template <class T>
void run_input_grad(const DeformConv2dGrad& call, int64_t chunks, int64_t task, void* scratch) {
  InputGradient<T>(call, chunks, task, scratch).run();
}

// ---- gradient of the weight ----

// A task has some channels of the taps of one row of the kernel: their samples are close to each other.
template <class T>
int64_t weight_grad_chunks(const ConvShape& shape, int threads) {
  constexpr int64_t most_sums = 262144;
  const Layout layout = Layout::of<T>(shape);
  const int64_t most_channels = min<int64_t>(256, most_sums / (layout.columns * shape.kernel_w));
  return ChannelParts<T>(layout).chunks(shape.kernel_h, most_channels, layout, threads);
}

// Channels that follow each other in the input and in a panel of the tile, of one deformable group.
struct Run {
  int64_t channel, length;
  int64_t panel, panel_width;  // where the panel starts, per pixel of the block, and its channels
  int64_t place;               // in the panel, and gaps between groups before it
};

template <class T>
class WeightGradient {
 public:
  static size_t scratch_bytes(const ConvShape& shape, int64_t chunks) {
    const Layout layout = Layout::of<T>(shape);
    const int64_t channels = ChannelParts<T>(layout).widest_chunk(chunks);
    const int64_t numel =
        3 * longest_block + tile_numel(layout, channels) + shape.kernel_w * layout.columns * channels;
    const size_t bytes = numel * sizeof(T) + SampleTable<T>::bytes_per_pixel * longest_block + channels * sizeof(Run);
    return round_up(static_cast<int64_t>(bytes), 64);
  }

  WeightGradient(const DeformConv2dGrad& call, int64_t chunks, int64_t task, void* memory)
      : call_(call),
        shape_(call.shape),
        layout_(Layout::of<T>(call.shape)),
        first_tap_(task / chunks * shape_.kernel_w),
        channels_(Channels::of<T>(shape_, layout_, task % chunks, chunks)),
        runs_(static_cast<Run*>(memory)),
        table_(reinterpret_cast<char*>(runs_ + ChannelParts<T>(layout_).widest_chunk(chunks)), longest_block) {
    find_runs();
    y_ = reinterpret_cast<T*>(table_.end(longest_block)), x_ = y_ + longest_block, scale_ = x_ + longest_block;
    tile_ = scale_ + longest_block;
    sums_ = tile_ + tile_numel(layout_, ChannelParts<T>(layout_).widest_chunk(chunks));
  }

  void run() {
    const int64_t depth = min(longest_block, max<int64_t>(64, 65536 / layout_.columns / 8 * 8 - 8));
    for (int64_t image = 0; image < shape_.images; ++image) {
      for (int64_t begin = 0; begin < shape_.out_pixels(); begin += depth) {
        const int64_t end = min(begin + depth, shape_.out_pixels());
        for (int64_t tap = 0; tap < shape_.kernel_w; ++tap) {
          sample(image, first_tap_ + tap, begin, end);
          multiply(image, tap, begin, end);
        }
      }
    }
    for (int64_t tap = 0; tap < shape_.kernel_w; ++tap) write(tap);
  }

 private:
  // Panels of 256 pixels would start at the same places of the first-level cache.
  static constexpr int64_t longest_block = 240, group_gap = 16;

  static int64_t padded_channels(const Layout& layout) { return round_up(layout.channels, Simd<T>::width); }
  // Per group whole vectors; those of a chunk of the only group are rounded up already.
  static int64_t tile_numel(const Layout& layout, int64_t channels) {
    if (layout.groups == 1) return channels * longest_block;
    return channels / layout.channels * (padded_channels(layout) * longest_block + group_gap);
  }

  void find_runs() {
    const int64_t deform_channels = shape_.in_channels / shape_.deform_groups;
    constexpr int64_t panel = panel_columns<T>;
    same_length_ = true;
    for (int64_t c = channels_.begin; c < channels_.end;) {
      const int64_t group = c / layout_.channels, first = channels_.first_of(group, layout_);
      const int64_t count = channels_.last_of(group, layout_) - first, at = c - group * layout_.channels - first;
      Run run{};
      run.channel = c;
      run.place = at % panel;
      run.panel = at - run.place;
      run.panel_width = min(panel, round_up(count, Simd<T>::width) - run.panel);
      run.length = min(min(panel - run.place, count - at), deform_channels - c % deform_channels);
      run.panel += (group - channels_.group_begin) * padded_channels(layout_);
      run.place += (group - channels_.group_begin) * group_gap;
      runs_[num_runs_++] = run;
      same_length_ &= run.length == runs_[0].length;
      c += run.length;
    }
  }

  // B of the product: per group panels of channels, [panel][pixel][channel].
  void sample(int64_t image, int64_t tap, int64_t begin, int64_t end) const {
    const int64_t deform_channels = shape_.in_channels / shape_.deform_groups, count = end - begin;
    const bool masked = call_.mask.data != nullptr;
    for (int64_t first = 0, last = 0; first < num_runs_; first = last) {
      const int64_t d = runs_[first].channel / deform_channels;
      while (last < num_runs_ && runs_[last].channel < (d + 1) * deform_channels) ++last;
      gather_points(shape_, call_.offset, call_.mask, call_.mask_is_logits, image, d * layout_.taps + tap, begin, end,
                    y_, x_, scale_);
      fill_table(y_, x_, masked ? scale_ : nullptr, count, shape_.height, shape_.width, table_);
      if (same_length_ && runs_[0].length == 2 * Simd<T>::width) {
        sample_runs<2>(image, count, first, last);
      } else if (same_length_ && runs_[0].length == Simd<T>::width) {
        sample_runs<1>(image, count, first, last);
      } else {
        sample_runs<0>(image, count, first, last);
      }
    }
  }

  // VECTORS is the length of all runs, or 0 for any lengths.
  template <int VECTORS>
  void sample_runs(int64_t image, int64_t count, int64_t first, int64_t last) const {
    const T* source = static_cast<const T*>(call_.input) + image * shape_.height * shape_.width * shape_.in_channels;
    for (int64_t i = 0; i < count; ++i) {
      const Corners<T> corners(table_, i, source, shape_.in_channels);
      for (int64_t r = first; r < last; ++r) {
        const Run& run = runs_[r];
        T* target = tile_ + run.panel * count + i * run.panel_width + run.place;
        if constexpr (VECTORS == 0) {
          corners.sample(run.channel, run.length, target);
        } else {
          corners.template sample_vectors<VECTORS>(run.channel, target);
        }
      }
    }
  }

  T* tile_of(int64_t group, int64_t count) const {
    return tile_ + (group - channels_.group_begin) * (padded_channels(layout_) * count + group_gap);
  }
  // [tap of the row][column of a group][channel of the chunk].
  T* sums_of(int64_t tap, int64_t group) const {
    return sums_ + tap * layout_.columns * channels_.count() + max<int64_t>(group * layout_.channels - channels_.begin, 0);
  }

  void multiply(int64_t image, int64_t tap, int64_t begin, int64_t end) const {
    const int64_t pixels = shape_.out_pixels(), count = end - begin;
    const bool first = image == 0 && begin == 0;
    for (int64_t group = channels_.group_begin; group < channels_.group_end; ++group) {
      const T* grad = static_cast<const T*>(call_.grad_output) +
                      (image * shape_.out_channels + group * layout_.columns) * pixels + begin;
      matrix_product(Rows{1, layout_.columns, 0}, channels_.last_of(group, layout_) - channels_.first_of(group, layout_),
                     count, grad, pixels, tile_of(group, count), sums_of(tap, group), channels_.count(),
                     Epilogue<T>{!first, false, nullptr});
    }
  }

  // The blocks on the diagonal of the merged groups are the gradient.
  void write(int64_t tap) const {
    const int64_t channels = layout_.channels / layout_.merged, columns = layout_.columns / layout_.merged;
    for (int64_t group = channels_.group_begin; group < channels_.group_end; ++group) {
      const int64_t first = channels_.first_of(group, layout_), last = channels_.last_of(group, layout_);
      for (int64_t column = 0; column < layout_.columns; ++column) {
        const int64_t own = column / columns * channels;
        const int64_t row = group * layout_.columns + column;
        T* target = static_cast<T*>(call_.grad_weight) + row * channels * layout_.taps + first_tap_ + tap;
        const T* source = sums_of(tap, group) + column * channels_.count() - first;
        for (int64_t c = max(first, own); c < min(last, own + channels); ++c) target[(c - own) * layout_.taps] = source[c];
      }
    }
  }

  const DeformConv2dGrad& call_;
  const ConvShape& shape_;
  const Layout layout_;
  const int64_t first_tap_;
  const Channels channels_;
  Run* const runs_;
  const SampleTable<T> table_;
  T *y_, *x_, *scale_, *tile_, *sums_;
  int64_t num_runs_ = 0;
  bool same_length_;
};

template <class T>
void run_weight_grad(const DeformConv2dGrad& call, int64_t chunks, int64_t task, void* scratch) {
  WeightGradient<T>(call, chunks, task, scratch).run();
}

template <class T>
constexpr DeformConv2dGradKernels deform_conv2d_grad_kernels() {
  return {transposed_numel<T>,
          transpose<T>,
          transpose_units<T>,
          {input_grad_chunks<T>, InputGradient<T>::scratch_bytes, run_input_grad<T>},
          {weight_grad_chunks<T>, WeightGradient<T>::scratch_bytes, run_weight_grad<T>}};
}

}  // namespace
}  // namespace dcnzoo::cpu
