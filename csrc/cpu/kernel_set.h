// Every kernel, for the one instruction set that the including translation unit is compiled for.
#pragma once

#include "deform_conv2d_grad_kernel.h"
#include "deform_conv2d_kernel.h"
#include "linear_kernel.h"
#include "mask_logits_kernel.h"
#include "roi_pool_kernel.h"
#include "stem_kernel.h"
#include "winograd_kernel.h"

namespace dcnzoo::cpu {
namespace {

template <class Factor>
constexpr DenseKernels dense_kernels() {
  constexpr int small_tile = std::is_same_v<Factor, float> ? 7 : 5;
  return {winograd_kernels<Factor, 4>(), winograd_kernels<Factor, small_tile>(), linear_kernels<Factor>(),
          mask_logits_kernels<Factor>()};
}

#ifdef DCNZOO_FLOAT16_FMA
constexpr HalfKernels half_kernels = {deform_conv2d_kernels<HalfMultiplied>(), dense_kernels<Float16>()};
constexpr const HalfKernels* half = &half_kernels;
#else
constexpr const HalfKernels* half = nullptr;
#endif

constexpr Kernels kernel_set() {
  return {{deform_conv2d_kernels<float>(), deform_conv2d_kernels<double>(), deform_conv2d_kernels<BFloat16>(),
           deform_conv2d_kernels<Float16>(), deform_conv2d_grad_kernels<float>(), deform_conv2d_grad_kernels<double>()},
          {roi_pool_kernels<float>(), roi_pool_kernels<double>(), roi_pool_kernels<BFloat16>(),
           roi_pool_kernels<Float16>(), roi_pool_grad_kernels<float>(), roi_pool_grad_kernels<double>()},
          dense_kernels<float>(),
          stem_kernels(),
          half};
}

}  // namespace
}  // namespace dcnzoo::cpu
