// What the programs that run kernels without Python compare with.
#pragma once

#include <cmath>

#include "emulated_weight.h"

constexpr float kUntouched = -12352.0f;  // a bfloat16 too

inline double activate(double x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return x < 0 ? 0 : x;
    case Activation::kGelu:
      return x * 0.5 * (1 + std::erf(x * std::sqrt(0.5)));
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kRelu6:
      return std::fmin(6, std::fmax(0, x));
    case Activation::kHardswish:
      return x * std::fmin(6, std::fmax(0, x + 3)) / 6;
    default:
      return x;
  }
}

// Whether a kernel may have `got` for the activation of a sum, whose terms have so large a sum of
// magnitudes. The bound is that of a float sum in any order, times the steepest slope of the
// activation.
template <class T>
bool is_near(double got, double sum, double magnitude, int64_t terms, Activation activation) {
  const double rounding = sizeof(T) == sizeof(float) ? 0 : std::ldexp(1.01, -8);
  const bool curved = activation == Activation::kGelu || activation == Activation::kSilu ||
                      activation == Activation::kHardswish;
  const double slope = activation == Activation::kHardswish ? 1.5 : 1.13;
  const double bound = slope * magnitude * double(terms) * std::ldexp(1.01, -24) +
                       (curved ? 1e-6 * std::fmax(1, std::fabs(sum)) : 1e-37);
  const double wanted = activate(sum, activation);
  return std::fabs(got - wanted) <= bound + rounding * std::fabs(wanted);
}
