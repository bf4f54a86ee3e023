// One step of Strassen's algorithm, in Winograd's form: C (+)= A · B by 7 products of halves instead of 8.
//
// For a block of rows at a time, so that the sums of parts of A and the partial products stay in the second-level
// cache; the sums of parts of B are made once, when B is packed. A's quarters are halves of its rows and of its
// depth, B's are halves of its depth and of its columns. The signs are such that no sum of A's
// quarters grows where A is not negative, as behind a ReLU. (Winograd's form: Knuth, The Art of Computer Programming,
// section 4.6.4. Within the blocks of a cache: arXiv:1605.01078.)
#pragma once

#include "gemm.h"

namespace dcnzoo::cpu {
namespace {

// The packed B: 7 matrices of half the depth and half the columns, each in panels.
enum class StrassenPart { b11, b21, b22, t1, t2, t3, t4 };
constexpr int64_t strassen_parts = 7;

// An element of a part, from the elements at its place in the four quarters of B.
inline float strassen_element(StrassenPart part, double b11, double b12, double b21, double b22) {
  switch (part) {
    case StrassenPart::b11: return static_cast<float>(b11);
    case StrassenPart::b21: return static_cast<float>(b21);
    case StrassenPart::b22: return static_cast<float>(b22);
    case StrassenPart::t1: return static_cast<float>(b12 - b11);
    case StrassenPart::t2: return static_cast<float>(b11 - b12 - b22);
    case StrassenPart::t3: return static_cast<float>(-b12 - b22);
    default: return static_cast<float>(b11 - b12 - b22 + b21);
  }
}

// Packs one panel of a part, its columns from `first` on. `depth` and `columns` are those of a part; at(k, column) gives
// the elements of the whole B.
template <class At>
void pack_strassen_panel(StrassenPart part, int64_t depth, int64_t columns, int64_t first, float* target, const At& at) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t column = first; column < first + panel_columns<float>; ++column) {
      *target++ = strassen_element(part, at(k, column), at(k, column + columns), at(k + depth, column),
                                   at(k + depth, column + columns));
    }
  }
}

// Whether it takes less time: the depth has to be worth the sums of A, and half of the columns are whole panels. The
// faster the products, the larger they have to be.
constexpr bool strassen_pays(int64_t depth, int64_t columns) {
  constexpr int64_t least = DCNZOO_VECTOR_BYTES == 64 ? 1 << 17 : 1 << 16;  // elements of B
  return depth >= 512 && columns >= 128 && depth * columns >= least && columns % (2 * panel_columns<float>) == 0;
}

constexpr int64_t strassen_numel(int64_t depth, int64_t columns) { return strassen_parts * (depth / 2) * (columns / 2); }

// Depth and columns are even, and half of the columns are whole panels.
class StrassenProduct {
 public:
  // Of a worker, for products of at most that size.
  static size_t scratch_bytes(int64_t rows, int64_t depth, int64_t columns) {
    const int64_t stride = sum_stride(depth / 2), chunk = min(chunk_columns, columns / 2);
    return static_cast<size_t>(round_up(stride + ceil_div(rows, 2) * (stride + 2 * chunk), 16)) * sizeof(float);
  }

  StrassenProduct(const Rows& rows, int64_t columns, int64_t depth, const float* a, int64_t lda, float* c, int64_t ldc,
                  const Epilogue<float>& epilogue, void* scratch)
      : rows_(rows),
        upper_(ceil_div(rows.runs * rows.length, 2)),
        lower_(rows.runs * rows.length - upper_),
        columns_(columns / 2),
        depth_(depth / 2),
        chunk_(min(chunk_columns, columns_)),
        c_(c),
        ldc_(ldc),
        epilogue_(epilogue),
        zeros_(static_cast<float*>(scratch)),
        a11_{a, lda, upper_},
        a12_{a + depth_, lda, upper_},
        a21_{a + upper_ * lda, lda, lower_},
        a22_{a + upper_ * lda + depth_, lda, lower_},
        sum_(zeros_ + sum_stride(depth_)),
        s_{sum_, sum_stride(depth_), upper_},
        w_(sum_ + upper_ * s_.stride),
        v_(w_ + upper_ * chunk_) {
    for (int64_t k = 0; k < depth_; ++k) zeros_[k] = 0;
  }

  // Columns [begin, end) of both halves; begin and end are whole panels. Meanwhile fetches the A of the next product,
  // `distance` elements from this one; 0 if there is none.
  void run(const float* packed, int64_t begin, int64_t end, int64_t distance) {
    for (int64_t column = begin; column < end; column += chunk_) {
      packed_ = packed + column * depth_;
      distance_ = column == begin ? distance : 0;
      run_chunk(column, min(chunk_, end - column));
    }
  }

 private:
  using S = Simd<float>;
  using V = S::vector;
  using Part = StrassenPart;

  static constexpr int64_t chunk_columns = DCNZOO_VECTOR_BYTES == 64 ? 512 : 256;  // of each half, that are computed at once

  // A quarter of A, or a sum of some; rows beyond the last one are zero.
  struct Quarter {
    const float* first;
    int64_t stride, rows;
  };

  // Off a multiple of 4096 bytes, so that the rows do not share cache sets.
  static int64_t sum_stride(int64_t depth) { return round_up(depth, 16) + 16; }

  void run_chunk(int64_t column, int64_t columns) {
    float *c1 = c_ + column, *c2 = c1 + columns_;
    const float* bias1 = epilogue_.bias == nullptr ? nullptr : epilogue_.bias + column;
    const float* bias2 = bias1 == nullptr ? nullptr : bias1 + columns_;
    const bool relu = epilogue_.relu;

    multiply(a11_, Part::b11, columns, w_, false);
    combine<false>(0, upper_, columns, bias1, false, c1);
    multiply_to(0, a12_, Part::b21, columns, c1);
    sum<-1>(a21_, a22_);
    multiply(s_, Part::t1, columns, v_, false);
    sum<-1>(s_, a11_);
    multiply(s_, Part::t2, columns, w_, true);
    combine<true>(0, upper_, columns, bias2, false, c2);
    sum<1>(a12_, s_);
    multiply_to(0, s_, Part::b22, columns, c2);
    sum<-1>(a11_, a21_, false);
    multiply(s_, Part::t3, columns, w_, true);
    combine<true>(upper_, lower_, columns, bias2, relu, c2);
    combine<false>(upper_, lower_, columns, bias1, false, c1);
    multiply_to(upper_, a22_, Part::t4, columns, c1);
  }

  const float* packed(Part part) const { return packed_ + static_cast<int64_t>(part) * depth_ * columns_; }

  // To a partial product.
  void multiply(const Quarter& a, Part part, int64_t columns, float* target, bool accumulate) const {
    matrix_product(Rows{1, a.rows, 0}, columns, depth_, a.first, a.stride, packed(part), target, chunk_,
                   Epilogue<float>{accumulate, false, nullptr});
  }

  // Added to rows of C, from `first` on, as the last of what they consist of.
  void multiply_to(int64_t first, const Quarter& a, Part part, int64_t columns, float* c) const {
    for_each_run(first, a.rows, [&](int64_t row, int64_t count, int64_t offset) {
      matrix_product(Rows{1, count, 0}, columns, depth_, a.first + row * a.stride, a.stride, packed(part), c + offset,
                     ldc_, Epilogue<float>{true, epilogue_.relu, nullptr});
    });
  }

  // Calls function(row - first, count, offset in C) for the rows [first, first + rows), as far as they follow each other.
  template <class Function>
  void for_each_run(int64_t first, int64_t rows, const Function& function) const {
    for (int64_t row = first; row < first + rows;) {
      const int64_t run = row / rows_.length, begin = row % rows_.length;
      const int64_t count = min(rows_.length - begin, first + rows - row);
      function(row - first, count, run * rows_.c_stride + begin * ldc_);
      row += count;
    }
  }

  // s = x ± y. What is not s itself lies in A, and is fetched for the next product.
  template <int SIGN>
  void sum(const Quarter& x, const Quarter& y, bool fetch = true) {
    const bool fetch_x = fetch && distance_ != 0 && x.first != s_.first;
    const bool fetch_y = fetch && distance_ != 0 && y.first != s_.first;
    for (int64_t i = 0; i < upper_; ++i) {
      const float* row_x = i < x.rows ? x.first + i * x.stride : zeros_;
      const float* row_y = i < y.rows ? y.first + i * y.stride : zeros_;
      float* target = sum_ + i * s_.stride;
      if (fetch_x && i < x.rows) fetch_row(row_x + distance_);
      if (fetch_y && i < y.rows) fetch_row(row_y + distance_);
      int64_t k = 0;
      for (; k + S::width <= depth_; k += S::width) {
        const V value = S::load(row_x + k), other = S::load(row_y + k);
        S::store(target + k, SIGN > 0 ? value + other : value - other);
      }
      for (; k < depth_; ++k) target[k] = SIGN > 0 ? row_x[k] + row_y[k] : row_x[k] - row_y[k];
    }
  }

  void fetch_row(const float* row) const {
    for (int64_t k = 0; k < depth_; k += 16) __builtin_prefetch(row + k, 0, 2);
  }

  // Rows of C, from `first` on: (C or 0) + (bias or 0) + w [+ v].
  template <bool BOTH>
  void combine(int64_t first, int64_t rows, int64_t columns, const float* bias, bool relu, float* c) const {
    for_each_run(first, rows, [&](int64_t row, int64_t count, int64_t offset) {
      for (int64_t i = 0; i < count; ++i) {
        const float *w = w_ + (row + i) * chunk_, *v = v_ + (row + i) * chunk_;
        float* target = c + offset + i * ldc_;
        for (int64_t j = 0; j < columns; j += S::width) {
          V value = S::load(w + j);
          if constexpr (BOTH) value += S::load(v + j);
          if (epilogue_.accumulate) value += S::load(target + j);
          if (bias != nullptr) value += S::load(bias + j);
          if (relu) value = value < V{} ? V{} : value;  // keeps NaN
          S::store(target + j, value);
        }
      }
    });
  }

  const Rows rows_;
  const int64_t upper_, lower_;  // rows of each half
  const int64_t columns_, depth_, chunk_;
  float* const c_;
  const int64_t ldc_;
  const Epilogue<float> epilogue_;
  const float* packed_ = nullptr;
  int64_t distance_ = 0;
  float* const zeros_;
  const Quarter a11_, a12_, a21_, a22_;
  float* const sum_;  // of quarters, that is multiplied next
  const Quarter s_;   // the same
  float *const w_, *const v_;                // partial products
};

}  // namespace
}  // namespace dcnzoo::cpu
