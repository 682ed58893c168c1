// Element types of feature maps, and the types in which they are computed.
#pragma once

#include <cstring>
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

// Saturated; NaN is 0. Adding and taking away 2^23 leaves the nearest integer, ties to even.
STN_FUNCTION uint8_t uint8_of(float value) {
  const float level = value > 0.0f ? (value < 255.0f ? value : 255.0f) : 0.0f;
  return static_cast<uint8_t>(static_cast<int>((level + 8388608.0f) - 8388608.0f));
}

// Rounded once, half to even.
template <class S>
STN_FUNCTION S stored(Compute<S> value) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    return bfloat16_of(value);
  } else if constexpr (std::is_same_v<S, uint8_t>) {
    return uint8_of(value);
  } else {
    return static_cast<S>(value);
  }
}

}  // namespace stn::STN_ISA
