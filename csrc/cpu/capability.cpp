#include "capability.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace dcnzoo::cpu {
namespace {

struct Candidate {
  Capability capability;
  bool supported;
};

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows these three. It does ask the operating system, whether the
// registers are saved, for the sets that these extend.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & 1u << 29) != 0;
}

bool has_bf16() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1u << 5) != 0;
}

bool has_fp16() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & 1u << 23) != 0;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
}
#endif

Capability choose() {
  const Candidate candidates[] = {  // best first
#if defined(__x86_64__)
#if defined(DCNZOO_HAS_AVX512FP16)
      // before bfloat16: the processors that have both multiply bfloat16 at half the rate of float32
      {{"avx512_fp16", &kernels_avx512fp16}, has_avx512() && has_bf16() && has_fp16()},
#endif
      {{"avx512_bf16", &kernels_avx512bf16}, has_avx512() && has_bf16()},
      {{"avx512", &kernels_avx512}, has_avx512()},
      {{"avx2", &kernels_avx2}, has_avx2()},
#endif
      {{"default", &kernels_default}, true},
  };
  const char* forced = std::getenv("DCNZOO_CPU_CAPABILITY");
  const std::string wanted = forced == nullptr ? "" : forced;
  std::string names;
  for (const Candidate& candidate : candidates) {
    if (wanted.empty() ? candidate.supported : wanted == candidate.capability.name) {
      if (!candidate.supported) throw std::runtime_error("DCNZOO_CPU_CAPABILITY=" + wanted + ": this processor lacks it");
      return candidate.capability;
    }
    names += std::string(names.empty() ? "" : ", ") + candidate.capability.name;
  }
  throw std::runtime_error("DCNZOO_CPU_CAPABILITY=" + wanted + " is unknown; this build knows " + names);
}

}  // namespace

const Capability& capability() {
  static const Capability chosen = choose();
  return chosen;
}

const HalfKernels& half_kernels() {
  const HalfKernels* kernels = capability().kernels->half;
  if (kernels == nullptr) throw std::runtime_error(std::string("the kernels for ") + capability().name + " do not multiply in 16 bits");
  return *kernels;
}

}  // namespace dcnzoo::cpu
