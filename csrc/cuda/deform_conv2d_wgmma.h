// Deformable convolution on Hopper's tensor cores (wgmma), in float16 and bfloat16: the product of
// deform_conv2d_mma.h, with other threads to sample than to multiply.
//
// Groups of four warps produce: in turn they each sample the left operand of a step and copy its weights into one of
// several stages of shared memory, so that while one group waits for its loads another has its own to interpolate.
// One or two other groups consume: each multiplies 64 pixels with all the columns, which the tensor cores read from
// there by themselves. Barriers say when a stage is full and when it is empty again, so that samples are loaded while
// others are multiplied, without the two ever meeting.
//
// In a stage each row, a pixel or a column, has the step's 128 bytes of channels. Chunk c of row r lies at c xor
// (r mod 8), as the tensor cores' 128-byte swizzle wants it; writers of a row meet in no bank.
#pragma once

#include "deform_conv2d_mma.h"

namespace dcnzoo::cuda {

constexpr int group_warps = 4, group_threads = group_warps * warp_threads;  // that multiply together
// Of what they multiply at once. (256 columns would read the pixels once instead of twice, but the compiler wants
// more registers for such a product than each of 512 threads has when the kernel starts, and for the tile with 384
// the second-level cache is the bound, not what the products read.)
constexpr int product_rows = 64, product_columns = 128, product_bytes = 32;
constexpr int swizzle_rows = 8, swizzle_bytes = swizzle_rows * step_bytes;

// A matrix in shared memory for wgmma: rows of 128 bytes along K, in swizzled groups of 8. `first` is where the first
// row's first element of K lies, at an offset of less than 128 bytes from a multiple of `swizzle_bytes`.
DCNZOO_DEVICE uint64_t matrix_descriptor(uint32_t first) {
  constexpr uint64_t unused_step = 1, group_step = swizzle_bytes / 16, swizzle_128 = 1;
  return (first & 0x3ffff) >> 4 | unused_step << 16 | group_step << 32 | swizzle_128 << 62;
}

// Sizes of a block, of which one fits a multiprocessor. A consumer has CONSUMER_REGISTERS, and a producer what that
// leaves it. BATCH is how many of its samples a producer loads ahead.
template <class FACTORS, int PIXELS, int COLUMNS, int PRODUCER_GROUPS, int STAGES, int CONSUMER_REGISTERS, int BATCH>
struct WgmmaTile {
  using Factors = FACTORS;
  static constexpr int consumer_groups = PIXELS / product_rows, producer_groups = PRODUCER_GROUPS;
  static constexpr int groups = consumer_groups + producer_groups;
  static constexpr int consumers = consumer_groups * group_threads, producers = producer_groups * group_threads;
  static constexpr int threads = groups * group_threads;
  static constexpr int pixels = PIXELS, columns = COLUMNS, stages = STAGES, batch = BATCH;
  static constexpr int products = COLUMNS / product_columns;  // beside each other
  static constexpr int first_registers = (64 << 10) / threads / 8 * 8;  // of every thread at the start
  static constexpr int consumer_registers = CONSUMER_REGISTERS;
  static constexpr int producer_registers =
      (groups * first_registers - consumer_groups * CONSUMER_REGISTERS) / producer_groups / 8 * 8;
  static constexpr int rows_at_once = group_threads / step_chunks;  // of the producers of a step, as what follows
  static constexpr int samples = PIXELS / rows_at_once, copies = COLUMNS / rows_at_once;  // per thread and step
  static constexpr int stage_bytes = (PIXELS + COLUMNS) * step_bytes;
  // Rows of a stage that the tensor cores read per step: each product its own.
  static constexpr int operand_rows = consumer_groups * products * (product_rows + product_columns);
  // Of all warps per step; the numbers are counted in machine code (float16), and right within 1 %.
  static constexpr int instructions =
      group_warps * (92 * samples + 24 * producer_groups + 53) + 17 * copies +
      consumers / warp_threads * (45 + 33 * products);
  static_assert(consumer_groups * product_rows == PIXELS && products * product_columns == COLUMNS,
                "products cover the tile");
  static_assert(samples % BATCH == 0, "batches divide the samples");
  // A group knows from its step before that the stage's use before the last has ended: parities tell no more apart.
  static_assert(producer_groups <= STAGES, "no producer waits for a stage two uses ahead");
  static_assert(consumer_registers > first_registers && producer_registers < first_registers, "registers move");
  static_assert(rows_at_once % swizzle_rows == 0, "the order of chunks is the same in all rows of a thread");
  static_assert(consumers / warp_threads * 16 * staging_row_bytes(product_columns, 4) <= STAGES * stage_bytes,
                "the output's way through shared memory");
};

template <class TILE>
class WgmmaBlock {
  using Factors = typename TILE::Factors;
  using Work = BlockWork<typename Factors::Storage, TILE::pixels, TILE::columns>;
  using Table = typename Work::Table;

 public:
  using Tile = TILE;

  static DCNZOO_BOTH int shared_bytes(int table_capacity) {
    return Tile::stages * Tile::stage_bytes + table_capacity * Table::bytes + static_cast<int>(sizeof(Barriers));
  }

  // `shared` is a multiple of `swizzle_bytes`.
  DCNZOO_DEVICE WgmmaBlock(const DeformConv2d& call, const Tiling& tiling, char* shared)
      : work_(call, tiling),
        shared_(shared),
        table_(shared + Tile::stages * Tile::stage_bytes, tiling.table_capacity, work_.pixel_bytes()),
        barriers_(*reinterpret_cast<Barriers*>(shared + shared_bytes(tiling.table_capacity) - sizeof(Barriers))),
        own_weights_(work_.weights(own_row())) {}

  DCNZOO_DEVICE void run() {
    if (thread_index() == 0) {
      for (int i = 0; i < Tile::stages; ++i) {  // each warp arrives once
        init_barrier(&barriers_.full[i], group_warps);
        init_barrier(&barriers_.empty[i], Tile::consumers / warp_threads);
      }
    }
    sync_block();
    if (thread_index() < Tile::consumers) {
      take_registers<Tile::consumer_registers>();
      consume();
    } else {
      give_registers<Tile::producer_registers>();
      produce();
    }
  }

 private:
  struct Barriers {
    PhaseBarrier full[Tile::stages], empty[Tile::stages];
  };

  // A step's stage. Its barriers have been through as many phases as the stages have been used before.
  class Stage {
   public:
    DCNZOO_DEVICE void advance() {
      if (++index_ < Tile::stages) return;
      index_ = 0, round_ ^= 1;
    }
    DCNZOO_DEVICE int index() const { return index_; }
    DCNZOO_DEVICE uint32_t filled() const { return round_; }      // parity of the phase that ends when it is full,
    DCNZOO_DEVICE uint32_t emptied() const { return round_ ^ 1; }  // and of the one that ended when it was empty

   private:
    int index_ = 0;
    uint32_t round_ = 0;
  };

  // Of a warp for one product.
  struct Sums {
    float tiles[1][product_columns / 8][4];
  };

  enum NamedBarrier { consumers_barrier = 1, producers_barrier };  // 0 is the block's

  DCNZOO_DEVICE char* memory(const Stage& stage) const { return shared_ + stage.index() * Tile::stage_bytes; }

  // For all threads of a warp.
  static DCNZOO_DEVICE void arrive_as_warp(PhaseBarrier* barrier) {
    sync_warp();
    if (thread_index() % warp_threads == 0) arrive(barrier);
  }

  // A producer's way along the steps.
  struct Progress {
    Step step;
    Stage stage;
    int left;  // steps from this one on
  };

  DCNZOO_DEVICE void produce() {
    Chunk corners[Tile::batch][4];
    Progress at{work_.first_step(), Stage(), work_.end - work_.begin};
    if (!pass(at, producer() / group_threads)) return;  // what the groups before it produce
    Source here = start(at, corners);
    for (;;) {
      Chunk* target = pixels(at.stage);
      DCNZOO_UNROLL
      for (int i = 0; i < Tile::samples; ++i) {
        Chunk(&own)[4] = corners[i % Tile::batch];
        store_shared(target + i * Tile::rows_at_once * step_chunks, sample(here, i, own));
        const int ahead = i + Tile::batch;
        if (ahead < Tile::samples) load(here, ahead, own);
      }
      wait_for_copies();
      publish_to_tensor_cores();
      arrive_as_warp(&barriers_.full[at.stage.index()]);
      if (!advance(at) || !pass(at, Tile::producer_groups - 1)) return;
      here = start(at, corners);
    }
  }

  // Whether there is a next step.
  DCNZOO_DEVICE bool advance(Progress& at) const {
    if (--at.left == 0) return false;
    work_.advance(at.step);
    at.stage.advance();
    return true;
  }

  // Passes some steps that others produce; whether one comes after them. All producers see each step, since together
  // they fill the table.
  DCNZOO_DEVICE bool pass(Progress& at, int steps) {
    for (;; --steps) {
      enter(at.step);
      if (steps == 0) return true;
      if (!advance(at)) return false;
    }
  }

  // Starts what a step needs: the loads of the first samples and, in its stage, the copies of the weights. The loads
  // come after what has been published, which waits for loads too, and before the wait for the stage. (The compiler
  // leaves them there because the samples come in another round of the loop.)
  DCNZOO_DEVICE Source start(const Progress& at, Chunk (&corners)[Tile::batch][4]) {
    const Source source = work_.source(at.step, own_chunk(), table_, own_row());
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::batch; ++i) load(source, i, corners[i]);
    wait_for_phase(&barriers_.empty[at.stage.index()], at.stage.emptied());
    work_.template copy_weights<Tile::rows_at_once>(source, own_row(), own_weights_,
                                                    pixels(at.stage) + Tile::pixels * step_chunks);
    return source;
  }

  // Where this thread's first sample goes.
  DCNZOO_DEVICE Chunk* pixels(const Stage& stage) const {
    return reinterpret_cast<Chunk*>(memory(stage)) + swizzled(own_row(), own_chunk());
  }

  // Makes sure that the samples of a step are in the table. All producers come here for each step.
  DCNZOO_DEVICE void enter(const Step& step) {
    if (step.window == window_) return;
    window_ = step.window;
    sync_threads(producers_barrier, Tile::producers);  // nobody still reads the samples before
    table_.fill(work_.call, work_.first, work_.pixels, work_.window(step), producer(), Tile::producers);
    sync_threads(producers_barrier, Tile::producers);
  }

  static DCNZOO_DEVICE int producer() { return thread_index() - Tile::consumers; }

  // The row and the chunk of channels that this thread samples and copies first in a step.
  static DCNZOO_DEVICE int own_row() { return producer() % group_threads / step_chunks; }
  static DCNZOO_DEVICE int own_chunk() { return producer() % step_chunks; }

  static DCNZOO_DEVICE int swizzled(int row, int chunk) { return row * step_chunks + (chunk ^ row % swizzle_rows); }

  DCNZOO_DEVICE void load(const Source& source, int i, Chunk (&corners)[4]) const {
    load_corners(corners, source.input, table_.corner(source.entry + i * Tile::rows_at_once), work_.pixel_steps());
  }

  DCNZOO_DEVICE Chunk sample(const Source& source, int i, const Chunk (&corners)[4]) const {
    return keep_if(source.inside,
                   interpolate<Factors>(corners, table_.weights(source.entry + i * Tile::rows_at_once)));
  }

  DCNZOO_DEVICE void consume() {
    Sums sums[Tile::products] = {};
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::products; ++i) fix_order(sums[i].tiles[0]);  // zero before products are allowed
    Stage stage, before;
    for (int step = work_.begin; step < work_.end; ++step, stage.advance()) {
      wait_for_phase(&barriers_.full[stage.index()], stage.filled());
      sync_warp();  // its threads may have waited for different times, and multiply together
      allow_products();
      multiply(memory(stage), sums);
      end_batch();
      wait_for_products<1>();  // those of the step before
      if (step > work_.begin) arrive_as_warp(&barriers_.empty[before.index()]);
      before = stage;
    }
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::products; ++i) wait_for_products(sums[i].tiles[0]);
    sync_threads(consumers_barrier, Tile::consumers);  // the stages' memory is free now
    DCNZOO_UNROLL
    for (int i = 0; i < Tile::products; ++i) {
      work_.store(sums[i].tiles, thread_index() / warp_threads * 16, i * product_columns, shared_);
    }
  }

  static DCNZOO_DEVICE void multiply(const char* stage, Sums (&sums)[Tile::products]) {
    const uint32_t pixels = shared_address(stage) + thread_index() / group_threads * product_rows * step_bytes;
    const uint32_t columns = shared_address(stage) + Tile::pixels * step_bytes;
    DCNZOO_UNROLL
    for (int k = 0; k < step_bytes; k += product_bytes) {
      DCNZOO_UNROLL
      for (int i = 0; i < Tile::products; ++i) {
        Factors::multiply_async(sums[i].tiles[0], matrix_descriptor(pixels + k),
                                matrix_descriptor(columns + i * product_columns * step_bytes + k));
      }
    }
  }

  const Work work_;
  char* const shared_;
  Table table_;
  Barriers& barriers_;
  const char* const own_weights_;  // of the first column that a producer copies
  int window_ = -1;  // that is in the table
};

}  // namespace dcnzoo::cuda
