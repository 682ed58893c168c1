// Element types of feature maps, and the types in which they are computed.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "problem.h"

namespace stn::STN_ISA {

struct BFloat16 {
  uint16_t bits;
};

using Float16 = _Float16;

// Precision of coordinates, weights and sums.
template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
STN_FUNCTION Compute<S> widened(S value) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
  } else {
    return static_cast<Compute<S>>(value);
  }
}

STN_FUNCTION BFloat16 bfloat16_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>(value == value ? rounded : quiet_nan)};
}

// Integers that float32 holds, all of them.
template <class S>
constexpr bool kIsLevel = std::is_integral_v<S> && sizeof(S) <= 2;

// Integers that it does not: they are moved, and never computed with.
template <class S>
constexpr bool kIsLabel = std::is_integral_v<S> && sizeof(S) > 2;

// Saturated; NaN is the least. Adding and taking away 1.5·2^23 leaves the nearest integer, ties to even.
template <class S>
STN_FUNCTION S level_of(float value) {
  constexpr float least = std::numeric_limits<S>::min(), most = std::numeric_limits<S>::max();
  const float level = value > least ? (value < most ? value : most) : least;
  return static_cast<S>(static_cast<int>((level + 12582912.0f) - 12582912.0f));
}

// Rounded half to even, saturated.
template <class S>
STN_FUNCTION S label_of(double value) {
  constexpr S least = std::numeric_limits<S>::min(), most = std::numeric_limits<S>::max();
  const double label = std::nearbyint(value);
  return label >= static_cast<double>(most) ? most : label > static_cast<double>(least) ? static_cast<S>(label) : least;
}

// Rounded once, half to even.
template <class S>
STN_FUNCTION S stored(Compute<S> value) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    return bfloat16_of(value);
  } else if constexpr (kIsLevel<S>) {
    return level_of<S>(value);
  } else {
    return static_cast<S>(value);
  }
}

// What points without a pixel read, as it is stored.
template <class S>
STN_FUNCTION S fill_as(const Sampling& sampling, int64_t channel) {
  if constexpr (std::is_same_v<S, int64_t>)
    if (sampling.labels != nullptr) return sampling.labels[sampling.fill_index(channel)];
  if constexpr (kIsLabel<S>) return label_of<S>(sampling.fill_of(channel));
  else return stored<S>(static_cast<Compute<S>>(sampling.fill_of(channel)));
}

// What taps outside of the map read, as it is stored.
template <class S>
STN_FUNCTION S outside_as(const Sampling& sampling, int64_t channel) {
  return sampling.padding == Padding::fill ? fill_as<S>(sampling, channel) : S{};
}

}  // namespace stn::STN_ISA
