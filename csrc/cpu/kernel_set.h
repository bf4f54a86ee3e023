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

constexpr Kernels kernel_set() {
  return {{deform_conv2d_kernels<float>(), deform_conv2d_kernels<double>(), deform_conv2d_kernels<BFloat16>(),
           deform_conv2d_kernels<Float16>(), deform_conv2d_grad_kernels<float>(), deform_conv2d_grad_kernels<double>()},
          {roi_pool_kernels<float>(), roi_pool_kernels<double>(), roi_pool_kernels<BFloat16>(),
           roi_pool_kernels<Float16>(), roi_pool_grad_kernels<float>(), roi_pool_grad_kernels<double>()},
          {winograd_kernels<4, PlainMaps>(), winograd_kernels<6, Mosaic>(), linear_kernels(), stem_kernels(),
           mask_logits_kernels()}};
}

}  // namespace
}  // namespace dcnzoo::cpu
