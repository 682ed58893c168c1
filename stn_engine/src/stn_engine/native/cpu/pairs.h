// Neighbouring pixels along x for sixteen points at once: the loads that decide the speed of a warp.
#pragma once

#include "points.h"

namespace stn::STN_ISA {

template <class T>
struct Pairs {
  Lanes<T> left, right;
};

#if defined(__AVX512F__)
STN_FUNCTION Lanes<float> lanes_of(__m512 numbers) { return {{numbers}}; }
#endif

// at[offset[l]].
template <class S>
STN_FUNCTION Lanes<Compute<S>> load_single(const S* at, const int* offset) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>)
    return lanes_of(_mm512_i32gather_ps(_mm512_loadu_si512(offset), at, sizeof(float)));
#endif
  alignas(64) Compute<S> numbers[kLanes];
  for (int l = 0; l < kLanes; ++l) numbers[l] = widened(at[offset[l]]);
  return load(numbers);
}

// left[l] = at[offset[l]] and right[l] = at[offset[l] + step].
template <class S>
STN_FUNCTION Pairs<Compute<S>> load_pairs(const S* at, const int* offset, int step) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) {
    const __m512i places = _mm512_loadu_si512(offset);
    return {lanes_of(_mm512_i32gather_ps(places, at, sizeof(float))),
            lanes_of(_mm512_i32gather_ps(places, at + step, sizeof(float)))};
  }
#endif
  alignas(64) Compute<S> left[kLanes], right[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    left[l] = widened(at[offset[l]]);
    right[l] = widened(at[offset[l] + step]);
  }
  return {load(left), load(right)};
}

#if defined(__AVX512F__)

STN_FUNCTION __m256d spread_pair(const float* at) {
  double pair;
  std::memcpy(&pair, at, sizeof pair);
  return _mm256_set1_pd(pair);
}

// Four pairs by loads that spread 64 bits each, and blends: neither takes the one unit that moves numbers across.
STN_FUNCTION __m256d four_pairs(const float* at, const int* offset) {
  const __m256d low = _mm256_blend_pd(spread_pair(at + offset[0]), spread_pair(at + offset[1]), 0b0010);
  const __m256d high = _mm256_blend_pd(spread_pair(at + offset[2]), spread_pair(at + offset[3]), 0b1000);
  return _mm256_blend_pd(low, high, 0b1100);
}

STN_FUNCTION __m512 eight_pairs(const float* at, const int* offset) {
  const __m512d low = _mm512_castpd256_pd512(four_pairs(at, offset));
  return _mm512_castpd_ps(_mm512_insertf64x4(low, four_pairs(at, offset + 4), 1));
}

// Even and odd halves of pairs.
STN_FUNCTION Pairs<float> load_adjacent(const float* at, const int* offset) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  const __m512 low = eight_pairs(at, offset), high = eight_pairs(at, offset + 8);
  return {lanes_of(_mm512_permutex2var_ps(low, even, high)), lanes_of(_mm512_permutex2var_ps(low, odd, high))};
}

#elif defined(__AVX2__)

STN_FUNCTION double load_pair(const float* at) {
  double pair;
  std::memcpy(&pair, at, sizeof pair);
  return pair;
}

STN_FUNCTION __m128 two_pairs(const float* at, int first, int second) {
  return _mm_castpd_ps(_mm_set_pd(load_pair(at + second), load_pair(at + first)));
}

// Eight pairs by plain loads of 64 bits: faster than gathers on this instruction set.
STN_FUNCTION void load_eight(const float* at, const int* offset, __m256& left, __m256& right) {
  const __m256 a = _mm256_set_m128(two_pairs(at, offset[4], offset[5]), two_pairs(at, offset[0], offset[1]));
  const __m256 b = _mm256_set_m128(two_pairs(at, offset[6], offset[7]), two_pairs(at, offset[2], offset[3]));
  left = _mm256_shuffle_ps(a, b, 0x88);
  right = _mm256_shuffle_ps(a, b, 0xdd);
}

STN_FUNCTION Pairs<float> load_adjacent(const float* at, const int* offset) {
  __m256 left[2], right[2];
  load_eight(at, offset, left[0], right[0]);
  load_eight(at, offset + 8, left[1], right[1]);
  return {{{left[0], left[1]}}, {{right[0], right[1]}}};
}

#else

STN_FUNCTION Pairs<float> load_adjacent(const float* at, const int* offset) { return load_pairs(at, offset, 1); }

#endif

// Adjacent says that the pixels of a pair stand side by side in memory.
template <class S, bool Adjacent>
STN_FUNCTION Pairs<Compute<S>> load_lanes(const S* at, const int* offset, int step) {
  if constexpr (Adjacent && std::is_same_v<S, float>) return load_adjacent(at, offset);
  else return load_pairs(at, offset, step);
}

}  // namespace stn::STN_ISA
