#include "capability.h"

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
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

Capability choose() {
  const Candidate candidates[] = {  // best first
#if defined(__x86_64__)
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

}  // namespace dcnzoo::cpu
