#define DCNZOO_VECTOR_BYTES 64
#define DCNZOO_FLOAT16_FMA  // fused multiply-add of float16: vfmadd231ph
#include "kernel_set.h"

namespace dcnzoo::cpu {

const Kernels kernels_avx512fp16 = kernel_set();

}  // namespace dcnzoo::cpu
