#define DCNZOO_VECTOR_BYTES 64
#define DCNZOO_BF16_DOT  // products of bfloat16 pairs: vdpbf16ps
#include "kernel_set.h"

namespace dcnzoo::cpu {

const Kernels kernels_avx512bf16 = kernel_set();

}  // namespace dcnzoo::cpu
