// Stands in for the CUDA compiler under g++: what kernels call, on the device of `device.cpp`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#define __global__
#define __grid_constant__
// In a section of its own, so that the device can spoil it before every block.
#define __shared__ static __attribute__((section("stn_shared")))
#define __launch_bounds__(...)

namespace emulation {

struct Index {
  unsigned x;
};

// What every kernel is called with, by value.
struct Parameters {
  long long words[STN_LAUNCH_WORDS];
};

using Kernel = void (*)(Parameters);

// One kernel over all tiles.
struct Launch {
  Kernel kernel;
  const Parameters* parameters;
  unsigned blocks;
  unsigned long long seed;  // of the order in which threads and blocks run
  char *shared, *shared_end;
};

// Runs a launch; what kernels did wrong, or null.
const char* run(const Launch& launch);

// Waits for all threads of the block; how many of them brought a true condition.
int meet_block(bool condition);

// Waits for all lanes of the warp; what lane `from` brought.
unsigned long long exchange_bits(unsigned lanes, unsigned long long bits, int from);

// Waits for all lanes of the warp; which of them brought a true condition.
unsigned vote(unsigned lanes, bool condition);

int lane();

template <class To, class From>
To bits_to(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
V exchange(unsigned lanes, V value, int from) {
  static_assert(sizeof(V) <= 8);
  unsigned long long bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange_bits(lanes, bits, from);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulation

extern emulation::Index threadIdx, blockIdx, gridDim;

inline void __syncthreads() { emulation::meet_block(false); }
inline int __syncthreads_count(bool condition) { return emulation::meet_block(condition); }
inline unsigned __ballot_sync(unsigned lanes, bool condition) { return emulation::vote(lanes, condition); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <class V>
V __shfl_sync(unsigned lanes, V value, int from) {
  return emulation::exchange(lanes, value, from);
}

template <class V>
V __shfl_xor_sync(unsigned lanes, V value, int distance) {
  return emulation::exchange(lanes, value, emulation::lane() ^ distance);
}

// Threads only change places where they meet: nothing comes between.
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

// Every program has its own shared memory.
extern char __start_stn_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_stn_shared[] __attribute__((weak, visibility("hidden")));

extern "C" [[gnu::used]] inline const char* emulated_launch(emulation::Kernel kernel,
                                                            const emulation::Parameters* parameters, unsigned blocks,
                                                            unsigned long long seed) {
  return emulation::run({kernel, parameters, blocks, seed, __start_stn_shared, __stop_stn_shared});
}
