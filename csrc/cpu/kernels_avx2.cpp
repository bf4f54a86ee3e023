#define DCNZOO_VECTOR_BYTES 32
#include "kernel_set.h"

namespace dcnzoo::cpu {

const Kernels kernels_avx2 = kernel_set();

}  // namespace dcnzoo::cpu
