// Which kernel computes a deformable convolution, and how it is cut into blocks.
#pragma once

#include "deform_conv2d_grouped.h"
#include "deform_conv2d_simt.h"
#include "deform_conv2d_wgmma.h"

namespace dcnzoo::cuda {

// Two blocks of a kernel leave 128 registers to each thread: enough for the smaller tiles.
template <class Factors>
using Mma64x128 = MmaTile<Factors, 64, 128, 2, 4, 2, 2>;
template <class Factors>
using Mma128x64 = MmaTile<Factors, 128, 64, 4, 2, 2, 2>;
template <class Factors>
using Mma128x128 = MmaTile<Factors, 128, 128, 2, 4, 4, 1>;
template <class Factors>
using Mma128x256 = MmaTile<Factors, 128, 256, 2, 4, 1, 1>;

template <class Factors>
using Wgmma64x128 = WgmmaTile<Factors, 64, 128, 3, 4, 152, 4>;
template <class Factors>
using Wgmma64x256 = WgmmaTile<Factors, 64, 256, 2, 4, 216, 4>;
template <class Factors>
using Wgmma128x128 = WgmmaTile<Factors, 128, 128, 2, 4, 136, 4>;
template <class Factors>
using Wgmma128x256 = WgmmaTile<Factors, 128, 256, 2, 3, 168, 2>;

template <class Factors, int SEGMENTS>
using Grouped = GroupedTile<Factors, SEGMENTS, 2, 2>;

// float64 sums take twice the registers, so half the pixels.
template <class T>
using Simt = SimtTile<T, sizeof(typename Accumulator<T>::type) == 4 ? 8 : 4>;

// Estimates of what a block costs, in clock cycles of a multiprocessor. They follow from the bytes that pass
// through the first-level cache, 128 per cycle, and from the second-level one, which all multiprocessors share, the
// rates of mma.sync and wgmma, and the instructions that four schedulers issue, one per cycle each; none has been
// measured.
struct Cost {
  static constexpr double start = 3000;         // of a kernel
  static constexpr double table = 1500;         // of a window of samples
  static constexpr double bytes_per_cycle = 128, second_level_bytes_per_cycle = 32, device_bytes_per_cycle = 1500;
  static constexpr double second_level_bytes = 16 << 20;  // that stay there from one kernel to the next
  static constexpr double instructions_per_cycle = 4;
  static constexpr double mma_factors_per_cycle = 1200, wgmma_factors_per_cycle = 2048;  // of 16 bits
};

class Planner {
 public:
  Planner(const ConvShape& shape, Element element, bool allow_tf32, const Gpu& gpu)
      : shape_(shape), element_(element), tf32_(element == Element::float32 && allow_tf32), gpu_(gpu) {}

  Plan choose(const Choice* forced) const {
    Plan best = simt();
    if (!has_factors()) return best;
    double least = 0;
    const auto consider = [&](const Plan& plan, double cost) {
      const bool wanted = forced == nullptr || forced->kernel == plan.kernel;
      const bool possible = plan.tiling.window_taps > 0 && plan.shared_bytes <= gpu_.shared_bytes;
      if (possible && wanted && (best.kernel == Kernel::simt || cost < least)) {
        best = plan, best.cycles = least = cost;
      }
    };
    if (grouped_units() > 0) {
      consider(grouped(), 0);  // wherever it can compute, it samples once and has no other work
    }
    for (const Kernel kernel : {Kernel::mma_128x256, Kernel::mma_128x128, Kernel::mma_128x64, Kernel::mma_64x128}) {
      consider_splits(kernel, forced, consider);
    }
    // These have not run on a GPU yet. Until they have, they compute only where they are asked for: without this
    // condition their estimates would take them for many layers.
    const bool asked = forced != nullptr || gpu_.try_wgmma;
    if (asked && gpu_.wgmma && element_bytes(element_) == 2) {
      for (const Kernel kernel :
           {Kernel::wgmma_128x256, Kernel::wgmma_128x128, Kernel::wgmma_64x256, Kernel::wgmma_64x128}) {
        consider_splits(kernel, forced, consider);
      }
    }
    return best;
  }

 private:
  static int ceil(int64_t a, int64_t b) { return static_cast<int>(ceil_div(a, b)); }

  int group_bytes() const { return shape_.group_channels() * element_bytes(element_); }

  // Whether the tensor cores know these numbers, and the samples' loads reach every pixel and come in whole chunks.
  bool has_factors() const {
    const int chunk = chunk_bytes / element_bytes(element_);
    const bool known = element_ == Element::float16 || element_ == Element::bfloat16 || tf32_;
    const int64_t row_bytes = static_cast<int64_t>(shape_.channels) * shape_.width * element_bytes(element_);
    return known && shape_.group_channels() % chunk == 0 && shape_.deform_channels() % chunk == 0 &&
           row_bytes < most_row_bytes;
  }

  // Deformable groups that `channels` consecutive channels, which start at a multiple of `step`, belong to at most.
  int deform_groups_of(int channels, int step) const {
    const int width = shape_.deform_channels();
    int most = 0;
    for (int first = 0; first < shape_.channels; first += step) {
      const int last = smaller(first + channels, shape_.channels) - 1;
      most = larger(most, last / width - first / width + 1);
    }
    return most;
  }

  // As many taps in the table as have room.
  void set_window(Plan& plan, int deform_groups, int table_bytes, int room) const {
    plan.tiling.window_taps = smaller(shape_.taps(), larger(0, room / (deform_groups * table_bytes)));
    plan.tiling.table_capacity = plan.tiling.window_taps * deform_groups;
  }

  template <class T>
  Plan simt() const {
    using Tile = Simt<T>;
    constexpr int table_bytes = SampleTable<typename Tile::Sum, Tile::pixels>::bytes, room = 32 << 10;
    Plan plan = tiled(Kernel::simt, Tile::pixels, Tile::columns, 1);
    plan.tf32 = false;
    plan.threads = Tile::threads;
    set_window(plan, deform_groups_of(shape_.group_channels(), shape_.group_channels()), table_bytes, room);
    if (plan.tiling.window_taps == 0) {  // a table for one step at a time
      plan.tiling.table_capacity = (Tile::depth + shape_.deform_channels() - 2) / shape_.deform_channels() + 1;
    }
    plan.shared_bytes = SimtBlock<Tile>::shared_bytes(plan.tiling.table_capacity);
    return plan;
  }

  Plan simt() const { return element_ == Element::float64 ? simt<double>() : simt<float>(); }

  // Units of the grouped kernel; 0 where it does not apply.
  int grouped_units() const {
    const int channels = shape_.group_channels();
    const bool fits = shape_.channels == shape_.out_channels && unit_channels() % channels == 0;
    return fits && shape_.channels % unit_channels() == 0 ? shape_.channels / unit_channels() : 0;
  }

  int segments() const { return element_ == Element::float32 && shape_.group_channels() == 32 ? 2 : 1; }
  int unit_channels() const { return segments() * segment_chunks * chunk_bytes / element_bytes(element_); }

  Plan grouped() const {
    using Tile = Grouped<HalfFactors, 1>;  // the sizes that matter here are the same for all
    constexpr int room = 48 << 10;
    Plan plan = tiled(Kernel::grouped, Tile::pixels, 0, 1);
    plan.tiling.column_tiles = ceil(grouped_units(), Tile::unit_warps);
    plan.blocks = plan.tiling.pixel_tiles * plan.tiling.column_tiles;
    plan.threads = Tile::threads;
    const int channels = Tile::unit_warps * unit_channels();
    set_window(plan, deform_groups_of(channels, channels), SampleTable<float, Tile::pixels>::bytes, room);
    plan.shared_bytes = larger(GroupedBlock<Tile>::shared_bytes(plan.tiling.table_capacity),
                               GroupedBlock<Grouped<Tf32Factors, 2>>::shared_bytes(plan.tiling.table_capacity));
    return plan;
  }

  Plan tiled(Kernel kernel, int pixels, int columns, int splits) const {
    Plan plan{};
    plan.kernel = kernel;
    plan.tf32 = tf32_;
    plan.tiling.pixel_tiles = ceil_div(shape_.pixels(), pixels);
    plan.tiling.column_tiles = columns == 0 ? 1 : ceil(shape_.group_columns(), columns);
    plan.tiling.splits = splits;
    plan.blocks = plan.tiling.pixel_tiles * plan.tiling.column_tiles * splits * shape_.groups;
    return plan;
  }

  template <class Consider>
  void consider_splits(Kernel kernel, const Choice* forced, const Consider& consider) const {
    using Factors = HalfFactors;  // the sizes that matter here are the same for all
    switch (kernel) {
      case Kernel::mma_64x128: return consider_block<MmaBlock<Mma64x128<Factors>>>(kernel, forced, consider);
      case Kernel::mma_128x64: return consider_block<MmaBlock<Mma128x64<Factors>>>(kernel, forced, consider);
      case Kernel::mma_128x128: return consider_block<MmaBlock<Mma128x128<Factors>>>(kernel, forced, consider);
      case Kernel::wgmma_64x128: return consider_block<WgmmaBlock<Wgmma64x128<Factors>>>(kernel, forced, consider);
      case Kernel::wgmma_64x256: return consider_block<WgmmaBlock<Wgmma64x256<Factors>>>(kernel, forced, consider);
      case Kernel::wgmma_128x128: return consider_block<WgmmaBlock<Wgmma128x128<Factors>>>(kernel, forced, consider);
      case Kernel::wgmma_128x256: return consider_block<WgmmaBlock<Wgmma128x256<Factors>>>(kernel, forced, consider);
      default: return consider_block<MmaBlock<Mma128x256<Factors>>>(kernel, forced, consider);
    }
  }

  int steps() const { return shape_.taps() * ceil(group_bytes(), step_bytes); }

  template <class Block, class Consider>
  void consider_block(Kernel kernel, const Choice* forced, const Consider& consider) const {
    using Tile = typename Block::Tile;
    constexpr int most_splits = 8, fewest_steps = 4;
    const double rate = kernel < Kernel::wgmma_64x128 ? Cost::mma_factors_per_cycle : Cost::wgmma_factors_per_cycle;
    const int limit = smaller(steps(), larger(1, smaller(most_splits, steps() / fewest_steps)));
    for (int splits = 1; splits <= limit; ++splits) {
      const bool wanted = forced == nullptr || forced->splits <= 0 || forced->splits == splits;
      if (!wanted && !(splits == limit && forced->splits > limit)) continue;
      Plan plan = tiled(kernel, Tile::pixels, Tile::columns, splits);
      plan.threads = Tile::threads;
      const int deform_groups = deform_groups_of(shape_.group_channels(), shape_.group_channels());
      set_window(plan, deform_groups, SampleTable<float, Tile::pixels>::bytes,
                 gpu_.shared_bytes - Block::shared_bytes(0));
      plan.shared_bytes = Block::shared_bytes(plan.tiling.table_capacity);
      consider(plan, estimate<Tile>(plan, rate));
    }
  }

  // `rate` is the tensor cores' for factors of 16 bits.
  template <class Tile>
  double estimate(const Plan& plan, double rate) const {
    constexpr double samples = 5 * Tile::pixels;  // 4 corners, 1 store
    constexpr double bytes = (samples + Tile::columns + Tile::operand_rows) * step_bytes;
    const double factors = static_cast<double>(Tile::pixels) * Tile::columns * step_bytes / element_bytes(element_);
    if (element_ == Element::float32) rate /= 2;
    constexpr double issue = Tile::instructions / Cost::instructions_per_cycle;
    // The weights, and of the input as many pixels as the tile has: what taps and corners share, the first-level
    // cache keeps.
    constexpr double fetch = (Tile::pixels + Tile::columns) * step_bytes / Cost::second_level_bytes_per_cycle;
    const double step = larger(larger(issue, fetch), larger(bytes / Cost::bytes_per_cycle, factors / rate));
    const int block_steps = ceil(steps(), plan.tiling.splits);
    const int windows = ceil(block_steps, larger(1, plan.tiling.window_taps * (steps() / shape_.taps())));
    const double block = Cost::table * windows + step * block_steps +
                         Tile::pixels * Tile::columns * 8.0 / Cost::bytes_per_cycle;
    // Blocks that are on a multiprocessor at once share what bounds them.
    double total = static_cast<double>(ceil_div(plan.blocks, gpu_.multiprocessors)) * block;
    if (plan.tiling.splits > 1) {
      const double sums = static_cast<double>(shape_.pixels()) * shape_.out_channels * 4;
      const double all_bytes_per_cycle = plan.tiling.splits * sums < Cost::second_level_bytes
                                             ? gpu_.multiprocessors * Cost::second_level_bytes_per_cycle
                                             : Cost::device_bytes_per_cycle;
      total += Cost::start + sums * (2 * plan.tiling.splits + 1) / all_bytes_per_cycle;
    }
    return total;
  }

  const ConvShape& shape_;
  const Element element_;
  const bool tf32_;
  const Gpu gpu_;
};

}  // namespace dcnzoo::cuda
