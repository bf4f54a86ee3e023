#define DCNZOO_VECTOR_BYTES 64
#include "kernel_set.h"

namespace dcnzoo::cpu {

const Kernels kernels_avx512 = kernel_set();

}  // namespace dcnzoo::cpu
