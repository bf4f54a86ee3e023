// Deformable convolution as a matrix product on tensor cores whose left operand is sampled on the fly.
//
// A block of threads computes a tile of output pixels × output channels. Along the reduction axis, (tap,
// channel), it goes in steps of 128 bytes of channels. While the tensor cores multiply a step's operands, which
// lie in shared memory, the same warps sample the next step's: each thread loads 16 bytes of each of the four
// corners, interpolates in float32 and stores 16 bytes. The weights of the next step are copied meanwhile.
//
// Within a segment of 64 bytes the reduction axis is permuted, in both operands alike, so that the thread which
// the tensor cores want to have four separate words of a row has them as 16 consecutive bytes.
#pragma once

#include "sampling.h"

namespace dcnzoo::cuda {

constexpr int chunk_bytes = sizeof(Chunk);
constexpr int step_chunks = 8, step_bytes = step_chunks * chunk_bytes;

// Bytes of one row of a warp's part of the output on its way through shared memory: the padding makes the
// threads of a warp write to different banks.
DCNZOO_BOTH constexpr int staging_row_bytes(int columns, int element_bytes) { return columns * element_bytes + 16; }

// The columns that a warp has computed for 16 pixels, and where they go.
template <class Out>
struct OutputRows {
  Out* output;       // of the first of the pixels and columns
  int64_t row_step;  // elements from pixel to pixel
  int rows;          // pixels that exist
  int columns;       // columns that exist
  bool aligned;      // to chunks
};

// Writes 16 pixels × 8 · TILES columns, held as the tensor cores leave them, in whole chunks. `staging` is memory
// of this warp alone.
template <int TILES, class Out>
DCNZOO_DEVICE void store_rows(const float (&sums)[TILES][4], char* staging, const OutputRows<Out>& target) {
  constexpr int row_bytes = staging_row_bytes(8 * TILES, sizeof(Out)), chunk_elements = chunk_bytes / sizeof(Out);
  constexpr int row_chunks = 8 * TILES / chunk_elements;
  struct alignas(2 * sizeof(Out)) Two {
    Out value[2];
  };
  const int lane = thread_index() % warp_threads, row = lane / 4, column = lane % 4 * 2;
  DCNZOO_UNROLL
  for (int j = 0; j < TILES; ++j) {
    DCNZOO_UNROLL
    for (int half = 0; half < 2; ++half) {
      Two two;
      from_float(sums[j][2 * half], two.value[0]);
      from_float(sums[j][2 * half + 1], two.value[1]);
      const int byte = (row + 8 * half) * row_bytes + (8 * j + column) * static_cast<int>(sizeof(Out));
      store_shared(reinterpret_cast<Two*>(staging + byte), two);
    }
  }
  sync_warp();
  for (int i = lane; i < 16 * row_chunks; i += warp_threads) {
    const int r = i / row_chunks, first = i % row_chunks * chunk_elements;
    if (r >= target.rows || first >= target.columns) continue;
    const char* source = staging + r * row_bytes + first * static_cast<int>(sizeof(Out));
    Out* address = target.output + r * target.row_step + first;
    if (target.aligned) {
      store_global(address, load_shared(reinterpret_cast<const Chunk*>(source)));
    } else {
      const int count = smaller(chunk_elements, target.columns - first);
      for (int k = 0; k < count; ++k) address[k] = load_shared(reinterpret_cast<const Out*>(source) + k);
    }
  }
  sync_warp();
}

// Interpolates a chunk of channels.
template <class Factors>
DCNZOO_DEVICE Chunk interpolate(const Chunk (&corners)[4], const Weights<float>& weights) {
  Chunk result;
  DCNZOO_UNROLL
  for (int w = 0; w < 4; ++w) {
    Pair sum{0.0f, 0.0f};
    DCNZOO_UNROLL
    for (int k = 0; k < 4; ++k) {
      const Pair value = Factors::unpack(corners[k].word[w]);
      sum.low += weights.corner[k] * value.low;
      sum.high += weights.corner[k] * value.high;
    }
    result.word[w] = Factors::pack(sum);
  }
  return result;
}

// Loads the four corners of a sample. `source` is the first pixel of the input at the wanted chunk of channels.
DCNZOO_DEVICE void load_corners(Chunk (&corners)[4], const char* source, const Corner& corner, int64_t pixel_bytes,
                                int64_t row_bytes) {
  const char* top = source + corner.base();
  const char* bottom = top + (corner.steps_y() ? row_bytes : 0);
  const int64_t right = corner.steps_x() ? pixel_bytes : 0;
  corners[0] = load_global(top);
  corners[1] = load_global(top + right);
  corners[2] = load_global(bottom);
  corners[3] = load_global(bottom + right);
}

// One segment's products: `a` holds the chunks of rows r and r + 8, `b` that of a column.
template <class Factors>
DCNZOO_DEVICE void multiply_segment(float (&sums)[4], const Chunk& upper, const Chunk& lower, const Chunk& b) {
  Factors::multiply(sums, upper.word[0], lower.word[0], upper.word[1], lower.word[1], b.word[0], b.word[1]);
  Factors::multiply(sums, upper.word[2], lower.word[2], upper.word[3], lower.word[3], b.word[2], b.word[3]);
}

// Adds the bias to the sums of a warp's 16 pixels and applies ReLU. `first` is the first column's index.
template <int TILES, class T>
DCNZOO_DEVICE void finish_sums(float (&sums)[TILES][4], const T* bias, int first, int columns, bool relu) {
  const int column = thread_index() % 4 * 2;
  DCNZOO_UNROLL
  for (int j = 0; j < TILES; ++j) {
    DCNZOO_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int c = 8 * j + column + k % 2;
      if (bias != nullptr && c < columns) sums[j][k] += to_float(load_scalar(bias + first + c));
      if (relu) sums[j][k] = sums[j][k] < 0.0f ? 0.0f : sums[j][k];  // keeps NaN
    }
  }
}

// Sizes of a block. A warp computes (PIXELS / WARPS_M) × (COLUMNS / WARPS_N); BATCH is how many of its samples a
// thread loads ahead of the products.
template <class FACTORS, int PIXELS, int COLUMNS, int WARPS_M, int WARPS_N, int BATCH>
struct MmaTile {
  using Factors = FACTORS;
  static constexpr int pixels = PIXELS, columns = COLUMNS, batch = BATCH;
  static constexpr int warps_m = WARPS_M, warps_n = WARPS_N;
  static constexpr int threads = WARPS_M * WARPS_N * warp_threads;
  static constexpr int warp_rows = PIXELS / WARPS_M, warp_columns = COLUMNS / WARPS_N;
  static constexpr int tiles_m = warp_rows / 16, tiles_n = warp_columns / 8;
  static constexpr int rows_at_once = threads / step_chunks;
  static constexpr int samples = PIXELS / rows_at_once, copies = COLUMNS / rows_at_once;  // per thread and step
  static constexpr int stage_bytes = (PIXELS + COLUMNS) * step_bytes;
  static_assert(tiles_m * 16 * WARPS_M == PIXELS && tiles_n * 8 * WARPS_N == COLUMNS, "warps divide the tile");
  static_assert(samples * rows_at_once == PIXELS && copies * rows_at_once == COLUMNS, "threads divide the tile");
  static_assert(samples % BATCH == 0, "batches divide the samples");
  static_assert(rows_at_once % 8 == 0, "the order of chunks is the same in all rows of a thread");
  static_assert(WARPS_M * WARPS_N * 16 * staging_row_bytes(warp_columns, 4) <= 2 * stage_bytes,
                "the output's way through shared memory");
};

template <class Tile>
class MmaBlock {
  using Factors = typename Tile::Factors;
  using Storage = typename Factors::Storage;
  using Table = SampleTable<float, Tile::pixels>;

 public:
  // Shared memory that a block needs.
  static DCNZOO_BOTH int shared_bytes(int table_capacity) {
    return 2 * Tile::stage_bytes + table_capacity * Table::bytes;
  }

  DCNZOO_DEVICE MmaBlock(const DeformConv2d& call, const Tiling& tiling, char* shared)
      : MmaBlock(call, tiling, shared, Place(tiling, block_index())) {}

  DCNZOO_DEVICE void run() {
    float sums[Tile::tiles_m][Tile::tiles_n][4] = {};
    Chunk corners[Tile::batch][4];
    enter(begin_);
    start(begin_, corners);
    finish(begin_, corners);
    wait_for_copies();
    sync_block();
    // Warps that share an issue slot take turns, so that neither tensor cores nor loads ever stand still.
    const bool sample_first = thread_index() / warp_threads / 4 % 2 == 1;
    for (int step = begin_; step < end_; ++step) {
      const bool more = step + 1 < end_;
      if (more) {
        enter(step + 1);
        start(step + 1, corners);
      }
      if (more && sample_first) finish(step + 1, corners);
      multiply(step, sums);
      if (more && !sample_first) finish(step + 1, corners);
      wait_for_copies();
      sync_block();
    }
    store(sums);
  }

 private:
  // Which part of the output and of the reduction axis a block computes.
  struct Place {
    int64_t first_pixel;
    int group, split, column;

    DCNZOO_DEVICE Place(const Tiling& tiling, int64_t block) {
      column = static_cast<int>(block % tiling.column_tiles) * Tile::columns;
      block /= tiling.column_tiles;
      split = static_cast<int>(block % tiling.splits);
      block /= tiling.splits;
      first_pixel = block % tiling.pixel_tiles * Tile::pixels;
      group = static_cast<int>(block / tiling.pixel_tiles);
    }
  };

  DCNZOO_DEVICE MmaBlock(const DeformConv2d& call, const Tiling& tiling, char* shared, const Place& place)
      : call_(call),
        tiling_(tiling),
        shared_(shared),
        place_(place),
        first_(pixel_at(place.first_pixel, call.shape)),
        pixels_(static_cast<int>(smaller<int64_t>(Tile::pixels, call.shape.pixels() - place.first_pixel))),
        columns_(smaller(Tile::columns, call.shape.group_columns() - place.column)),
        group_bytes_(call.shape.group_channels() * static_cast<int>(sizeof(Storage))),
        steps_per_tap_((group_bytes_ + step_bytes - 1) / step_bytes),
        begin_(part(place.split)),
        end_(part(place.split + 1)),
        table_(shared + 2 * Tile::stage_bytes, tiling.table_capacity, pixel_bytes()) {}

  DCNZOO_DEVICE int64_t pixel_bytes() const { return call_.shape.channels * static_cast<int64_t>(sizeof(Storage)); }

  DCNZOO_DEVICE int part(int split) const {
    return static_cast<int>(static_cast<int64_t>(call_.shape.taps()) * steps_per_tap_ * split / tiling_.splits);
  }

  // The deformable group of the channels that start `byte` bytes into this block's group.
  DCNZOO_DEVICE int deform_group(int byte) const {
    const int channel = place_.group * call_.shape.group_channels() + byte / static_cast<int>(sizeof(Storage));
    return channel / call_.shape.deform_channels();
  }

  DCNZOO_DEVICE int deform_groups() const { return deform_group(group_bytes_ - chunk_bytes) - deform_group(0) + 1; }

  // Makes sure that the samples of a step are in the table. No thread may still read the ones before.
  DCNZOO_DEVICE void enter(int step) {
    const int tap = step / steps_per_tap_;
    if (tap < window_end_) return;
    window_end_ = smaller(tap + tiling_.window_taps, (end_ - 1) / steps_per_tap_ + 1);
    table_.fill(call_, first_, pixels_, Window{tap, window_end_ - tap, deform_group(0), deform_groups()});
    sync_block();
  }

  DCNZOO_DEVICE Chunk* stage(int step) const {
    return reinterpret_cast<Chunk*>(shared_ + (step - begin_) % 2 * Tile::stage_bytes);
  }

  // Where a chunk of a row lies: rows are rotated among themselves so that neither the threads that write a row
  // nor those that read a column of chunks meet in a bank.
  static DCNZOO_DEVICE int chunk_index(int row, int chunk) {
    return row * step_chunks + (chunk ^ (row / 2 % 4 | row % 2 * 4));
  }

  // The chunk of channels that this thread samples and copies in a step, in bytes from the start of the group.
  DCNZOO_DEVICE int own_byte(int step) const {
    return step % steps_per_tap_ * step_bytes + thread_index() % step_chunks * chunk_bytes;
  }

  // Starts what the next step needs: the copies of the weights, and the loads of the first samples.
  DCNZOO_DEVICE void start(int step, Chunk (&corners)[Tile::batch][4]) const {
    const int byte = own_byte(step), tap = step / steps_per_tap_, chunk = thread_index() % step_chunks;
    const bool inside = byte < group_bytes_;
    const int64_t row_step = static_cast<int64_t>(call_.shape.taps()) * group_bytes_;
    const int64_t first = static_cast<int64_t>(place_.group) * call_.shape.group_columns() + place_.column;
    int row = thread_index() / step_chunks;
    const char* source = static_cast<const char*>(call_.weight) + (first + row) * row_step +
                         static_cast<int64_t>(tap) * group_bytes_ + byte;
    Chunk* target = stage(step) + (Tile::pixels * step_chunks + chunk_index(row, chunk));
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::copies; ++i) {
      copy_async(target, source, inside && row < columns_);
      row += Tile::rows_at_once;
      source += Tile::rows_at_once * row_step;
      target += Tile::rows_at_once * step_chunks;
    }
    load_batch(step, 0, corners);
  }

  DCNZOO_DEVICE void load_batch(int step, int batch, Chunk (&corners)[Tile::batch][4]) const {
    const int byte = own_byte(step);
    if (byte >= group_bytes_) return;
    const char* source = static_cast<const char*>(call_.input) + static_cast<int64_t>(place_.group) * group_bytes_ + byte;
    const int first = own_samples(step, byte) + batch * Tile::batch * Tile::rows_at_once;
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::batch; ++i) {
      load_corners(corners[i], source, table_.corner(first + i * Tile::rows_at_once), pixel_bytes(),
                   pixel_bytes() * call_.shape.width);
    }
  }

  // The table's entry of this thread's first sample of a step.
  DCNZOO_DEVICE int own_samples(int step, int byte) const {
    return table_.index(step / steps_per_tap_, deform_group(byte), thread_index() / step_chunks);
  }

  // Interpolates and stores the samples of a step, the first of which are loaded.
  DCNZOO_DEVICE void finish(int step, Chunk (&corners)[Tile::batch][4]) const {
    const int byte = own_byte(step), chunk = thread_index() % step_chunks;
    const bool inside = byte < group_bytes_;
    const int entry = inside ? own_samples(step, byte) : 0;
    Chunk* target = stage(step) + chunk_index(thread_index() / step_chunks, chunk);
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::samples; ++i) {
      if (i > 0 && i % Tile::batch == 0) load_batch(step, i / Tile::batch, corners);
      Chunk sample{};
      if (inside) {
        sample = interpolate<Factors>(corners[i % Tile::batch], table_.weights(entry + i * Tile::rows_at_once));
      }
      store_shared(target + i * Tile::rows_at_once * step_chunks, sample);
    }
  }

  DCNZOO_DEVICE int warp_row() const { return thread_index() / warp_threads / Tile::warps_n * Tile::warp_rows; }
  DCNZOO_DEVICE int warp_column() const { return thread_index() / warp_threads % Tile::warps_n * Tile::warp_columns; }

  DCNZOO_DEVICE void multiply(int step, float (&sums)[Tile::tiles_m][Tile::tiles_n][4]) const {
    const int lane = thread_index() % warp_threads;
    const Chunk* a = stage(step) + (warp_row() + lane / 4) * step_chunks;
    const Chunk* b = stage(step) + (Tile::pixels + warp_column() + lane / 4) * step_chunks;
    DCNZOO_UNROLL
    for (int segment = 0; segment < 2; ++segment) {
      const int chunk = chunk_index(lane / 4, 4 * segment + lane % 4) - lane / 4 * step_chunks;
      Chunk columns[Tile::tiles_n];
      DCNZOO_UNROLL
      for (int j = 0; j < Tile::tiles_n; ++j) {
        columns[j] = load_shared(b + 8 * j * step_chunks + chunk);
        DCNZOO_UNROLL
        for (int w = 0; w < 4; ++w) columns[j].word[w] = Factors::factor(columns[j].word[w]);
      }
      DCNZOO_UNROLL
      for (int i = 0; i < Tile::tiles_m; ++i) {
        const Chunk upper = load_shared(a + 16 * i * step_chunks + chunk);
        const Chunk lower = load_shared(a + (16 * i + 8) * step_chunks + chunk);
        DCNZOO_UNROLL
        for (int j = 0; j < Tile::tiles_n; ++j) multiply_segment<Factors>(sums[i][j], upper, lower, columns[j]);
      }
    }
  }

  DCNZOO_DEVICE void store(float (&sums)[Tile::tiles_m][Tile::tiles_n][4]) const {
    const ConvShape& shape = call_.shape;
    const int column = place_.group * shape.group_columns() + place_.column + warp_column();
    const int64_t first = (place_.first_pixel + warp_row()) * shape.out_channels + column;
    if (call_.partial != nullptr) {
      store_to(call_.partial + place_.split * shape.pixels() * shape.out_channels + first, sums);
      return;
    }
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::tiles_m; ++i) {
      finish_sums(sums[i], static_cast<const Storage*>(call_.bias), column, columns_ - warp_column(), call_.relu);
    }
    store_to(static_cast<Storage*>(call_.output) + first, sums);
  }

  template <class Out>
  DCNZOO_DEVICE void store_to(Out* output, const float (&sums)[Tile::tiles_m][Tile::tiles_n][4]) const {
    char* staging = shared_ + thread_index() / warp_threads * 16 * staging_row_bytes(Tile::warp_columns, sizeof(Out));
    const bool aligned = call_.shape.group_columns() % (chunk_bytes / static_cast<int>(sizeof(Out))) == 0;
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::tiles_m; ++i) {
      store_rows(sums[i], staging,
                 OutputRows<Out>{output + static_cast<int64_t>(16 * i) * call_.shape.out_channels,
                                 call_.shape.out_channels, pixels_ - warp_row() - 16 * i, columns_ - warp_column(),
                                 aligned});
    }
  }

  const DeformConv2d& call_;
  const Tiling& tiling_;
  char* const shared_;
  const Place place_;
  const Pixel first_;
  const int pixels_, columns_;  // of the tile that exist
  const int group_bytes_, steps_per_tap_, begin_, end_;
  Table table_;
  int window_end_ = 0;
};

}  // namespace dcnzoo::cuda
