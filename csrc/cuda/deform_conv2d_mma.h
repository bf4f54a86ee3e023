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

// The chunk, or zeros; without a branch.
DCNZOO_DEVICE Chunk keep_if(bool wanted, Chunk chunk) {
  DCNZOO_UNROLL
  for (int w = 0; w < 4; ++w) chunk.word[w] = wanted ? chunk.word[w] : 0;
  return chunk;
}

// Bytes from a pixel of the input to the next, and half of those to the one below. A row has less than this:
constexpr int64_t most_row_bytes = int64_t{1} << 33;

struct PixelSteps {
  uint32_t x, half_y;

  DCNZOO_DEVICE PixelSteps(const ConvShape& shape, int element_bytes)
      : x(static_cast<uint32_t>(shape.channels * static_cast<int64_t>(element_bytes))),
        half_y(static_cast<uint32_t>(shape.channels * static_cast<int64_t>(element_bytes) * shape.width / 2)) {}
};

// Loads the four corners of a sample. `source` is the first pixel of the input at the wanted chunk of channels.
DCNZOO_DEVICE void load_corners(Chunk (&corners)[4], const char* source, const Corner& corner,
                                const PixelSteps& steps) {
  const char* top = source + corner.base();
  const char* bottom = steps_from(top, corner.twice_steps_y(), steps.half_y);
  corners[0] = load_global(top);
  corners[1] = load_global(steps_from(top, corner.steps_x(), steps.x));
  corners[2] = load_global(bottom);
  corners[3] = load_global(steps_from(bottom, corner.steps_x(), steps.x));
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
      if (relu) sums[j][k] = not_negative(sums[j][k]);
    }
  }
}

// A step of the reduction axis: a part of a tap's channels. The taps of a window, of which this is the first, have their
// samples in the table at once.
struct Step {
  int window, tap, part;
};

// What a thread samples in a step.
struct Source {
  int tap, byte;      // the first of its channels, from the start of the group
  bool inside;        // whether there are such channels
  const char* input;  // these channels of the first pixel, or others where there are none
  int entry;          // of the table, for the thread's first sample
};

// What a block computes: a tile of output pixels × columns of a group, and a part of the steps of the reduction axis.
template <class Storage, int PIXELS, int COLUMNS>
class BlockWork {
  // Which tile and part. For the rest to be constants too, it is known before them.
  struct Place {
    int64_t first_pixel;
    int group, split, column;

    DCNZOO_DEVICE Place(const Tiling& tiling, int64_t block) {
      const Division by_column = divide(block, tiling.column_tiles);
      const Division by_split = divide(by_column.quotient, tiling.splits);
      const Division by_pixel = divide(by_split.quotient, tiling.pixel_tiles);
      column = static_cast<int>(by_column.rest) * COLUMNS;
      split = static_cast<int>(by_split.rest);
      first_pixel = by_pixel.rest * PIXELS;
      group = static_cast<int>(by_pixel.quotient);
    }
  };

 public:
  using Table = SampleTable<float, PIXELS>;

  const DeformConv2d& call;
  const Tiling& tiling;
  const Place place;
  const Pixel first;
  const int pixels, columns;  // of the tile that exist
  const int group_bytes, steps_per_tap, begin, end;

  DCNZOO_DEVICE BlockWork(const DeformConv2d& given_call, const Tiling& given_tiling)
      : BlockWork(given_call, given_tiling, Place(given_tiling, block_index())) {}

  DCNZOO_DEVICE int64_t pixel_bytes() const { return call.shape.channels * static_cast<int64_t>(sizeof(Storage)); }
  DCNZOO_DEVICE PixelSteps pixel_steps() const { return {call.shape, sizeof(Storage)}; }

  // Within a window the same channels come for all taps before the next ones do: what a tap samples lies beside what
  // the one before it has sampled, or is the same, and the first-level cache still has it. Steps are counted up, for a
  // division takes as long as half a sample.
  DCNZOO_DEVICE Step first_step() const {
    const int window = begin / (tiling.window_taps * steps_per_tap) * tiling.window_taps;
    const int taps = window_end(window) - window, rest = begin - window * steps_per_tap;
    return {window, window + rest % taps, rest / taps};
  }
  DCNZOO_DEVICE void advance(Step& step) const {
    const int end = window_end(step.window);
    if (++step.tap < end) return;
    step.tap = step.window;
    if (++step.part < steps_per_tap) return;
    step = {end, end, 0};
  }

  // Of a thread whose channels are chunk number `chunk` of the step, and whose first sample is that of pixel `row`.
  DCNZOO_DEVICE Source source(const Step& step, int chunk, const Table& table, int row) const {
    const int byte = step.part * step_bytes + chunk * chunk_bytes;
    const bool inside = byte < group_bytes;
    const int existing = inside ? byte : 0;
    return {step.tap, byte, inside, input(existing), table.index(step.tap, deform_group(existing), row)};
  }

  // The deformable group of the channels that start `byte` bytes into this block's group.
  DCNZOO_DEVICE int deform_group(int byte) const {
    if (call.shape.deform_groups == 1) return 0;
    const int group_channels = group_bytes / static_cast<int>(sizeof(Storage));  // no division
    return (place.group * group_channels + byte / static_cast<int>(sizeof(Storage))) / call.shape.deform_channels();
  }

  // The first pixel of the input at these channels.
  DCNZOO_DEVICE const char* input(int byte) const {
    return static_cast<const char*>(call.input) + static_cast<int64_t>(place.group) * group_bytes + byte;
  }

  // The samples to have in the table for a step.
  DCNZOO_DEVICE Window window(const Step& step) const {
    return {step.window, window_end(step.window) - step.window, deform_group(0),
            deform_group(group_bytes - chunk_bytes) - deform_group(0) + 1};
  }

  // Those of column `row` of the tile.
  DCNZOO_DEVICE const char* weights(int row) const {
    const int64_t first_row = static_cast<int64_t>(place.group) * call.shape.group_columns() + place.column + row;
    return static_cast<const char*>(call.weight) + first_row * weight_row_bytes();
  }

  // Starts to copy weights: for what is sampled from this source every ROWS_AT_ONCE-th column from `row` on, whose
  // weights these are; they go to `target` and as many rows of shared memory further.
  template <int ROWS_AT_ONCE>
  DCNZOO_DEVICE void copy_weights(const Source& sampled, int row, const char* weights, Chunk* target) const {
    const char* source = weights + static_cast<int64_t>(sampled.tap) * group_bytes + sampled.byte;
    const int rows = sampled.inside ? columns - row : 0;  // that exist
    DCNZOO_UNROLL
    for (int i = 0; i < COLUMNS / ROWS_AT_ONCE; ++i) {
      copy_async(target, source, i * ROWS_AT_ONCE < rows);
      source += ROWS_AT_ONCE * weight_row_bytes();
      target += ROWS_AT_ONCE * step_chunks;
    }
  }

  // Writes the sums of a warp: the tile's pixels from `row` on, its columns from `column` on. `staging` is memory of
  // the block, of which the warp takes its part.
  template <int TILES_M, int TILES_N>
  DCNZOO_DEVICE void store(float (&sums)[TILES_M][TILES_N][4], int row, int column, char* staging) const {
    const ConvShape& shape = call.shape;
    const int first_column = place.group * shape.group_columns() + place.column + column;
    const int64_t target = (place.first_pixel + row) * shape.out_channels + first_column;
    if (call.partial != nullptr) {
      store_to(call.partial + place.split * shape.pixels() * shape.out_channels + target, sums, row, column, staging);
      return;
    }
    DCNZOO_UNROLL
    for (int i = 0; i < TILES_M; ++i) {
      finish_sums(sums[i], static_cast<const Storage*>(call.bias), first_column, columns - column, call.relu);
    }
    store_to(static_cast<Storage*>(call.output) + target, sums, row, column, staging);
  }

 private:
  DCNZOO_DEVICE BlockWork(const DeformConv2d& given_call, const Tiling& given_tiling, const Place& given_place)
      : call(given_call),
        tiling(given_tiling),
        place(given_place),
        first(pixel_at(place.first_pixel, call.shape)),
        pixels(static_cast<int>(smaller<int64_t>(PIXELS, call.shape.pixels() - place.first_pixel))),
        columns(smaller(COLUMNS, call.shape.group_columns() - place.column)),
        group_bytes(call.shape.group_channels() * static_cast<int>(sizeof(Storage))),
        steps_per_tap((group_bytes + step_bytes - 1) / step_bytes),
        begin(part(place.split)),
        end(part(place.split + 1)) {}

  DCNZOO_DEVICE int64_t weight_row_bytes() const { return static_cast<int64_t>(call.shape.taps()) * group_bytes; }

  DCNZOO_DEVICE int window_end(int first_tap) const {
    return smaller(first_tap + tiling.window_taps, call.shape.taps());
  }

  DCNZOO_DEVICE int part(int split) const {
    return static_cast<int>(static_cast<int64_t>(call.shape.taps()) * steps_per_tap * split / tiling.splits);
  }

  template <int TILES_M, int TILES_N, class Out>
  DCNZOO_DEVICE void store_to(Out* output, const float (&sums)[TILES_M][TILES_N][4], int row, int column,
                              char* staging) const {
    char* own = staging + thread_index() / warp_threads * 16 * staging_row_bytes(8 * TILES_N, sizeof(Out));
    const bool aligned = call.shape.group_columns() % (chunk_bytes / static_cast<int>(sizeof(Out))) == 0;
    DCNZOO_UNROLL
    for (int i = 0; i < TILES_M; ++i) {
      store_rows(sums[i], own,
                 OutputRows<Out>{output + static_cast<int64_t>(16 * i) * call.shape.out_channels,
                                 call.shape.out_channels, pixels - row - 16 * i, columns - column, aligned});
    }
  }
};

// Sizes of a block. A warp computes (PIXELS / WARPS_M) × (COLUMNS / WARPS_N); BATCH is how many of its samples a
// thread loads ahead of the products, and RESIDENT how many blocks the registers of a multiprocessor have room for.
template <class FACTORS, int PIXELS, int COLUMNS, int WARPS_M, int WARPS_N, int BATCH, int RESIDENT>
struct MmaTile {
  using Factors = FACTORS;
  static constexpr int pixels = PIXELS, columns = COLUMNS, batch = BATCH, resident = RESIDENT;
  static constexpr int warps_m = WARPS_M, warps_n = WARPS_N;
  static constexpr int threads = WARPS_M * WARPS_N * warp_threads;
  static constexpr int warp_rows = PIXELS / WARPS_M, warp_columns = COLUMNS / WARPS_N;
  static constexpr int tiles_m = warp_rows / 16, tiles_n = warp_columns / 8;
  static constexpr int rows_at_once = threads / step_chunks;
  static constexpr int samples = PIXELS / rows_at_once, copies = COLUMNS / rows_at_once;  // per thread and step
  static constexpr int stage_bytes = (PIXELS + COLUMNS) * step_bytes;
  static constexpr int operand_rows = WARPS_M * WARPS_N * (warp_rows + warp_columns);  // that warps read per step
  // Of all warps per step; the numbers are counted in machine code (sm_90a, float16), and right within 4 %.
  static constexpr int instructions =
      WARPS_M * WARPS_N * (112 * samples + 18 * copies + 45 * tiles_m + 4 * tiles_m * tiles_n);
  static_assert(tiles_m * 16 * WARPS_M == PIXELS && tiles_n * 8 * WARPS_N == COLUMNS, "warps divide the tile");
  static_assert(samples * rows_at_once == PIXELS && copies * rows_at_once == COLUMNS, "threads divide the tile");
  static_assert(samples % BATCH == 0, "batches divide the samples");
  static_assert(rows_at_once % 8 == 0, "the order of chunks is the same in all rows of a thread");
  static_assert(WARPS_M * WARPS_N * 16 * staging_row_bytes(warp_columns, 4) <= 2 * stage_bytes,
                "the output's way through shared memory");
};

template <class TILE>
class MmaBlock {
  using Factors = typename TILE::Factors;
  using Work = BlockWork<typename Factors::Storage, TILE::pixels, TILE::columns>;
  using Table = typename Work::Table;

 public:
  using Tile = TILE;

  // Shared memory that a block needs.
  static DCNZOO_BOTH int shared_bytes(int table_capacity) {
    return 2 * Tile::stage_bytes + table_capacity * Table::bytes;
  }

  DCNZOO_DEVICE MmaBlock(const DeformConv2d& call, const Tiling& tiling, char* shared)
      : work_(call, tiling),
        shared_(shared),
        table_(shared + 2 * Tile::stage_bytes, tiling.table_capacity, work_.pixel_bytes()),
        own_weights_(work_.weights(own_row())) {}

  DCNZOO_DEVICE void run() {
    float sums[Tile::tiles_m][Tile::tiles_n][4] = {};
    Chunk corners[Tile::batch][4];
    Step step = work_.first_step();
    enter(step);
    Source source = start(step, 0, corners);
    finish(source, 0, corners);
    wait_for_copies();
    sync_block();
    // Warps that share an issue slot take turns, so that neither tensor cores nor loads ever stand still.
    const bool sample_first = thread_index() / warp_threads / 4 % 2 == 1;
    const int steps = work_.end - work_.begin;
    for (int i = 0; i < steps; ++i) {
      const bool more = i + 1 < steps;
      if (more) {
        work_.advance(step);
        enter(step);
        source = start(step, i + 1, corners);
      }
      if (more && sample_first) finish(source, i + 1, corners);
      multiply(i, sums);
      if (more && !sample_first) finish(source, i + 1, corners);
      wait_for_copies();
      sync_block();
    }
    work_.store(sums, warp_row(), warp_column(), shared_);
  }

 private:
  // Makes sure that the samples of a step are in the table. No thread may still read the ones before.
  DCNZOO_DEVICE void enter(const Step& step) {
    if (step.window == window_) return;
    window_ = step.window;
    table_.fill(work_.call, work_.first, work_.pixels, work_.window(step), thread_index(), Tile::threads);
    sync_block();
  }

  // Of the block's i-th step.
  DCNZOO_DEVICE Chunk* stage(int i) const { return reinterpret_cast<Chunk*>(shared_ + i % 2 * Tile::stage_bytes); }

  // Where a chunk of a row lies: rows are rotated among themselves so that neither the threads that write a row
  // nor those that read a column of chunks meet in a bank.
  static DCNZOO_DEVICE int chunk_index(int row, int chunk) {
    return row * step_chunks + (chunk ^ (row / 2 % 4 | row % 2 * 4));
  }

  // The row and the chunk of channels that this thread samples and copies first in a step.
  static DCNZOO_DEVICE int own_row() { return thread_index() / step_chunks; }
  static DCNZOO_DEVICE int own_chunk() { return thread_index() % step_chunks; }

  // Starts what the block's i-th step needs: the copies of the weights, and the loads of the first samples.
  DCNZOO_DEVICE Source start(const Step& step, int i, Chunk (&corners)[Tile::batch][4]) const {
    const Source source = work_.source(step, own_chunk(), table_, own_row());
    Chunk* target = stage(i) + (Tile::pixels * step_chunks + chunk_index(own_row(), own_chunk()));
    work_.template copy_weights<Tile::rows_at_once>(source, own_row(), own_weights_, target);
    load_batch(source, 0, corners);
    return source;
  }

  // Of channels that are not there, others are loaded: around a branch the loads would have to arrive before the
  // products begin.
  DCNZOO_DEVICE void load_batch(const Source& source, int batch, Chunk (&corners)[Tile::batch][4]) const {
    const int first = source.entry + batch * Tile::batch * Tile::rows_at_once;
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::batch; ++i) {
      load_corners(corners[i], source.input, table_.corner(first + i * Tile::rows_at_once), work_.pixel_steps());
    }
  }

  // Interpolates and stores the samples of the i-th step, the first of which are loaded.
  DCNZOO_DEVICE void finish(const Source& source, int i, Chunk (&corners)[Tile::batch][4]) const {
    Chunk* target = stage(i) + chunk_index(own_row(), own_chunk());
    DCNZOO_UNROLL
    for (int j = 0; j < Tile::samples; ++j) {
      if (j > 0 && j % Tile::batch == 0) load_batch(source, j / Tile::batch, corners);
      const Weights<float> weights = table_.weights(source.entry + j * Tile::rows_at_once);
      store_shared(target + j * Tile::rows_at_once * step_chunks,
                   keep_if(source.inside, interpolate<Factors>(corners[j % Tile::batch], weights)));
    }
  }

  DCNZOO_DEVICE int warp_row() const { return thread_index() / warp_threads / Tile::warps_n * Tile::warp_rows; }
  DCNZOO_DEVICE int warp_column() const { return thread_index() / warp_threads % Tile::warps_n * Tile::warp_columns; }

  DCNZOO_DEVICE void multiply(int i, float (&sums)[Tile::tiles_m][Tile::tiles_n][4]) const {
    const int lane = thread_index() % warp_threads;
    const Chunk* a = stage(i) + (warp_row() + lane / 4) * step_chunks;
    const Chunk* b = stage(i) + (Tile::pixels + warp_column() + lane / 4) * step_chunks;
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
      for (int m = 0; m < Tile::tiles_m; ++m) {
        const Chunk upper = load_shared(a + 16 * m * step_chunks + chunk);
        const Chunk lower = load_shared(a + (16 * m + 8) * step_chunks + chunk);
        DCNZOO_UNROLL
        for (int j = 0; j < Tile::tiles_n; ++j) multiply_segment<Factors>(sums[m][j], upper, lower, columns[j]);
      }
    }
  }

  const Work work_;
  char* const shared_;
  Table table_;
  const char* const own_weights_;  // of the first column that this thread copies
  int window_ = -1;  // that is in the table
};

}  // namespace dcnzoo::cuda
