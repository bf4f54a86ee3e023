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

int64_t linear_packed_numel(int64_t out_channels, int64_t in_channels) {
  return LinearLayout(out_channels, in_channels).numel();
}

int64_t linear_pieces(int64_t in_channels) { return LinearLayout(1, in_channels).pieces(); }

void pack_linear(const float* weight, int64_t out_channels, int64_t in_channels, float* packed, int64_t begin,
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

LinearSchedule schedule_linear(const Linear& call, int threads) {
  const LinearLayout layout(call.out_channels, call.in_channels);
  const int64_t most = layout.numel() > (4 << 20) ? 252 : 96;
  LinearSchedule schedule{};
  schedule.blocks = ceil_div(call.length, most);
  if (call.runs == 1) schedule.blocks = min(call.length, round_up(schedule.blocks, threads));
  schedule.parts = 1;
  return schedule;
}

void run_linear(const Linear& call, const LinearSchedule& schedule, int64_t task) {
  const LinearLayout layout(call.out_channels, call.in_channels);
  const int64_t block = task % schedule.blocks, run = task / schedule.blocks;
  const int64_t begin = call.length * block / schedule.blocks, end = call.length * (block + 1) / schedule.blocks;
  const float* input = call.input + run * call.run_stride + begin * call.row_stride;
  float* output = call.output + (run * call.length + begin) * call.out_channels;
  for (int64_t piece = 0; piece < call.in_channels; piece += layout.piece_channels) {
    const int64_t depth = min(layout.piece_channels, call.in_channels - piece);
#if PACK
    static thread_local float* buf = (float*)__builtin_malloc(4*1024*512);
    for (int64_t i = 0; i < end - begin; ++i)
      for (int64_t c = 0; c < depth; c += 8) Simd<float>::store(buf + i * depth + c, Simd<float>::load(input + piece + i * call.row_stride + c));
#endif
    const bool first = piece == 0, last = piece + depth == call.in_channels;
    matrix_product(Rows{1, end - begin, 0}, call.out_channels, depth,
#if PACK
 buf, depth,
#else
 input + piece, call.row_stride,
#endif

                   call.packed_weight + piece * layout.padded_columns, output, call.out_channels,
                   Epilogue<float>{!first || call.accumulate, last && call.relu, first ? call.bias : nullptr});
  }
}

constexpr LinearKernels linear_kernels() {
  return {linear_packed_numel, pack_linear, linear_pieces, schedule_linear, run_linear};
}

}  // namespace
}  // namespace dcnzoo::cpu
