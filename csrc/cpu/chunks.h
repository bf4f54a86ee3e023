// Into how many chunks to cut the channels of a computation that is divided among threads.
#pragma once

#include "simd.h"

namespace dcnzoo::cpu {
namespace {

// The number, from `fewest`, that takes the least time when each of `units` has so many `parts` to be cut into
// chunks of them. Every chunk repeats some work, that of about `extra` parts.
inline int64_t best_chunks(int64_t units, int64_t parts, int64_t fewest, double extra, int threads) {
  int64_t best = parts;
  double best_cost = 0;
  for (int64_t chunks = fewest; chunks <= parts; ++chunks) {
    const int64_t rounds = ceil_div(units * chunks, threads);
    const double cost = static_cast<double>(rounds) * (static_cast<double>(ceil_div(parts, chunks)) + extra);
    if (best_cost == 0 || cost < best_cost) best = chunks, best_cost = cost;
  }
  return best;
}

}  // namespace
}  // namespace dcnzoo::cpu
