// Element types of feature maps, and the types in which they are computed.
#pragma once

#include "structures.h"

namespace stn {

struct Float16 {
  unsigned short bits;
};

struct BFloat16 {
  unsigned short bits;
};

using UInt8 = unsigned char;
using UInt16 = unsigned short;
using Int16 = short;

template <class S>
struct ComputeOf {
  using Type = float;
};

template <>
struct ComputeOf<double> {
  using Type = double;
};

// Precision of coordinates, weights and sums.
template <class S>
using Compute = typename ComputeOf<S>::Type;

STN_FUNCTION float widened(float value) { return value; }
STN_FUNCTION double widened(double value) { return value; }
STN_FUNCTION float widened(UInt8 value) { return static_cast<float>(value); }
STN_FUNCTION float widened(UInt16 value) { return static_cast<float>(value); }
STN_FUNCTION float widened(Int16 value) { return static_cast<float>(value); }

#if defined(__CUDACC_RTC__)
STN_FUNCTION float widened(Float16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}

STN_FUNCTION float widened(BFloat16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }

STN_FUNCTION void round_to(float value, Float16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value)); }
STN_FUNCTION void round_to(float value, BFloat16& out) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value)); }
// Rounds half to even and saturates; NaN becomes 0.
STN_FUNCTION void round_to(float value, UInt8& out) {
  const int level = __float2int_rn(value);
  out = static_cast<UInt8>(level < 0 ? 0 : level > 255 ? 255 : level);
}
#else
STN_FUNCTION float widened(Float16 value) { return static_cast<float>(emulation::bits_to<_Float16>(value.bits)); }

STN_FUNCTION float widened(BFloat16 value) {
  return emulation::bits_to<float>(static_cast<unsigned>(value.bits) << 16);
}

STN_FUNCTION void round_to(float value, Float16& out) {
  out.bits = emulation::bits_to<unsigned short>(static_cast<_Float16>(value));
}

STN_FUNCTION void round_to(float value, BFloat16& out) {
  const unsigned bits = emulation::bits_to<unsigned>(value);
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<unsigned short>(value == value ? rounded : (bits >> 16) | 0x40u);
}

STN_FUNCTION void round_to(float value, UInt8& out) {
  const float level = value > 0.0f ? (value < 255.0f ? value : 255.0f) : 0.0f;
  out = static_cast<UInt8>(round_of(level));
}
#endif

// Rounds half to even and saturates.
STN_FUNCTION void round_to(float value, UInt16& out) {
  out = static_cast<UInt16>(round_of(clamp_to(value, 0.0f, 65535.0f)));
}
STN_FUNCTION void round_to(float value, Int16& out) {
  out = static_cast<Int16>(round_of(clamp_to(value, -32768.0f, 32767.0f)));
}

STN_FUNCTION void round_to(float value, float& out) { out = value; }
STN_FUNCTION void round_to(double value, float& out) { out = static_cast<float>(value); }
STN_FUNCTION void round_to(double value, double& out) { out = value; }

// Channels that one access moves where they lie side by side.
template <class S>
constexpr int kVector =
    kVectorBytes / static_cast<int>(sizeof(S)) < kVectorChannels ? kVectorBytes / static_cast<int>(sizeof(S))
                                                                 : kVectorChannels;

template <class S>
struct alignas(sizeof(S) * kVector<S>) Vector {
  S at[kVector<S>];
};

// Memory that a kernel writes is the device's, which a pointer from a table does not say by itself.
template <class P>
STN_FUNCTION P* in_device_memory(P* pointer) {
#if defined(__CUDACC_RTC__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// Reads of what no kernel of the launch writes.
template <class S>
STN_FUNCTION S fetched(const S* from) {
#if defined(__CUDACC_RTC__)
  if constexpr (sizeof(S) == 16) return __builtin_bit_cast(S, __ldg(reinterpret_cast<const int4*>(from)));
  else if constexpr (sizeof(S) == 8) return __builtin_bit_cast(S, __ldg(reinterpret_cast<const int2*>(from)));
  else if constexpr (sizeof(S) == 4) return __builtin_bit_cast(S, __ldg(reinterpret_cast<const int*>(from)));
  else if constexpr (sizeof(S) == 2) return __builtin_bit_cast(S, __ldg(reinterpret_cast<const short*>(from)));
  else return __builtin_bit_cast(S, __ldg(reinterpret_cast<const signed char*>(from)));
#else
  return *from;
#endif
}

}  // namespace stn
