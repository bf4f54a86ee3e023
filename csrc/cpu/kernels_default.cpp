#define DCNZOO_VECTOR_BYTES 16
#include "kernel_set.h"

namespace dcnzoo::cpu {

const Kernels kernels_default = kernel_set();

}  // namespace dcnzoo::cpu
