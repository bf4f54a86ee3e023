// The end of a mask head: each pixel becomes 2×2 by a transposed convolution with ReLU, and of those only the logit of
// the RoI's own class is computed. The upsampled features never leave the cache.
#pragma once

#include "dense.h"
#include "linear_kernel.h"

namespace dcnzoo::cpu {
namespace {

template <class Factor>
class MaskLogitsBlock {
 public:
  static int64_t block_rows(const MaskLogits& call) { return min(call.height, max<int64_t>(1, 98 / call.width)); }
  static int64_t blocks(const MaskLogits& call) { return ceil_div(call.height, block_rows(call)); }

  static size_t scratch_bytes(const MaskLogits& call) {
    const int64_t pixels = block_rows(call) * call.width, columns = 2 * call.channels;
    const size_t upsampled = static_cast<size_t>(round_up(pixels * columns, 16)) * sizeof(float);
    return upsampled + LinearLayout<Factor>(columns, call.in_channels).scratch_bytes(pixels);
  }

  MaskLogitsBlock(const MaskLogits& call, int64_t task, void* scratch)
      : call_(call),
        layout_(2 * call.channels, call.in_channels),
        roi_(task / blocks(call)),
        row_(task % blocks(call) * block_rows(call)),
        pixels_(min(block_rows(call), call.height - row_) * call.width),
        upsampled_(static_cast<float*>(scratch)) {}

  void run() const {
    for (int64_t i = 0; i < 2; ++i) {  // the upper and the lower pixels of the four
      upsample(i);
      const float* pair = upsampled_;
      for (int64_t pixel = 0; pixel < pixels_; ++pixel, pair += 2 * call_.channels) {
        const int64_t y = 2 * (row_ + pixel / call_.width) + i, x = 2 * (pixel % call_.width);
        float* target = call_.output + (roi_ * 2 * call_.height + y) * 2 * call_.width + x;
        target[0] = logit(pair);
        target[1] = logit(pair + call_.channels);
      }
    }
  }

 private:
  using S = Simd<float>;

  void upsample(int64_t i) const {
    const int64_t first_pixel = (roi_ * call_.height + row_) * call_.width;
    Linear product{};
    product.row_stride = product.in_channels = call_.in_channels;
    product.out_channels = 2 * call_.channels;
    product.packed_weight = static_cast<const MultiplierB<Factor>*>(call_.packed_weight) + i * layout_.numel();
    product.bias = call_.bias;
    product.relu = true;
    run_linear_block(product, layout_, {1, pixels_, 0}, call_.input + first_pixel * call_.in_channels, upsampled_, 0,
                     upsampled_ + pixels_ * product.out_channels);
  }

  float logit(const float* features) const {
    const int64_t label = call_.labels[roi_];
    const float* weight = call_.class_weight + label * call_.channels;
    typename S::vector sum{};
    int64_t c = 0;
    for (; c + S::width <= call_.channels; c += S::width) sum += S::load(features + c) * S::load(weight + c);
    float total = sum_of_lanes<float>(sum);
    for (; c < call_.channels; ++c) total += features[c] * weight[c];
    return call_.class_bias == nullptr ? total : total + call_.class_bias[label];
  }

  const MaskLogits& call_;
  const LinearLayout<Factor> layout_;
  const int64_t roi_, row_, pixels_;
  float* const upsampled_;
};

template <class Factor>
int64_t mask_logits_tasks(const MaskLogits& call) {
  return call.rois * MaskLogitsBlock<Factor>::blocks(call);
}

template <class Factor>
void run_mask_logits(const MaskLogits& call, int64_t task, void* scratch) {
  MaskLogitsBlock<Factor>(call, task, scratch).run();
}

template <class Factor>
constexpr MaskLogitsKernels mask_logits_kernels() {
  return {mask_logits_tasks<Factor>, MaskLogitsBlock<Factor>::scratch_bytes, run_mask_logits<Factor>};
}

}  // namespace
}  // namespace dcnzoo::cpu
