#define DCNZOO_VECTOR_BYTES 16
#include "deform_conv2d_kernel.h"
#include "linear_kernel.h"
#include "roi_pool_kernel.h"
#include "stem_kernel.h"
#include "winograd_kernel.h"

namespace dcnzoo::cpu {

const Kernels kernels_default = {deform_conv2d_kernels<float>(), deform_conv2d_kernels<double>(),
                                 {winograd_kernels(), linear_kernels(), stem_kernels()}, pool_rois};

}  // namespace dcnzoo::cpu
