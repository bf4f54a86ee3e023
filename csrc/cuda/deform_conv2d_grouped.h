// Deformable convolution with many small groups (ResNeXt) on tensor cores: the samples go straight into the
// registers from which they are multiplied.
//
// Channels are taken in units of whole groups, 64 bytes or one group, whichever is more. A warp computes one unit
// of 32 pixels; weights are zero between the groups of a unit, which costs nothing, since loading the samples
// takes longest.
#pragma once

#include "deform_conv2d_mma.h"

namespace dcnzoo::cuda {

constexpr int segment_chunks = 4;

// SEGMENTS of 64 bytes per unit and pixel; a block is PIXEL_WARPS × UNIT_WARPS warps.
template <class FACTORS, int SEGMENTS, int PIXEL_WARPS, int UNIT_WARPS>
struct GroupedTile {
  using Factors = FACTORS;
  using Storage = typename Factors::Storage;
  static constexpr int segments = SEGMENTS, unit_warps = UNIT_WARPS;
  static constexpr int threads = PIXEL_WARPS * UNIT_WARPS * warp_threads;
  static constexpr int tiles_m = 2, warp_pixels = 16 * tiles_m, pixels = PIXEL_WARPS * warp_pixels;
  static constexpr int chunk_channels = chunk_bytes / static_cast<int>(sizeof(Storage));
  static constexpr int unit_channels = SEGMENTS * segment_chunks * chunk_channels, tiles_n = unit_channels / 8;
  static constexpr int staging_bytes =
      PIXEL_WARPS * UNIT_WARPS * 16 * staging_row_bytes(unit_channels, sizeof(Storage));
};

template <class Tile>
class GroupedBlock {
  using Factors = typename Tile::Factors;
  using Storage = typename Factors::Storage;
  using Table = SampleTable<float, Tile::pixels>;

 public:
  static DCNZOO_BOTH int shared_bytes(int table_capacity) {
    return larger(table_capacity * Table::bytes, Tile::staging_bytes);
  }

  DCNZOO_DEVICE GroupedBlock(const DeformConv2d& call, const Tiling& tiling, char* shared)
      : call_(call),
        tiling_(tiling),
        shared_(shared),
        first_pixel_(block_index() / tiling.column_tiles * Tile::pixels),
        first_(pixel_at(first_pixel_, call.shape)),
        pixels_(static_cast<int>(smaller<int64_t>(Tile::pixels, call.shape.pixels() - first_pixel_))),
        block_channel_(static_cast<int>(block_index() % tiling.column_tiles) * Tile::unit_warps * Tile::unit_channels),
        channel_(block_channel_ + warp() % Tile::unit_warps * Tile::unit_channels),
        table_(shared, tiling.table_capacity, pixel_bytes()) {}

  DCNZOO_DEVICE void run() {
    float sums[Tile::tiles_m][Tile::tiles_n][4] = {};
    const bool idle = channel_ >= call_.shape.channels;
    for (int tap = 0, window_end = 0; tap < call_.shape.taps(); ++tap) {
      if (tap == window_end) {
        sync_block();
        window_end = smaller(tap + tiling_.window_taps, call_.shape.taps());
        table_.fill(call_, first_, pixels_,
                    Window{tap, window_end - tap, block_channel_ / call_.shape.deform_channels(), deform_groups()},
                    thread_index(), Tile::threads);
        sync_block();
      }
      if (idle) continue;
      DCNZOO_UNROLL
      for (int segment = 0; segment < Tile::segments; ++segment) multiply(tap, segment, sums);
    }
    sync_block();  // the table's memory is free now
    if (!idle) store(sums);
  }

 private:
  DCNZOO_DEVICE int warp() const { return thread_index() / warp_threads; }
  DCNZOO_DEVICE int lane() const { return thread_index() % warp_threads; }
  DCNZOO_DEVICE int warp_pixel() const { return warp() / Tile::unit_warps * Tile::warp_pixels; }
  DCNZOO_DEVICE int64_t pixel_bytes() const { return call_.shape.channels * static_cast<int64_t>(sizeof(Storage)); }

  // That the channels of the block belong to.
  DCNZOO_DEVICE int deform_groups() const {
    const int end = smaller(block_channel_ + Tile::unit_warps * Tile::unit_channels, call_.shape.channels);
    return (end - 1) / call_.shape.deform_channels() - block_channel_ / call_.shape.deform_channels() + 1;
  }

  DCNZOO_DEVICE void multiply(int tap, int segment, float (&sums)[Tile::tiles_m][Tile::tiles_n][4]) const {
    const int unit_channel = (segment * segment_chunks + lane() % 4) * Tile::chunk_channels;
    Chunk columns[Tile::tiles_n];
    DCNZOO_UNROLL
    for (int j = 0; j < Tile::tiles_n; ++j) columns[j] = load_weights(tap, 8 * j + lane() / 4, unit_channel);
    const int channel = channel_ + unit_channel;
    const char* source = static_cast<const char*>(call_.input) + channel * static_cast<int64_t>(sizeof(Storage));
    const int entry = table_.index(tap, channel / call_.shape.deform_channels(), warp_pixel() + lane() / 4);
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::tiles_m; ++i) {
      const Chunk upper = sample(source, entry + 16 * i), lower = sample(source, entry + 16 * i + 8);
      DCNZOO_UNROLL
      for (int j = 0; j < Tile::tiles_n; ++j) multiply_segment<Factors>(sums[i][j], upper, lower, columns[j]);
    }
  }

  // The weights of a column of the unit for a chunk of its channels: zero where they belong to different groups.
  DCNZOO_DEVICE Chunk load_weights(int tap, int column, int unit_channel) const {
    const int group_channels = call_.shape.group_channels();
    Chunk weights{};
    if (column / group_channels != unit_channel / group_channels) return weights;
    const int64_t row = static_cast<int64_t>(channel_ + column) * call_.shape.taps() + tap;
    weights = load_global(static_cast<const Storage*>(call_.weight) + row * group_channels +
                          unit_channel % group_channels);
    DCNZOO_UNROLL
    for (int w = 0; w < 4; ++w) weights.word[w] = Factors::factor(weights.word[w]);
    return weights;
  }

  DCNZOO_DEVICE Chunk sample(const char* source, int entry) const {
    Chunk corners[4];
    load_corners(corners, source, table_.corner(entry), PixelSteps(call_.shape, sizeof(Storage)));
    return interpolate<Factors>(corners, table_.weights(entry));
  }

  DCNZOO_DEVICE void store(float (&sums)[Tile::tiles_m][Tile::tiles_n][4]) const {
    char* staging = shared_ + warp() * 16 * staging_row_bytes(Tile::unit_channels, sizeof(Storage));
    Storage* output = static_cast<Storage*>(call_.output) +
                      (first_pixel_ + warp_pixel()) * call_.shape.out_channels + channel_;
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::tiles_m; ++i) {
      finish_sums(sums[i], static_cast<const Storage*>(call_.bias), channel_, Tile::unit_channels, call_.relu);
      store_rows(sums[i], staging,
                 OutputRows<Storage>{output + static_cast<int64_t>(16 * i) * call_.shape.out_channels,
                                     call_.shape.out_channels, pixels_ - warp_pixel() - 16 * i, Tile::unit_channels,
                                     true});
    }
  }

  const DeformConv2d& call_;
  const Tiling& tiling_;
  char* const shared_;
  const int64_t first_pixel_;
  const Pixel first_;
  const int pixels_;         // of the tile that exist
  const int block_channel_;  // first channel of the block, and of the warp
  const int channel_;
  Table table_;
};

}  // namespace dcnzoo::cuda
