// Stands in for the CUDA compiler under g++: the kernels run as plain functions, in blocks and warps of one thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#define __global__
#define __shared__ static thread_local
#define __launch_bounds__(...)

struct Index {
  unsigned x;
};

inline constexpr Index threadIdx{0}, blockIdx{0}, gridDim{1};

namespace emulation {

template <class To, class From>
To bits_to(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace emulation

inline void __syncthreads() {}
inline int __syncthreads_count(bool condition) { return condition; }
inline unsigned __ballot_sync(unsigned, bool condition) { return condition; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <class V>
V __shfl_sync(unsigned, V value, int) {
  return value;
}

template <class V>
V __shfl_xor_sync(unsigned, V value, int) {
  return value;
}

template <class V>
void atomicAdd(V* to, V value) {
  *to += value;
}

template <class V>
void atomicMax(V* to, V value) {
  *to = std::max(*to, value);
}

inline long long __double_as_longlong(double value) { return emulation::bits_to<long long>(value); }
inline double __longlong_as_double(long long bits) { return emulation::bits_to<double>(bits); }
