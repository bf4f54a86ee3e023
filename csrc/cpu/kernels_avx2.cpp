#define DCNZOO_VECTOR_BYTES 32
#include "deform_conv2d_kernel.h"

namespace dcnzoo::cpu {

const Kernels kernels_avx2 = {deform_conv2d_kernels<float>(), deform_conv2d_kernels<double>()};

}  // namespace dcnzoo::cpu
