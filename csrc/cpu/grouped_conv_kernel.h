// 3×3 convolution with stride 1 and padding 1 whose groups have four channels in and out, as in ResNeXt's first stage.
//
// A vector of channels holds whole groups, each in 128 bits, within which one instruction spreads a channel over all four
// lanes. A spread channel is multiplied with the weights of all outputs that see its pixel; nothing is multiplied by zeros, as
// in a matrix product of merged groups.
#pragma once

#include "dense.h"
#include "elements.h"

namespace dcnzoo::cpu {
namespace {

constexpr int group_channels = 4;

// Each lane becomes lane CHANNEL of the four that it belongs to.
template <int CHANNEL>
DCNZOO_INLINE Floats spread(Floats value) {
#if DCNZOO_VECTOR_BYTES == 64
  return (Floats)_mm512_maskz_permute_ps(0xffff, (__m512)value, CHANNEL * 0x55);
#elif DCNZOO_VECTOR_BYTES == 32 && defined(__AVX__)
  return (Floats)_mm256_permute_ps((__m256)value, CHANNEL * 0x55);
#else
  Floats result;
  for (int i = 0; i < Simd<float>::width; ++i) result[i] = value[i / group_channels * group_channels + CHANNEL];
  return result;
#endif
}

// [vector of channels][tap][channel of the group in][lane]
inline int64_t grouped_packed_numel(int64_t channels) { return channels * 9 * group_channels; }

inline void pack_grouped(const float* weight, int64_t channels, float* packed) {
  constexpr int width = Simd<float>::width;
  for (int64_t vector = 0; vector < channels; vector += width)
    for (int tap = 0; tap < 9; ++tap)
      for (int in = 0; in < group_channels; ++in)
        for (int lane = 0; lane < width; ++lane) *packed++ = weight[((vector + lane) * group_channels + in) * 9 + tap];
}

template <class Input, class Output>
class GroupedRow {
 public:
  // The channels are whole vectors.
  GroupedRow(const GroupedConv& call, int64_t task) : call_(call), y_(task % call.height) {
    const int64_t image = task / call.height, row = call.width * call.channels;
    input_ = static_cast<const Input*>(call.input) + image * call.height * row;
    output_ = static_cast<Output*>(call.output) + (image * call.height + y_) * row;
  }

  static size_t scratch_bytes(const GroupedConv& call) { return round_up(call.channels * sizeof(Input), 64); }

  void run(void* scratch) {
    zeros_ = static_cast<const Input*>(scratch);
    __builtin_memset(scratch, 0, call_.channels * sizeof(Input));
    int64_t x = 0;
    for (; x + most_pixels <= call_.width; x += most_pixels) convolve<most_pixels>(x);
    for (; x < call_.width; ++x) convolve<1>(x);
  }

 private:
  using S = Simd<float>;
  using V = S::vector;

  static constexpr int most_pixels = DCNZOO_VECTOR_BYTES == 64 ? 8 : 4;  // at once, their sums in registers

  const Input* pixel(int64_t y, int64_t x) const {
    const bool inside = y >= 0 && y < call_.height && x >= 0 && x < call_.width;
    return inside ? input_ + (y * call_.width + x) * call_.channels : zeros_;
  }

  template <int PIXELS>
  void convolve(int64_t x) const {
    const Input* pixels[3][PIXELS + 2];
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < PIXELS + 2; ++j) pixels[i][j] = pixel(y_ - 1 + i, x - 1 + j);
    const float* weight = call_.packed_weight;
    for (int64_t c = 0; c < call_.channels; c += S::width, weight += 9 * group_channels * S::width) {
      V sums[PIXELS];
      const V bias = call_.bias == nullptr ? V{} : S::load(call_.bias + c);
#pragma GCC unroll 8
      for (int j = 0; j < PIXELS; ++j) sums[j] = bias;
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) add_row<PIXELS>(pixels[i], c, weight + 3 * i * group_channels * S::width, sums);
#pragma GCC unroll 8
      for (int j = 0; j < PIXELS; ++j) {
        if (call_.relu) sums[j] = sums[j] < V{} ? V{} : sums[j];  // keeps NaN
        store_vector(output_ + (x + j) * call_.channels + c, sums[j]);
      }
    }
  }

  template <int PIXELS>
  static DCNZOO_INLINE void add_row(const Input* const* pixels, int64_t c, const float* weight, V* sums) {
    V weights[3][group_channels];
#pragma GCC unroll 3
    for (int tap = 0; tap < 3; ++tap) {
#pragma GCC unroll 4
      for (int in = 0; in < group_channels; ++in) weights[tap][in] = S::load(weight + (tap * group_channels + in) * S::width);
    }
#pragma GCC unroll 10
    for (int j = 0; j < PIXELS + 2; ++j) {
      const V value = load_vector(pixels[j] + c);
      const V spreads[group_channels] = {spread<0>(value), spread<1>(value), spread<2>(value), spread<3>(value)};
#pragma GCC unroll 3
      for (int tap = 0; tap < 3; ++tap) {
        const int target = j - tap;
        if (target < 0 || target >= PIXELS) continue;
#pragma GCC unroll 4
        for (int in = 0; in < group_channels; ++in) sums[target] += spreads[in] * weights[tap][in];
      }
    }
  }

  const GroupedConv& call_;
  const int64_t y_;
  const Input *input_, *zeros_ = nullptr;  // of the image; a pixel outside the map
  Output* output_;                         // of the row
};

template <class Input, class Output>
void run_grouped(const GroupedConv& call, int64_t task, void* scratch) {
  GroupedRow<Input, Output>(call, task).run(scratch);
}

template <class Half>
constexpr GroupedConvKernels grouped_conv_kernels() {
  return {Simd<float>::width,
          grouped_packed_numel,
          pack_grouped,
          GroupedRow<float, float>::scratch_bytes,
          {{run_grouped<float, float>, run_grouped<float, Half>}, {run_grouped<Half, float>, run_grouped<Half, Half>}}};
}

}  // namespace
}  // namespace dcnzoo::cpu
