// 3×3 convolution with stride 2 and padding 1 to few channels, as those that predict offsets: a product per tap, whose left
// operand are every second pixel of a row of the input, in place. Factor is what is multiplied, and the input's type.
#pragma once

#include "linear_kernel.h"

namespace dcnzoo::cpu {
namespace {

// A task is a row of the output.
template <class Factor>
class StridedRow {
 public:
  static size_t scratch_bytes(const StridedConv& call) {
    const int64_t width = strided_conv_size(call.width);
    return static_cast<size_t>(sums_bytes(call) + layout(call).scratch_bytes(width));
  }

  StridedRow(const StridedConv& call, int64_t task, void* scratch)
      : call_(call),
        layout_(layout(call)),
        height_(strided_conv_size(call.height)),
        width_(strided_conv_size(call.width)),
        y_(task % height_),
        input_(static_cast<const Factor*>(call.input) + task / height_ * call.height * call.width * call.in_channels),
        output_(call.output + task * width_ * call.out_channels),
        sums_(static_cast<float*>(scratch)),
        product_scratch_(static_cast<char*>(scratch) + sums_bytes(call)) {}

  void run() {
    const int64_t columns = layout_.padded_columns;
    for (int64_t x = 0; x < width_; ++x) {
      for (int64_t c = 0; c < columns; ++c) sums_[x * columns + c] = call_.bias != nullptr && c < call_.out_channels ? call_.bias[c] : 0;
    }
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < 3; ++j) add_tap(i, j);
    }
    for (int64_t x = 0; x < width_; ++x) {
      for (int64_t c = 0; c < call_.out_channels; ++c) output_[x * call_.out_channels + c] = sums_[x * columns + c];
    }
  }

 private:
  static LinearLayout<Factor> layout(const StridedConv& call) { return {call.out_channels, call.in_channels}; }
  static int64_t sums_bytes(const StridedConv& call) {
    return round_up(strided_conv_size(call.width) * layout(call).padded_columns * static_cast<int64_t>(sizeof(float)), 64);
  }

  // The products of a tap with those pixels that lie inside the map.
  void add_tap(int64_t i, int64_t j) const {
    const int64_t y = 2 * y_ - 1 + i, begin = j == 0 ? 1 : 0, end = min(width_, (call_.width - j + 2) / 2);
    if (y < 0 || y >= call_.height || begin >= end) return;
    Linear product{};
    product.row_stride = 2 * call_.in_channels, product.in_channels = call_.in_channels;
    product.out_channels = layout_.padded_columns;
    product.packed_weight = static_cast<const MultiplierB<Factor>*>(call_.packed_weight) + (3 * i + j) * layout_.numel();
    product.accumulate = true;
    const Factor* pixels = input_ + (y * call_.width + 2 * begin - 1 + j) * call_.in_channels;
    run_linear_block(product, layout_, {1, end - begin, 0}, pixels, sums_ + begin * layout_.padded_columns, 0, product_scratch_);
  }

  const StridedConv& call_;
  const LinearLayout<Factor> layout_;
  const int64_t height_, width_, y_;  // of the output, and the row
  const Factor* const input_;  // of the image
  float *const output_, *const sums_;  // of the row; with padded columns
  void* const product_scratch_;
};

template <class Factor>
void run_strided(const StridedConv& call, int64_t task, void* scratch) {
  StridedRow<Factor>(call, task, scratch).run();
}

template <class Factor>
constexpr StridedConvKernels strided_conv_kernels() {
  return {StridedRow<Factor>::scratch_bytes, run_strided<Factor>};
}

}  // namespace
}  // namespace dcnzoo::cpu
