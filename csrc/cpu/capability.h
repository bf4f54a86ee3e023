// Which of the compiled kernel sets this process uses.
#pragma once

#include "kernels.h"

namespace dcnzoo::cpu {

struct Capability {
  const char* name;
  const Kernels* kernels;
};

// The best set that the processor supports, or the one that the environment variable
// DCNZOO_CPU_CAPABILITY names; decided once per process. Throws std::runtime_error if that name is
// unknown or the processor lacks it.
const Capability& capability();

// Its kernels that multiply in 16 bits. Throws std::runtime_error if it has none.
const HalfKernels& half_kernels();

}  // namespace dcnzoo::cpu
