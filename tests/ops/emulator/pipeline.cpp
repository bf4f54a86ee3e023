// A small pipeline of stores and asynchronous products, right or with one fault, to see that the emulated GPU finds
// each of them.
#include "deform_conv2d_wgmma.h"
#include "emulator.h"

using namespace dcnzoo::cuda;

namespace {

// As numbered in test_cuda_kernels.py.
enum class Fault {
  none,
  unpublished,          // stores are not published to the tensor cores
  published_late,       // after the arrival
  full_not_awaited,     // products start without waiting for the stores,
  empty_not_awaited,    // and stores without waiting for the products before
  released_early,       // a stage is given back while it is multiplied
  released_by_one,      // by one thread for all, which have not told it that they are done
  no_arrival,           // a stage is never given back
  not_fenced,           // no wgmma.fence
  not_awaited,          // the kernel ends with products under way
  sums_used_early,      // sums are read
  sums_changed,         // and written during a product
  not_swizzled,         // rows lie as they come
  barrier_overwritten,  // a barrier's memory is used for something else
};

constexpr int stages = 2, steps = 5, depth = step_bytes / 2;
constexpr int rows = product_rows + product_columns, stage_bytes = rows * step_bytes;

// The numbers of a step: rows of the left operand, then columns of the right one.
float number(int step, int row, int k) { return static_cast<float>((7 * row + 3 * k + step) % 5 - 2); }

class Pipeline {
 public:
  Pipeline(Fault fault, char* shared, float* sums)
      : fault_(fault),
        shared_(shared),
        full_(reinterpret_cast<PhaseBarrier*>(shared + stages * stage_bytes)),
        sums_(sums) {}

  void run() {
    if (thread_index() == 0) {
      for (int i = 0; i < stages; ++i) init_barrier(full_ + i, group_warps), init_barrier(empty() + i, group_warps);
    }
    sync_block();
    thread_index() < group_threads ? consume() : produce();
  }

 private:
  PhaseBarrier* empty() const { return full_ + stages; }
  bool is(Fault fault) const { return fault_ == fault; }

  void arrive_as_warp(PhaseBarrier* barrier) const {
    if (!is(Fault::released_by_one)) sync_warp();
    if (thread_index() % warp_threads == 0) arrive(barrier);
  }

  void produce() const {
    for (int step = 0; step < steps; ++step) {
      const int stage = step % stages;
      if (!is(Fault::empty_not_awaited)) wait_for_phase(empty() + stage, (step / stages + 1) % 2);
      for (int i = thread_index() - group_threads; i < rows * step_chunks; i += group_threads) store(step, i);
      if (is(Fault::barrier_overwritten)) store_shared(&full_[stage].state, uint64_t{0});
      if (!is(Fault::unpublished) && !is(Fault::published_late)) publish_to_tensor_cores();
      arrive_as_warp(full_ + stage);
      if (is(Fault::published_late)) publish_to_tensor_cores();
    }
  }

  void store(int step, int i) const {
    const int row = i / step_chunks, chunk = i % step_chunks;
    Chunk chunk_of_numbers;
    for (int w = 0; w < 4; ++w) {
      const int k = 8 * chunk + 2 * w;
      chunk_of_numbers.word[w] = pack_half(number(step, row, k), number(step, row, k + 1));
    }
    const int place = is(Fault::not_swizzled) ? chunk : chunk ^ row % swizzle_rows;
    store_shared(reinterpret_cast<Chunk*>(shared_ + step % stages * stage_bytes) + row * step_chunks + place,
                 chunk_of_numbers);
  }

  void consume() const {
    float sums[product_columns / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
      const int stage = step % stages;
      if (!is(Fault::full_not_awaited)) wait_for_phase(full_ + stage, step / stages % 2);
      if (!is(Fault::not_fenced)) allow_products();
      const uint32_t first = shared_address(shared_ + stage * stage_bytes);
      for (int k = 0; k < step_bytes; k += product_bytes) {
        const uint32_t columns = first + product_rows * step_bytes;
        multiply_half_async(sums, matrix_descriptor(first + k), matrix_descriptor(columns + k));
      }
      if (is(Fault::sums_changed)) sums[0][0] = 1;
      end_batch();
      const bool last = step + 1 == steps;
      if (is(Fault::released_early)) arrive_as_warp(empty() + stage);
      if (!(is(Fault::sums_used_early) || is(Fault::not_awaited)) || !last) wait_for_products(sums);
      if (!is(Fault::released_early) && !is(Fault::no_arrival)) arrive_as_warp(empty() + stage);
    }
    const int row = thread_index() / warp_threads * 16 + thread_index() % warp_threads / 4;
    for (int j = 0; j < product_columns / 8; ++j) {
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * j + thread_index() % 4 * 2 + i % 2;
        sums_[(row + 8 * (i / 2)) * product_columns + column] = sums[j][i];
      }
    }
    if (is(Fault::sums_used_early)) wait_for_products(sums);
  }

  const Fault fault_;
  char* const shared_;
  PhaseBarrier* const full_;
  float* const sums_;
};

}  // namespace

// How many sums are wrong; most faults end the process.
extern "C" int run_pipeline(int fault, unsigned seed) {
  static float sums[product_rows * product_columns];
  emulated::launch(1, 2 * group_threads, stages * (stage_bytes + 2 * sizeof(PhaseBarrier)), seed,
                   [&](char* shared) { Pipeline(static_cast<Fault>(fault), shared, sums).run(); });
  int wrong = 0;
  for (int row = 0; row < product_rows; ++row) {
    for (int column = 0; column < product_columns; ++column) {
      float sum = 0;
      for (int i = 0; i < steps * depth; ++i) {
        const int step = i / depth, k = i % depth;
        sum += number(step, row, k) * number(step, product_rows + column, k);
      }
      wrong += sums[row * product_columns + column] == sum ? 0 : 1;
    }
  }
  return wrong;
}
