// Deformable convolution without tensor cores: exact float32 and float64, and whatever has channels that do not
// come in whole chunks. The same scheme as on tensor cores, one element at a time.
#pragma once

#include "deform_conv2d_mma.h"

namespace dcnzoo::cuda {

// A block of 256 threads, 16 × 16, each of which computes ROWS × 4 results; ROWS is a multiple of 4.
template <class T, int ROWS>
struct SimtTile {
  using Storage = T;
  using Sum = typename Accumulator<T>::type;
  static constexpr int threads = 256, side = 16, quad = 4;
  static constexpr int pixels = side * ROWS, columns = side * quad, quads = ROWS / quad;
  static constexpr int depth = 16;                                               // channels per step
  static constexpr int a_row = pixels + quad, b_row = columns + quad;            // padded against bank conflicts
  static constexpr int operand_bytes = depth * (a_row + b_row) * static_cast<int>(sizeof(Sum));
};

template <class Tile>
class SimtBlock {
  using Storage = typename Tile::Storage;
  using Sum = typename Tile::Sum;
  using Quad = Weights<Sum>;
  using Table = SampleTable<Sum, Tile::pixels>;

 public:
  static DCNZOO_BOTH int shared_bytes(int table_capacity) {
    return Tile::operand_bytes + table_capacity * Table::bytes;
  }

  DCNZOO_DEVICE SimtBlock(const DeformConv2d& call, const Tiling& tiling, char* shared)
      : call_(call),
        tiling_(tiling),
        a_(reinterpret_cast<Sum*>(shared)),
        b_(a_ + Tile::depth * Tile::a_row),
        column_(static_cast<int>(block_index() % tiling.column_tiles) * Tile::columns),
        first_pixel_(block_index() / tiling.column_tiles % tiling.pixel_tiles * Tile::pixels),
        group_(static_cast<int>(block_index() / tiling.column_tiles / tiling.pixel_tiles)),
        first_(pixel_at(first_pixel_, call.shape)),
        pixels_(static_cast<int>(smaller<int64_t>(Tile::pixels, call.shape.pixels() - first_pixel_))),
        table_(shared + Tile::operand_bytes, tiling.table_capacity, address_stride()) {}

  DCNZOO_DEVICE void run() {
    Sum sums[Tile::quads][Tile::quad][Tile::quad] = {};
    const int channels = call_.shape.group_channels();
    for (int tap = 0, window_end = tiling_.window_taps == 0 ? -1 : 0; tap < call_.shape.taps(); ++tap) {
      if (tap == window_end) {
        window_end = smaller(tap + tiling_.window_taps, call_.shape.taps());
        fill(tap, window_end - tap, 0, channels);
      }
      for (int channel = 0; channel < channels; channel += Tile::depth) {
        const int depth = smaller(Tile::depth, channels - channel);
        if (tiling_.window_taps == 0) fill(tap, 1, channel, depth);
        sample(tap, channel, depth);
        copy_weights(tap, channel, depth);
        sync_block();
        for (int k = 0; k < depth; ++k) multiply(k, sums);
        sync_block();
      }
    }
    store(sums);
  }

 private:
  // The table's addresses are indices of elements times this: its two lowest bits are taken.
  static constexpr int address_scale = 4;

  DCNZOO_DEVICE int64_t address_stride() const { return static_cast<int64_t>(address_scale) * call_.shape.channels; }
  DCNZOO_DEVICE int row() const { return thread_index() / Tile::side; }
  DCNZOO_DEVICE int column() const { return thread_index() % Tile::side; }

  DCNZOO_DEVICE int deform_group(int channel) const {
    return (group_ * call_.shape.group_channels() + channel) / call_.shape.deform_channels();
  }

  // Fills the table with the samples of some taps for the channels that start at `first` of the group.
  DCNZOO_DEVICE void fill(int tap, int taps, int first, int channels) {
    const int begin = deform_group(first), end = deform_group(first + channels - 1) + 1;
    table_.fill(call_, first_, pixels_, Window{tap, taps, begin, end - begin}, thread_index(), Tile::threads);
    sync_block();
  }

  DCNZOO_DEVICE void sample(int tap, int first_channel, int depth) const {
    const int k = thread_index() % Tile::depth, channel = first_channel + k;
    if (k >= depth) return;
    const Storage* source = static_cast<const Storage*>(call_.input) + group_ * call_.shape.group_channels() + channel;
    const int64_t row_step = static_cast<int64_t>(call_.shape.channels) * call_.shape.width;
    const int entry = table_.index(tap, deform_group(channel), 0);
    for (int pixel = thread_index() / Tile::depth; pixel < Tile::pixels; pixel += Tile::threads / Tile::depth) {
      const Corner corner = table_.corner(entry + pixel);
      const Quad weights = table_.weights(entry + pixel);
      const Storage* top = source + corner.base() / address_scale;
      const Storage* bottom = top + (corner.twice_steps_y() != 0 ? row_step : 0);
      const int right = corner.steps_x() != 0 ? call_.shape.channels : 0;
      const Sum value = weights.corner[0] * widen(load_scalar(top)) + weights.corner[1] * widen(load_scalar(top + right)) +
                        weights.corner[2] * widen(load_scalar(bottom)) +
                        weights.corner[3] * widen(load_scalar(bottom + right));
      store_shared(a_ + k * Tile::a_row + pixel, value);
    }
  }

  DCNZOO_DEVICE void copy_weights(int tap, int first_channel, int depth) const {
    const int k = thread_index() % Tile::depth, channels = call_.shape.group_channels();
    if (k >= depth) return;
    const int columns = call_.shape.group_columns();
    for (int c = thread_index() / Tile::depth; c < Tile::columns; c += Tile::threads / Tile::depth) {
      Sum value{0};
      if (column_ + c < columns) {
        const int64_t output = static_cast<int64_t>(group_) * columns + column_ + c;
        const int64_t index = (output * call_.shape.taps() + tap) * channels + first_channel + k;
        value = widen(load_scalar(static_cast<const Storage*>(call_.weight) + index));
      }
      store_shared(b_ + k * Tile::b_row + c, value);
    }
  }

  // A thread's rows lie in quads, `pixels` / `quads` apart.
  DCNZOO_DEVICE int quad_pixel(int quad) const { return (quad * Tile::side + row()) * Tile::quad; }

  DCNZOO_DEVICE void multiply(int k, Sum (&sums)[Tile::quads][Tile::quad][Tile::quad]) const {
    const Quad b = load_shared(reinterpret_cast<const Quad*>(b_ + k * Tile::b_row + column() * Tile::quad));
    DCNZOO_UNROLL
    for (int q = 0; q < Tile::quads; ++q) {
      const Quad a = load_shared(reinterpret_cast<const Quad*>(a_ + k * Tile::a_row + quad_pixel(q)));
      DCNZOO_UNROLL
      for (int i = 0; i < Tile::quad; ++i) {
        DCNZOO_UNROLL
        for (int j = 0; j < Tile::quad; ++j) sums[q][i][j] += a.corner[i] * b.corner[j];
      }
    }
  }

  DCNZOO_DEVICE void store(const Sum (&sums)[Tile::quads][Tile::quad][Tile::quad]) const {
    const int group_columns = call_.shape.group_columns();
    DCNZOO_UNROLL
    for (int q = 0; q < Tile::quads; ++q) {
      DCNZOO_UNROLL
      for (int i = 0; i < Tile::quad; ++i) {
        const int pixel = quad_pixel(q) + i;
        DCNZOO_UNROLL
        for (int j = 0; j < Tile::quad; ++j) {
          const int c = column_ + column() * Tile::quad + j;
          if (pixel >= pixels_ || c >= group_columns) continue;
          const int output_channel = group_ * group_columns + c;
          Sum value = sums[q][i][j];
          if (call_.bias != nullptr) value += widen(load_scalar(static_cast<const Storage*>(call_.bias) + output_channel));
          if (call_.relu) value = not_negative(value);
          static_cast<Storage*>(call_.output)[(first_pixel_ + pixel) * call_.shape.out_channels + output_channel] =
              narrow<Storage>(value);
        }
      }
    }
  }

  const DeformConv2d& call_;
  const Tiling& tiling_;
  Sum* const a_;
  Sum* const b_;
  const int column_;
  const int64_t first_pixel_;
  const int group_;
  const Pixel first_;
  const int pixels_;  // of the tile that exist
  Table table_;
};

}  // namespace dcnzoo::cuda
