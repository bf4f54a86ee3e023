// What the operators for CPU and GPU have in common about thresholds.
#pragma once

#include <cmath>

namespace dcnzoo {

// Largest float that is not above a threshold: a float exceeds one if and only if it exceeds the other.
inline float round_down(double threshold) {
  const float nearest = static_cast<float>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, -INFINITY) : nearest;
}

}  // namespace dcnzoo
