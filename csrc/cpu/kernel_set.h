// Every kernel, for the one instruction set that the including translation unit is compiled for.
#pragma once

#include "deform_conv2d_grad_kernel.h"
#include "deform_conv2d_kernel.h"
#include "grouped_conv_kernel.h"
#include "linear_kernel.h"
#include "mask_logits_kernel.h"
#include "roi_pool_kernel.h"
#include "stem_kernel.h"
#include "strided_conv_kernel.h"
#include "winograd_kernel.h"

namespace dcnzoo::cpu {
namespace {

// The tiles of Winograd's algorithm, of any map and of small ones. The larger they are, the fewer the products, and the more
// the transforms enlarge the rounding errors of the factors.
template <class Factor>
struct Tiles {
  static constexpr int any = 4, small = 7;
};
template <>
struct Tiles<Float16> {
  static constexpr int any = 4, small = 5;
};
template <>
struct Tiles<BFloat16> {
  static constexpr int any = 3, small = 5;
};

template <class Factor>
constexpr DenseKernels dense_kernels() {
  return {winograd_kernels<Factor, Tiles<Factor>::any>(), winograd_kernels<Factor, Tiles<Factor>::small>(),
          linear_kernels<Factor>(), strided_conv_kernels<Factor>(), mask_logits_kernels<Factor>()};
}

#ifdef DCNZOO_HALF_FACTOR
constexpr HalfKernels half_kernels = {std::is_same_v<HalfFactor, Float16> ? Element::float16 : Element::bfloat16,
                                      deform_conv2d_kernels<HalfMultiplied>(), roi_pool_kernels<float, HalfFactor>(),
                                      dense_kernels<HalfFactor>()};
constexpr const HalfKernels* half = &half_kernels;
using AnyHalf = HalfFactor;
#else
constexpr const HalfKernels* half = nullptr;
using AnyHalf = BFloat16;
#endif

constexpr Kernels kernel_set() {
  return {{deform_conv2d_kernels<float>(), deform_conv2d_kernels<double>(), deform_conv2d_kernels<BFloat16>(),
           deform_conv2d_kernels<Float16>(), deform_conv2d_grad_kernels<float>(), deform_conv2d_grad_kernels<double>()},
          {roi_pool_kernels<float>(), roi_pool_kernels<double>(), roi_pool_kernels<BFloat16>(),
           roi_pool_kernels<Float16>(), roi_pool_grad_kernels<float>(), roi_pool_grad_kernels<double>()},
          dense_kernels<float>(),
          stem_kernels(),
          grouped_conv_kernels<AnyHalf>(),
          half};
}

}  // namespace
}  // namespace dcnzoo::cpu
