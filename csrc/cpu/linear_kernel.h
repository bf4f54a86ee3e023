// Linear layers, and 1×1 convolutions on channels-last maps, as matrix products with packed weights.
//
// A task is a block of rows; the reduction axis is cut into pieces, so that a panel of the weights and
// the block's part of the input stay in the caches while the result accumulates in the output itself.
#pragma once

#include "dense.h"
#include "gemm.h"

namespace dcnzoo::cpu {
namespace {

// The packed weights: [piece of channels][panel of columns].
struct LinearLayout {
  static constexpr int64_t longest_piece = 256;

  int64_t channels, columns, padded_columns, piece_channels;

  LinearLayout(int64_t out_channels, int64_t in_channels)
      : channels(in_channels),
        columns(out_channels),
        padded_columns(round_up(out_channels, Simd<float>::width)),
        piece_channels(ceil_div(in_channels, ceil_div(in_channels, longest_piece))) {}

  int64_t pieces() const { return ceil_div(channels, piece_channels); }
  int64_t numel() const { return channels * padded_columns; }
};

inline int64_t linear_packed_numel(int64_t out_channels, int64_t in_channels) {
  return LinearLayout(out_channels, in_channels).numel();
}

inline int64_t linear_pieces(int64_t in_channels) { return LinearLayout(1, in_channels).pieces(); }

inline void pack_linear(const float* weight, int64_t out_channels, int64_t in_channels, float* packed, int64_t begin,
                 int64_t end) {
  const LinearLayout layout(out_channels, in_channels);
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t first = piece * layout.piece_channels, last = min(first + layout.piece_channels, layout.channels);
    float* target = packed + first * layout.padded_columns;
    for (int64_t panel = 0; panel < layout.padded_columns; panel += Tile<float>::panel) {
      const int64_t panel_end = min<int64_t>(panel + Tile<float>::panel, layout.padded_columns);
      for (int64_t channel = first; channel < last; ++channel)
        for (int64_t column = panel; column < panel_end; ++column)
          *target++ = column < layout.columns ? weight[column * layout.channels + channel] : 0.0f;
    }
  }
}

inline LinearSchedule schedule_linear(const Linear& call, int threads) {
  constexpr int64_t cached_weight = 4 << 20;  // elements; a larger weight should be streamed as seldom as possible
  const int64_t most_rows = LinearLayout(call.out_channels, call.in_channels).numel() > cached_weight ? 252 : 96;
  const bool joined = call.run_stride == call.length * call.row_stride;  // the runs are one matrix in the input
  if (call.runs > 1 && joined && 2 * call.length <= most_rows) {
    const int64_t blocks = ceil_div(call.runs, most_rows / call.length);
    return {min(call.runs, round_up(blocks, threads)), 1};
  }
  const int64_t blocks = ceil_div(call.length, most_rows);
  return {call.runs, call.runs > 1 ? blocks : min(call.length, round_up(blocks, threads))};
}

inline void run_linear(const Linear& call, const LinearSchedule& schedule, int64_t task) {
  const LinearLayout layout(call.out_channels, call.in_channels);
  const int64_t row_block = task % schedule.row_blocks, run_block = task / schedule.row_blocks;
  const int64_t run = call.runs * run_block / schedule.run_blocks;
  const int64_t runs = call.runs * (run_block + 1) / schedule.run_blocks - run;
  const int64_t row = call.length * row_block / schedule.row_blocks;
  const Rows rows{runs, call.length * (row_block + 1) / schedule.row_blocks - row, call.output_run_stride};
  const float* input = call.input + run * call.run_stride + row * call.row_stride;
  float* output = call.output + run * call.output_run_stride + row * call.out_channels;
  for (int64_t piece = 0; piece < call.in_channels; piece += layout.piece_channels) {
    const int64_t depth = min(layout.piece_channels, call.in_channels - piece);
    const bool first = piece == 0, last = piece + depth == call.in_channels;
    matrix_product(rows, call.out_channels, depth, input + piece, call.row_stride,
                   call.packed_weight + piece * layout.padded_columns, output, call.out_channels,
                   Epilogue<float>{!first || call.accumulate, last && call.relu, first ? call.bias : nullptr},
                   last ? (runs == 1 ? rows.length * call.row_stride - piece : runs * call.run_stride - piece) : depth);
  }
}

constexpr LinearKernels linear_kernels() {
  return {linear_packed_numel, pack_linear, linear_pieces, schedule_linear, run_linear};
}

}  // namespace
}  // namespace dcnzoo::cpu
