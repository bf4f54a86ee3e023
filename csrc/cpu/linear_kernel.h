// Linear layers, and 1×1 convolutions on channels-last maps, as matrix products with packed weights.
//
// A task is some blocks of rows; the reduction axis is cut into pieces, so that a panel of the weights and
// a block's part of the input stay in the caches while the result accumulates in the output itself. Factor is what is
// multiplied: float, or 16 bits to which a block's part of the input is rounded first.
#pragma once

#include "dense.h"
#include "gemm.h"
#include "half_factor.h"
#include "strassen.h"

namespace dcnzoo::cpu {
namespace {

// The packed weights: [piece of channels][panel of columns], or, large enough, [piece][part of Strassen's][panel].
template <class Factor>
struct LinearLayout {
  static constexpr bool rounds = !std::is_same_v<Factor, float>;
  static constexpr int64_t longest_piece = rounds ? 512 : 256, panel = panel_columns<Factor>;
  // As long as the second-level cache allows, since every piece adds the partial products to the output.
  static constexpr int64_t strassen_piece = DCNZOO_VECTOR_BYTES == 64 ? 2048 : 512;

  int64_t channels, columns, padded_columns;
  bool strassen;
  int64_t piece_channels;

  LinearLayout(int64_t out_channels, int64_t in_channels)
      : channels(in_channels),
        columns(out_channels),
        padded_columns(round_up(out_channels, Multiplier<Factor>::width)),
        strassen(!rounds && strassen_pays(in_channels, out_channels) && in_channels % 2 == 0) {
    const int64_t longest = strassen ? strassen_piece : longest_piece;
    piece_channels = ceil_div(in_channels, ceil_div(in_channels, longest));
    piece_channels = strassen ? round_up(piece_channels, 2) : padded(piece_channels);
  }

  // A depth that can be multiplied.
  static int64_t padded(int64_t depth) { return round_up(depth, Multiplier<Factor>::depth_multiple); }
  int64_t pieces() const { return ceil_div(channels, piece_channels); }
  int64_t numel() const { return offset(strassen ? channels : padded(channels)); }
  int64_t offset(int64_t first_channel) const {
    return strassen ? strassen_numel(first_channel, columns) : first_channel * padded_columns;
  }

  // Rows that are multiplied at once. A weight that exceeds the caches should be read seldom; with a small one,
  // half of the time goes by until input and output come from memory.
  int64_t block_rows() const {
    constexpr int64_t cached = 4 << 20, small = 1 << 15;  // elements
    return channels * columns > cached ? 252 : channels * columns <= small ? 48 : 96;
  }

  // Of a worker, for products of at most so many rows; whole cache lines.
  int64_t scratch_bytes(int64_t rows) const {
    if constexpr (rounds) return round_up(rows * piece_channels * static_cast<int64_t>(sizeof(Factor)), 64);
    return strassen ? round_up(static_cast<int64_t>(StrassenProduct::scratch_bytes(rows, piece_channels, columns)), 64) : 0;
  }
};

template <class Factor>
int64_t linear_packed_numel(int64_t out_channels, int64_t in_channels) {
  return LinearLayout<Factor>(out_channels, in_channels).numel();
}

template <class Factor>
int64_t linear_pieces(int64_t out_channels, int64_t in_channels) {
  return LinearLayout<Factor>(out_channels, in_channels).pieces();
}

template <class Factor>
void pack_linear(const float* weight, int64_t out_channels, int64_t in_channels, void* packed, int64_t begin,
                 int64_t end) {
  const LinearLayout<Factor> layout(out_channels, in_channels);
  const auto at = [&](int64_t channel, int64_t column) { return weight[column * layout.channels + channel]; };
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t first = piece * layout.piece_channels, depth = min(layout.piece_channels, layout.channels - first);
    const int64_t padded_depth = layout.padded(depth);
    auto* target = static_cast<MultiplierB<Factor>*>(packed) + layout.offset(first);
    if (!layout.strassen) {
      for (int64_t panel = 0; panel < layout.padded_columns; panel += layout.panel) {
        const int64_t panel_end = min(panel + layout.panel, layout.padded_columns);
        for (int64_t channel = 0; channel < padded_depth; ++channel) {
          for (int64_t column = panel; column < panel_end; ++column) {
            const bool real = column < layout.columns && channel < depth;
            store_number(target + Multiplier<Factor>::place(channel, column - panel, panel_end - panel),
                         real ? at(first + channel, column) : 0.0f);
          }
        }
        target += padded_depth * (panel_end - panel);
      }
      continue;
    }
    if constexpr (!layout.rounds) {
      const int64_t d = depth / 2, n = layout.columns / 2;
      for (int64_t part = 0; part < strassen_parts; ++part) {
        for (int64_t panel = 0; panel < n; panel += layout.panel, target += d * layout.panel) {
          pack_strassen_panel(static_cast<StrassenPart>(part), d, n, panel, target,
                              [&](int64_t channel, int64_t column) { return at(first + channel, column); });
        }
      }
    }
  }
}

// Blocks of a task: input and output of the next one come from memory meanwhile. But threads take turns in taking tasks, so
// that a slow core delays nobody.
inline int64_t blocks_per_task(int64_t blocks, int threads) {
  constexpr int64_t most = 8, tasks_per_thread = 4;
  return max<int64_t>(1, min(most, blocks / (tasks_per_thread * threads)));
}

// The rows of a block. What one layer leaves to the next, and the weights of both, should stay in the second-level cache.
template <class Factor>
int64_t block_rows(const Linear& call) {
  const LinearLayout<Factor> layout(call.out_channels, call.in_channels);
  return call.next == nullptr ? layout.block_rows() : layout.rounds ? 252 : 72;
}

template <class Factor>
bool any_strassen(const Linear& call) {
  return LinearLayout<Factor>(call.out_channels, call.in_channels).strassen ||
         (call.next != nullptr && any_strassen<Factor>(*call.next));
}

// Of the sums that become 16-bit numbers, a block's.
inline int64_t sums_bytes(const Linear& call, int64_t rows) {
  return call.half_output ? round_up(rows * call.out_channels * static_cast<int64_t>(sizeof(float)), 64) : 0;
}

template <class Factor>
int64_t linear_scratch_bytes(const Linear& call, int64_t rows) {
  const LinearLayout<Factor> layout(call.out_channels, call.in_channels);
  const int64_t bytes = layout.scratch_bytes(rows) + sums_bytes(call, rows);
  return call.next == nullptr ? bytes : max(bytes, linear_scratch_bytes<Factor>(*call.next, rows));
}

template <class Factor>
LinearSchedule schedule_linear(const Linear& call, int threads) {
  const int64_t most_rows = block_rows<Factor>(call);
  const bool strassen = any_strassen<Factor>(call);
  const bool joined = call.run_stride == call.length * call.row_stride;  // the runs are one matrix in the input
  LinearSchedule schedule{call.runs, 1, 0};
  // Strassen's sums join rows of a block: those of different images do not belong together.
  if (call.runs > 1 && joined && !strassen && call.next == nullptr && 2 * call.length <= most_rows) {
    const int64_t blocks = ceil_div(call.runs, most_rows / call.length);
    schedule.run_blocks = min(call.runs, round_up(blocks, threads));
  } else {
    const int64_t blocks = ceil_div(call.length, most_rows), tasks = ceil_div(blocks, blocks_per_task(blocks, threads));
    schedule.row_blocks = call.runs > 1 && !strassen ? tasks : min(call.length, round_up(tasks, threads));
  }
  const int64_t rows = ceil_div(call.runs, schedule.run_blocks) * ceil_div(call.length, schedule.row_blocks);
  schedule.scratch_bytes = static_cast<size_t>(linear_scratch_bytes<Factor>(call, min(rows, most_rows)));
  return schedule;
}

// Copies a matrix as factors, with zeros behind its rows.
template <class Factor, class Input>
void round_rows(const Input* input, int64_t stride, int64_t rows, int64_t depth, Factor* target, int64_t target_stride) {
  constexpr int width = Simd<float>::width;
  for (int64_t row = 0; row < rows; ++row, input += stride, target += target_stride) {
    int64_t k = 0;
    for (; k + width <= depth; k += width) store_vector(target + k, load_vector(input + k));
    for (; k < depth; ++k) store_number(target + k, number(input[k]));
    for (; k < target_stride; ++k) store_number(target + k, 0.0f);
  }
}

// A block of rows: of `runs` runs, or of one.
template <class Factor, class Input>
void run_linear_block(const Linear& call, const LinearLayout<Factor>& layout, const Rows& rows, const Input* input,
                      float* output, int64_t output_ahead, void* scratch) {
  const int64_t input_ahead = rows.runs == 1 ? rows.length * call.row_stride : rows.runs * call.run_stride;
  for (int64_t piece = 0; piece < call.in_channels; piece += layout.piece_channels) {
    const int64_t depth = min(layout.piece_channels, call.in_channels - piece);
    const bool first = piece == 0, last = piece + depth == call.in_channels;
    const auto* weight = static_cast<const MultiplierB<Factor>*>(call.packed_weight) + layout.offset(piece);
    const Epilogue<float> epilogue{!first || call.accumulate, last && call.relu, first ? call.bias : nullptr,
                                   last ? output_ahead : 0};
    const int64_t distance = last ? input_ahead - piece : depth;
    const NextRows next{input + piece + distance, call.row_stride * static_cast<int64_t>(sizeof(Input)),
                        depth * static_cast<int64_t>(sizeof(Input))};
    const int64_t padded_depth = layout.padded(depth);
    if constexpr (std::is_same_v<Input, Factor>) {  // in place, where every row begins at a whole step of the depth
      if (!layout.strassen && layout.padded(call.in_channels) == call.in_channels) {
        matrix_product(rows, call.out_channels, depth, input + piece, call.row_stride, weight, output, call.out_channels,
                       epilogue, next);
        continue;
      }
    }
    if constexpr (layout.rounds) {
      auto* rounded = static_cast<Factor*>(scratch);
      round_rows(input + piece, call.row_stride, rows.runs * rows.length, depth, rounded, padded_depth);
      matrix_product(rows, call.out_channels, padded_depth, rounded, padded_depth, weight, output, call.out_channels,
                     epilogue, next);
    } else {
      StrassenProduct(rows, call.out_channels, depth, input + piece, call.row_stride, output, call.out_channels,
                      epilogue, scratch)
          .run(weight, 0, call.out_channels / 2, distance);
    }
  }
}

// Rows [row, row + rows) of the runs from `run` on. The output of a later block, `ahead` elements from this one's, is fetched
// meanwhile; 0 for none.
template <class Factor>
void run_linear_rows(const Linear& call, int64_t run, int64_t runs, int64_t row, int64_t rows, int64_t ahead, void* scratch) {
  const LinearLayout<Factor> layout(call.out_channels, call.in_channels);
  const int64_t source = run * call.run_stride + row * call.row_stride;
  const int64_t target = run * call.output_run_stride + row * call.out_channels;
  const auto product = [&](int64_t run_stride, float* output, int64_t output_ahead) {
    const Rows block{runs, rows, run_stride};
    if (call.half_input) {
      run_linear_block(call, layout, block, static_cast<const Factor*>(call.input) + source, output, output_ahead, scratch);
    } else {
      run_linear_block(call, layout, block, static_cast<const float*>(call.input) + source, output, output_ahead, scratch);
    }
  };
  if (!call.half_output) return product(call.output_run_stride, static_cast<float*>(call.output) + target, ahead);
  const int64_t numel = rows * call.out_channels;
  auto* sums = reinterpret_cast<float*>(static_cast<char*>(scratch) + layout.scratch_bytes(runs * rows));
  product(numel, sums, 0);
  for (int64_t i = 0; i < runs; ++i) {
    store_numbers(static_cast<Factor*>(call.output) + target + i * call.output_run_stride, sums + i * numel, numel);
  }
}

template <class Factor>
void run_linear(const Linear& call, const LinearSchedule& schedule, int64_t task, void* scratch) {
  const int64_t row_task = task % schedule.row_blocks, run_task = task / schedule.row_blocks;
  const int64_t run = call.runs * run_task / schedule.run_blocks;
  const int64_t runs = call.runs * (run_task + 1) / schedule.run_blocks - run;
  const int64_t begin = call.length * row_task / schedule.row_blocks;
  const int64_t length = call.length * (row_task + 1) / schedule.row_blocks - begin;
  const int64_t blocks = runs == 1 ? ceil_div(length, block_rows<Factor>(call)) : 1;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t row = begin + length * block / blocks, rows = begin + length * (block + 1) / blocks - row;
    for (const Linear* part = &call; part != nullptr; part = part->next) {
      const bool fetch = block + 1 < blocks && part->next == nullptr;  // the next layer fetches its input, this one's output
      run_linear_rows<Factor>(*part, run, runs, row, rows, fetch ? rows * part->out_channels : 0, scratch);
    }
  }
}

template <class Factor>
constexpr LinearKernels linear_kernels() {
  return {linear_packed_numel<Factor>, pack_linear<Factor>, linear_pieces<Factor>, schedule_linear<Factor>,
          run_linear<Factor>};
}

}  // namespace
}  // namespace dcnzoo::cpu
