// The 16-bit numbers that this instruction set multiplies at twice the rate of float32, if it knows any.
#pragma once

#include "bfloat16_gemm.h"
#include "float16_gemm.h"

namespace dcnzoo::cpu {
namespace {

#if defined(DCNZOO_FLOAT16_FMA)
#define DCNZOO_HALF_FACTOR
using HalfFactor = Float16;
#elif defined(DCNZOO_BF16_DOT)
#define DCNZOO_HALF_FACTOR
using HalfFactor = BFloat16;
#endif

}  // namespace
}  // namespace dcnzoo::cpu
