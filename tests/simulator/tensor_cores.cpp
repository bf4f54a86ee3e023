// Matrix products, and the rules of those that run by themselves.
//
// Sums are computed in double precision and rounded once; the hardware keeps fewer bits.
#include <algorithm>

#include "warp.h"

namespace ptx {
namespace {

// Of all 16-bit numbers.
template <float (*convert)(uint16_t)>
const float* table() {
  static const std::vector<float> values = [] {
    std::vector<float> all(1 << 16);
    for (size_t i = 0; i < all.size(); ++i) all[i] = convert(static_cast<uint16_t>(i));
    return all;
  }();
  return values.data();
}

template <float (*convert)(uint16_t)>
struct Halves {
  static constexpr int elements = 2;  // of a register
  static float get(uint32_t word, int i) { return table<convert>()[word >> 16 * i & 0xffff]; }
};
using Float16 = Halves<half_to_float>;
using Bfloat16 = Halves<bfloat16_to_float>;

struct Tf32 {
  static constexpr int elements = 1;
  static float get(uint32_t word, int) {
    if ((word & 0x1fff) != 0) throw Fault("a factor has more bits than TensorFloat-32");
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

// 16 × 8 results. A thread is number `lane / 4` of the rows of the left and of the columns of the right operand, and
// number `lane % 4` of the groups of elements along the reduction axis, of which each register has one. The registers
// of the left operand are rows 0-7 and 8-15 of the axis' first half, then of its second; those of the right are its
// two halves.
template <class Element>
void multiply(Warp& warp, const Instruction& in, uint32_t) {
  constexpr int depth = 8 * Element::elements, half = 4 * Element::elements;
  double a[16][depth], b[8][depth];
  for (int lane = 0; lane < warp_lanes; ++lane) {
    const int row = lane / 4, first = lane % 4 * Element::elements;
    for (int i = 0; i < Element::elements; ++i) {
      for (int k = 0; k < 4; ++k) {
        a[row + k % 2 * 8][k / 2 * half + first + i] = Element::get(warp.get<uint32_t>(in.operand[4 + k], lane), i);
      }
      for (int k = 0; k < 2; ++k) {
        b[row][k * half + first + i] = Element::get(warp.get<uint32_t>(in.operand[8 + k], lane), i);
      }
    }
  }
  float sums[4][warp_lanes];
  for (int lane = 0; lane < warp_lanes; ++lane) {
    for (int k = 0; k < 4; ++k) {
      const double* left = a[lane / 4 + k / 2 * 8];
      const double* right = b[lane % 4 * 2 + k % 2];
      double sum = 0;
      for (int i = 0; i < depth; ++i) sum += left[i] * right[i];
      sums[k][lane] = static_cast<float>(sum + warp.get<float>(in.operand[10 + k], lane));
    }
  }
  for (int k = 0; k < 4; ++k) {
    for (int lane = 0; lane < warp_lanes; ++lane) warp.set<float>(in.operand[k], lane, sums[k][lane]);
  }
}

constexpr int group_warps = 4;
constexpr int product_rows = 64, product_columns = 128, product_depth = 16, chunk_bytes = 16;

// Rows of 16 elements along K in shared memory, in groups of 8 rows of 128 bytes each. The tensor cores exclusive-or
// bits 4-6 of an address with bits 7-9.
class Matrix {
 public:
  explicit Matrix(uint64_t descriptor)
      : start_((descriptor & 0x3fff) << 4), group_bytes_((descriptor >> 32 & 0x3fff) << 4) {
    constexpr uint64_t known = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62;
    if ((descriptor & ~known) != 0 || descriptor >> 62 != 1) {
      throw Fault("a matrix descriptor of another kind than known here");
    }
    if (start_ >> 7 & 7) throw Fault("a matrix does not begin where its swizzle does");
  }

  // Where chunk 0 or 1 of a row lies.
  uint64_t chunk(int row, int index) const {
    const int in_group = row % 8 * 128 + index * chunk_bytes;
    const uint64_t address = start_ + static_cast<uint64_t>(row / 8) * group_bytes_ + static_cast<uint64_t>(in_group);
    return address ^ (address >> 7 & 7) << 4;
  }

 private:
  uint64_t start_, group_bytes_;
};

template <class Element>
void read_row(const Warp& warp, const Matrix& matrix, int row, double (&values)[product_depth]) {
  for (int chunk = 0; chunk < 2; ++chunk) {
    uint32_t words[4];
    std::memcpy(words, warp.block->shared_at(matrix.chunk(row, chunk)), sizeof(words));
    for (int i = 0; i < 8; ++i) values[chunk * 8 + i] = Element::get(words[i / 2], i % 2);
  }
}

// The warp's 16 rows of the results; its threads have tiles of 8 columns as those of `multiply`.
template <class Element>
void execute(Warp& warp, const Product& product) {
  double a[16][product_depth];
  const Matrix left(product.a), right(product.b);
  for (int row = 0; row < 16; ++row) read_row<Element>(warp, left, warp.index % group_warps * 16 + row, a[row]);
  for (int column = 0; column < product_columns; ++column) {
    double b[product_depth];
    read_row<Element>(warp, right, column, b);
    for (int row = 0; row < 16; ++row) {
      double sum = 0;
      for (int i = 0; i < product_depth; ++i) sum += a[row][i] * b[i];
      const uint32_t place = (*product.accumulators)[static_cast<size_t>(column / 8 * 4 + row / 8 * 2 + column % 2)];
      const int lane = row % 8 * 4 + column % 8 / 2;
      const float old = product.add ? warp.get<float>(place, lane) : 0;
      warp.set<float>(place, lane, static_cast<float>(sum + old));
    }
  }
}

// In the order in which they were issued.
void execute_first(Warp& warp, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    Product& product = warp.products[i];
    if (product.done) continue;
    product.done = true;
    product.instruction->compute == wgmma_f16 ? execute<Float16>(warp, product) : execute<Bfloat16>(warp, product);
  }
}

uint64_t same_of_all(const Warp& warp, uint32_t place) {
  const uint64_t first = warp.get<uint64_t>(place, 0);
  for (int lane = 1; lane < warp_lanes; ++lane) {
    if (warp.get<uint64_t>(place, lane) == first) continue;
    throw Fault("threads of a warp have different matrix descriptors", lane);
  }
  return first;
}

WarpGroup& group_of(Warp& warp) {
  const size_t index = static_cast<size_t>(warp.index / group_warps);
  if ((index + 1) * group_warps > warp.block->warps.size()) throw Fault("wgmma needs four warps");
  return warp.block->warp_groups[index];
}

// The operands as a whole are read on behalf of each warp: nothing says which warp reads what.
void check_operand(Warp& warp, const Matrix& matrix, int rows) {
  Block& block = *warp.block;
  const Clock* checked = nullptr;
  for (int lane = 0; lane < warp_lanes; ++lane) {
    const Clock* known = block.known[static_cast<size_t>(warp.thread(lane))].get();
    if (known == checked) continue;
    checked = known;
    for (int row = 0; row < rows; ++row) {
      for (int chunk = 0; chunk < 2; ++chunk) {
        const uint64_t address = matrix.chunk(row, chunk);
        block.check_shared(lane, address, chunk_bytes, chunk_bytes);
        block.check_read(warp, lane, warp.thread(lane), address, chunk_bytes, true);
      }
    }
  }
}

void issue(Warp& warp, const Instruction& in) {
  WarpGroup& group = group_of(warp);
  Product product{};
  product.instruction = &in;
  product.accumulators = &warp.kernel->accumulators[static_cast<size_t>(in.immediate)];
  product.a = same_of_all(warp, in.operand[0]), product.b = same_of_all(warp, in.operand[1]);
  const uint32_t add = warp.predicate(in.operand[2]);
  if (add != 0 && add != all_lanes) throw Fault("threads of a warp disagree on adding to the accumulator");
  product.add = add != 0;

  if (warp.issued == group.issues.size()) group.issues.push_back({&in, product.a, product.b});
  const WarpGroup::Issue& common = group.issues[warp.issued++];
  if (common.instruction != &in || common.a != product.a || common.b != product.b) {
    throw Fault("the four warps of a group multiply different matrices");
  }

  const std::vector<uint32_t>& sums = *product.accumulators;
  const auto is_sum = [&](uint32_t place) { return std::find(sums.begin(), sums.end(), place) != sums.end(); };
  if (!warp.fenced || std::any_of(warp.unfenced.begin(), warp.unfenced.end(), is_sum)) {
    throw Fault("accumulators are used without wgmma.fence since they were written");
  }

  product.time = ++warp.tensor_time;
  if (product.time >= 1u << time_bits) throw Fault("the clock of the tensor cores overflows");
  check_operand(warp, Matrix(product.a), product_rows);
  check_operand(warp, Matrix(product.b), product_columns);
  warp.products.push_back(product);
  if (warp.block->chance(2)) execute_first(warp, warp.products.size());
}

}  // namespace

void multiply_m16n8k16_f16(Warp& warp, const Instruction& in, uint32_t lanes) { multiply<Float16>(warp, in, lanes); }
void multiply_m16n8k16_bf16(Warp& warp, const Instruction& in, uint32_t lanes) { multiply<Bfloat16>(warp, in, lanes); }
void multiply_m16n8k8_tf32(Warp& warp, const Instruction& in, uint32_t lanes) { multiply<Tf32>(warp, in, lanes); }

void wgmma_f16(Warp& warp, const Instruction& in, uint32_t) { issue(warp, in); }
void wgmma_bf16(Warp& warp, const Instruction& in, uint32_t) { issue(warp, in); }

void wgmma_fence(Warp& warp, const Instruction&, uint32_t) {
  group_of(warp);
  warp.fenced = true;
  warp.unfenced.clear();
}

void wgmma_commit(Warp& warp, const Instruction&, uint32_t) {
  group_of(warp);
  warp.batches.push_back(warp.products.size());
}

void wgmma_wait(Warp& warp, const Instruction& in, uint32_t lanes) {
  group_of(warp);
  while (static_cast<int64_t>(warp.batches.size()) > in.immediate) {
    const size_t count = warp.batches.front();
    warp.batches.erase(warp.batches.begin());
    if (count == 0) continue;
    execute_first(warp, count);
    Clock done(warp.block->time.size(), 0);
    done[static_cast<size_t>(warp.block->tensor_cores(warp.index))] = warp.products[count - 1].time;
    warp.block->learn(warp.index, lanes, done);
    warp.products.erase(warp.products.begin(), warp.products.begin() + static_cast<long>(count));
    for (size_t& other : warp.batches) other -= count;
  }
}

}  // namespace ptx
