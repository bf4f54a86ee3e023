// Register-blocked matrix product C[rows × columns] (+)= A[rows × depth] · B[depth × columns].
//
// A is row-major (the tile of sampled pixels), B is packed into panels of some vectors of columns (a last one may have fewer),
// C is row-major (the channels-last output itself). What multiplies depends on the elements of A: Multiplier<A>.
#pragma once

#include "simd.h"

namespace dcnzoo::cpu {
namespace {

// The rows of A and C: runs of `length` rows that follow each other in both; from run to run C jumps.
struct Rows {
  int64_t runs, length, c_stride;
};

// What happens to the product on its way to C.
template <class T>
struct Epilogue {
  bool accumulate;  // add what C holds
  bool relu;
  const T* bias;  // to add, of C's first column; null for none
  int64_t ahead = 0;  // elements to the C of a later product, which is fetched meanwhile; 0 for none
  bool short_sums = false;  // in float16 (float16_gemm.h): sum half as many products, for results whose errors are enlarged later
};

// A piece of B that is needed soon, fetched while the present one is in use: a little with every step
// along the depth, since all at once would hold up the loads of the product itself.
struct Upcoming {
  const char* begin;
  int64_t stride;  // bytes per step

  static constexpr int64_t line_bytes = 64;

  DCNZOO_INLINE void fetch() {
    __builtin_prefetch(begin, 0, 2);
    begin += stride;
  }
};

// How matrices of A are multiplied: the elements of B and of C; the columns of a vector of B; the vectors of a panel; the
// multiple that the depth has to be, since so many of its elements are multiplied in a step; where element (k, column) of a
// panel of B lies, which has `columns` columns; and `run`, the micro-kernel.
template <class A>
struct Multiplier;

// Rows per micro-kernel for several vectors and for one vector of columns: as many accumulators as the
// register file holds beside two vectors of B and one broadcast element of A.
#if DCNZOO_VECTOR_BYTES == 64
constexpr int micro_rows2 = 14, micro_rows1 = 14;  // 32 registers
#else
constexpr int micro_rows2 = 6, micro_rows1 = 12;  // 16 registers
#endif

template <class A>
constexpr int64_t panel_columns = Multiplier<A>::panel_vectors * Multiplier<A>::width;

// What the micro-kernel multiplies per step along the depth: an element of A with each of a vector of B.
template <class T>
struct Products {
  using Element = T;
  using Sum = T;
  using Factors = typename Simd<T>::vector;

  static DCNZOO_INLINE Factors load(const T* source) { return Simd<T>::load(source); }
  static DCNZOO_INLINE Factors splat(T element) { return Simd<T>::splat(element); }
  static DCNZOO_INLINE void multiply(typename Simd<T>::vector& sum, Factors a, Factors b) { sum += a * b; }
};

// A function of its own: inlined, its loop would share the general registers with its surroundings.
template <class P, int ROWS, int VECTORS>
__attribute__((noinline)) void micro_kernel(int64_t steps, const typename P::Element* a, int64_t lda,
                                            const typename P::Element* b, typename P::Sum* c, int64_t ldc,
                                            Epilogue<typename P::Sum> epilogue, Upcoming upcoming) {
  using T = typename P::Sum;
  using S = Simd<T>;
  using V = typename S::vector;
  V acc[ROWS][VECTORS] = {};
  constexpr int line = Upcoming::line_bytes / static_cast<int>(sizeof(T));
  const T* ahead = c + (epilogue.ahead != 0 ? epilogue.ahead : ROWS * ldc);
  // Few row pointers, each with its index hidden from the compiler: it would otherwise keep one address
  // per row and spill them to the stack inside the loop.
  constexpr int stride = ROWS <= 6 ? ROWS : 3, pointers = (ROWS + stride - 1) / stride;
  const typename P::Element* row_a[pointers];
  for (int i = 0; i < pointers; ++i) {
    row_a[i] = a + i * stride * lda;
    if constexpr (ROWS > stride) __asm__("" : "+r"(row_a[i]));
  }
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    upcoming.fetch();
    typename P::Factors row_b[VECTORS];
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; ++j) row_b[j] = P::load(b + k * VECTORS * S::width + j * S::width);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const typename P::Factors element = P::splat(row_a[i / stride][i % stride * lda + k]);
#pragma GCC unroll 2
      for (int j = 0; j < VECTORS; ++j) P::multiply(acc[i][j], element, row_b[j]);
    }
  };
  int64_t k = 0;
  for (int i = 0; i < ROWS && k + 2 <= steps; ++i, ahead += ldc) {
    __builtin_prefetch(ahead, 1, 2);
    step(k++);
    __builtin_prefetch(ahead + line, 1, 2);
    step(k++);
  }
#pragma GCC unroll 2
  for (; k < steps; ++k) step(k);
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; ++j) {
      T* target = c + i * ldc + j * S::width;
      V value = acc[i][j];
      if (epilogue.accumulate) value += S::load(target);
      if (epilogue.bias != nullptr) value += S::load(epilogue.bias + j * S::width);
      if (epilogue.relu) value = value < V{} ? V{} : value;  // keeps NaN
      S::store(target, value);
    }
  }
}

template <class T>
struct Multiplier {
  using B = T;
  using C = T;
  static constexpr int width = Simd<T>::width, panel_vectors = 2;
  static constexpr int64_t depth_multiple = 1;

  static int64_t place(int64_t k, int64_t column, int64_t columns) { return k * columns + column; }

  template <int ROWS, int VECTORS>
  static DCNZOO_INLINE void run(int64_t depth, const T* a, int64_t lda, const T* b, T* c, int64_t ldc,
                                const Epilogue<T>& epilogue, const Upcoming& upcoming) {
    micro_kernel<Products<T>, ROWS, VECTORS>(depth, a, lda, b, c, ldc, epilogue, upcoming);
  }
};

template <class A>
using MultiplierB = typename Multiplier<A>::B;
template <class A>
using MultiplierC = typename Multiplier<A>::C;

template <class A, int ROWS, int VECTORS>
DCNZOO_INLINE void multiply_rows(int64_t rows, int64_t depth, const A* a, int64_t lda, const MultiplierB<A>* b,
                                 MultiplierC<A>* c, int64_t ldc, const Epilogue<MultiplierC<A>>& epilogue,
                                 const Upcoming& upcoming) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return multiply_rows<A, ROWS - 1, VECTORS>(rows, depth, a, lda, b, c, ldc, epilogue, upcoming);
  }
  Multiplier<A>::template run<ROWS, VECTORS>(depth, a, lda, b, c, ldc, epilogue, upcoming);
}

// The last panel, whose columns do not fill its vectors, goes through a small copy of C and bias.
template <class A, int ROWS, int VECTORS>
void ragged_panel(int64_t rows, int64_t columns, int64_t depth, const A* a, int64_t lda, const MultiplierB<A>* b,
                  MultiplierC<A>* c, int64_t ldc, Epilogue<MultiplierC<A>> epilogue, const Upcoming& upcoming) {
  constexpr int padded = VECTORS * Multiplier<A>::width;
  MultiplierC<A> tile[ROWS * padded] = {}, bias[padded] = {};
  if (epilogue.accumulate) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) tile[i * padded + j] = c[i * ldc + j];
  }
  if (epilogue.bias != nullptr) {
    for (int64_t j = 0; j < columns; ++j) bias[j] = epilogue.bias[j];
    epilogue.bias = bias;
  }
  epilogue.ahead = 0;
  multiply_rows<A, ROWS, VECTORS>(rows, depth, a, lda, b, tile, padded, epilogue, upcoming);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) c[i * ldc + j] = tile[i * padded + j];
}

// Rows that are needed soon, such as the next A, fetched while the present ones are in use: so many bytes of each.
struct NextRows {
  const void* first = nullptr;
  int64_t stride = 0, bytes = 0;  // no bytes where nothing is to be fetched

  // The rows [row, row + rows), bytes [begin, end).
  DCNZOO_INLINE void fetch(int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    for (int64_t i = row; i < row + rows; ++i) {
      const char* source = static_cast<const char*>(first) + i * stride;
      for (int64_t byte = begin; byte < end; byte += 64) __builtin_prefetch(source + byte, 0, 2);
    }
  }
};

template <class A, int ROWS, int VECTORS>
void panel_product(const Rows& rows, int64_t columns, int64_t depth, const A* a, int64_t lda, const MultiplierB<A>* b,
                   MultiplierC<A>* c, int64_t ldc, const Epilogue<MultiplierC<A>>& epilogue, const NextRows& next,
                   int64_t next_begin, int64_t next_end) {
  const bool full = columns == VECTORS * Multiplier<A>::width;
  const int64_t steps = ceil_div(rows.length, ROWS);
  const int64_t base = rows.length / steps, longer = rows.length % steps;  // even steps waste the fewest cycles
  constexpr int64_t multiple = Multiplier<A>::depth_multiple;
  constexpr int64_t step_bytes = multiple * VECTORS * Multiplier<A>::width * sizeof(MultiplierB<A>);
  Upcoming upcoming{reinterpret_cast<const char*>(b) + depth / multiple * step_bytes,
                    min(step_bytes / (rows.runs * steps), Upcoming::line_bytes)};
  int64_t row = 0;
  for (int64_t run = 0; run < rows.runs; ++run) {
    MultiplierC<A>* target = c + run * rows.c_stride;
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t count = base + (step < longer);
      next.fetch(row, count, next_begin, next_end);
      if (full) {
        multiply_rows<A, ROWS, VECTORS>(count, depth, a, lda, b, target, ldc, epilogue, upcoming);
      } else {
        ragged_panel<A, ROWS, VECTORS>(count, columns, depth, a, lda, b, target, ldc, epilogue, upcoming);
      }
      a += count * lda;
      row += count;
      target += count * ldc;
      upcoming.begin += depth / multiple * upcoming.stride;
    }
  }
}

// As many vectors as the columns of a panel need.
template <class A, int VECTORS = Multiplier<A>::panel_vectors>
void any_panel_product(const Rows& rows, int64_t columns, int64_t depth, const A* a, int64_t lda, const MultiplierB<A>* b,
                       MultiplierC<A>* c, int64_t ldc, const Epilogue<MultiplierC<A>>& epilogue, const NextRows& next,
                       int64_t next_begin, int64_t next_end) {
  if constexpr (VECTORS > 1) {
    if (columns <= (VECTORS - 1) * Multiplier<A>::width) {
      return any_panel_product<A, VECTORS - 1>(rows, columns, depth, a, lda, b, c, ldc, epilogue, next, next_begin, next_end);
    }
  }
  constexpr int step = VECTORS == 1 ? micro_rows1 : micro_rows2;
  panel_product<A, step, VECTORS>(rows, columns, depth, a, lda, b, c, ldc, epilogue, next, next_begin, next_end);
}

// Columns [0, columns) of C. B holds `columns` rounded up to whole vectors, in panels; a last panel of fewer vectors is
// stored as such. The next rows are fetched meanwhile, a part with each panel.
template <class A>
void matrix_product(const Rows& rows, int64_t columns, int64_t depth, const A* a, int64_t lda, const MultiplierB<A>* b,
                    MultiplierC<A>* c, int64_t ldc, Epilogue<MultiplierC<A>> epilogue, const NextRows& next = {}) {
  constexpr int64_t panel = panel_columns<A>;
  const MultiplierC<A>* bias = epilogue.bias;
  for (int64_t j = 0; j < columns; j += panel) {
    const int64_t count = min(panel, columns - j);
    epilogue.bias = bias == nullptr ? nullptr : bias + j;
    any_panel_product(rows, count, depth, a, lda, b + j * depth, c + j, ldc, epilogue, next, next.bytes * j / columns,
                      next.bytes * min(j + panel, columns) / columns);
  }
}

}  // namespace
}  // namespace dcnzoo::cpu
