// The bilinear sampler and its derivatives for maps whose channels stand side by side (NHWC): one point at a
// time, all of its channels at once. The arithmetic is that of read_cells.h, bit for bit.
#pragma once

#include "read_cells.h"

namespace stn::STN_ISA {

// The corners of a cell as pointers to their first channel, in the order of CellPixels.
template <class S, int D>
struct Corners {
  const S* at[kPairs<D>][2];
};

template <class S, class T, int D>
STN_FUNCTION Corners<S, D> corners_of(const S* map, const CellPlan<T, D>& plan, int b) {
  Corners<S, D> corners;
  for (int pair = 0; pair < kPairs<D>; ++pair) {
    corners.at[pair][0] = map + plan.offset[b] + pair_offset(plan, pair);
    corners.at[pair][1] = corners.at[pair][0] + plan.step[0];
  }
  return corners;
}

template <class T, int D>
struct PointWeights {
  T at[D][2];

  STN_MEMBER PointWeights(const CellPlan<T, D>& plan, int b) {
    for (int a = 0; a < D; ++a) at[a][0] = plan.weight[a][0][b], at[a][1] = plan.weight[a][1][b];
  }

  // Equation (1), x innermost. V is T or lanes of it.
  template <class V>
  STN_MEMBER V blend(const V (&pixel)[kPairs<D>][2]) const {
    V row[kPairs<D>];
    for (int pair = 0; pair < kPairs<D>; ++pair) row[pair] = pixel[pair][0] * at[0][0] + pixel[pair][1] * at[0][1];
    V plane[kPairs<D> / 2];
    for (int z = 0; z < kPairs<D> / 2; ++z) plane[z] = row[2 * z] * at[1][0] + row[2 * z + 1] * at[1][1];
    if constexpr (D == 2) return plane[0];
    else return plane[0] * at[2][0] + plane[1] * at[2][1];
  }
};

// A range of channels.
struct Channels {
  int64_t first, count;
};

// What missing pixels hold under padding by zeros.
template <class S>
alignas(64) inline constexpr S kNothing[kBuffer] = {};

template <class S, class T, int D>
STN_FUNCTION void blend_pixel(const Corners<S, D>& corners, const PointWeights<T, D>& weights, int64_t channels,
                              T* __restrict__ out) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    Lanes<T> pixel[kPairs<D>][2];
    for (int pair = 0; pair < kPairs<D>; ++pair)
      for (int side = 0; side < 2; ++side) pixel[pair][side] = load_widened(corners.at[pair][side] + c);
    store(weights.blend(pixel), out + c);
  }
  for (; c < channels; ++c) {
    T pixel[kPairs<D>][2];
    for (int pair = 0; pair < kPairs<D>; ++pair)
      for (int side = 0; side < 2; ++side) pixel[pair][side] = widened(corners.at[pair][side][c]);
    out[c] = weights.blend(pixel);
  }
}

// Points that read nothing.
template <class T, int D>
STN_FUNCTION void put_constants(const Sampling& sampling, const CellPlan<T, D>& plan, int b, Channels channels,
                                T* out) {
  for (int64_t c = 0; c < channels.count; ++c) {
    const Constants<T> constants = constants_of<T>(sampling, channels.first + c);
    out[c] = plan.finite[b] ? constants.outside : constants.fill;
  }
}

// Some corners are missing, and what stands for them differs from channel to channel.
template <class S, class T, int D>
STN_FUNCTION void blend_filled(const Sampling& sampling, const Corners<S, D>& corners, const CellPlan<T, D>& plan,
                               int b, Channels channels, T* out) {
  const PointWeights<T, D> weights(plan, b);
  for (int64_t c = 0; c < channels.count; ++c) {
    const T outside = constants_of<T>(sampling, channels.first + c).outside;
    T pixel[kPairs<D>][2];
    for (int pair = 0; pair < kPairs<D>; ++pair)
      for (int side = 0; side < 2; ++side)
        pixel[pair][side] = plan.there[pair][side][b] ? static_cast<T>(widened(corners.at[pair][side][c])) : outside;
    out[c] = weights.blend(pixel);
  }
}

// A point of which some corners may be missing.
template <class S, class T, int D>
STN_LARGE_FUNCTION void blend_edge_pixel(const Sampling& sampling, const S* map, const CellPlan<T, D>& plan, int b,
                                         Channels channels, T* out) {
  if (!plan.live[b]) return put_constants(sampling, plan, b, channels, out);
  Corners<S, D> corners = corners_of(map, plan, b);
  if (sampling.padding == Padding::fill) return blend_filled(sampling, corners, plan, b, channels, out);
  for (int pair = 0; pair < kPairs<D>; ++pair)
    for (int side = 0; side < 2; ++side)
      if (!plan.there[pair][side][b]) corners.at[pair][side] = kNothing<S>;
  blend_pixel(corners, PointWeights<T, D>(plan, b), channels.count, out);
}

template <class T, int D>
STN_FUNCTION bool is_whole(const CellPlan<T, D>& plan, int b) {
  return plan.reads_of(b) == Reads::inside || plan.whole[b];
}

// Maps of three channels have code of their own, where it exists.
template <class S, int D>
#if defined(__AVX2__)
constexpr bool kBlendsThree = D == 2 && (std::is_same_v<S, float> || std::is_same_v<S, uint8_t>);
#else
constexpr bool kBlendsThree = false;
#endif

#if defined(__AVX2__)

// Eight numbers from p on, of which a cell of three channels uses six.
STN_FUNCTION __m256 load_cell_row(const float* p) { return _mm256_loadu_ps(p); }
STN_FUNCTION __m256 load_cell_row(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// first·weight0 + second·weight1 of two neighbouring pixels of three channels.
STN_FUNCTION __m128 blend_cell_row(__m256 row, __m256 weights) {
  const __m256i second = _mm256_setr_epi32(3, 4, 5, 5, 5, 5, 5, 5);
  const __m256 products = _mm256_mul_ps(row, weights);
  return _mm_add_ps(_mm256_castps256_ps128(products),
                    _mm256_castps256_ps128(_mm256_permutevar8x32_ps(products, second)));
}

// Reads eight numbers a row and writes four.
template <class S>
STN_FUNCTION void blend_three(const S* map, const CellPlan<float, 2>& plan, int b, float* out) {
  const __m256 weights =
      _mm256_blend_ps(_mm256_set1_ps(plan.weight[0][0][b]), _mm256_set1_ps(plan.weight[0][1][b]), 0b00111000);
  const S* cell = map + plan.offset[b];
  const __m128 top = blend_cell_row(load_cell_row(cell), weights);
  const __m128 bottom = blend_cell_row(load_cell_row(cell + plan.step[1]), weights);
  _mm_storeu_ps(out, _mm_add_ps(_mm_mul_ps(top, _mm_set1_ps(plan.weight[1][0][b])),
                                _mm_mul_ps(bottom, _mm_set1_ps(plan.weight[1][1][b]))));
}

#endif

// The largest cell offset at which blend_three stays inside the map; negative if it may not run at all.
STN_FUNCTION int64_t three_limit(const Map& source) {
  if (source.channels != 3 || source.stride[0] != 3 || source.stride[1] < 3 * source.size[0]) return INT64_MIN;
  return source.stride[1] * (source.size[1] - 2) + 3 * source.size[0] - 8;
}

// V of some channels, at most kBuffer, at points [first, last) of a block. Points are `stride` numbers apart in
// `out`; one number more than is asked for may be written.
template <class S, class T, int D>
STN_LARGE_FUNCTION void read_pixels(const Item& item, const S* map, const CellPlan<T, D>& plan, int first, int last,
                                    Channels channels, int64_t stride, T* out) {
  [[maybe_unused]] const int64_t limit = three_limit(item.source);
  map += channels.first;
  for (int b = first; b < last; ++b, out += stride) {
    if (!is_whole(plan, b)) {
      blend_edge_pixel(item.sampling, map, plan, b, channels, out);
      continue;
    }
    if constexpr (kBlendsThree<S, D>) {
      if (plan.offset[b] <= limit) {
        blend_three(map, plan, b, out);
        continue;
      }
    }
    blend_pixel(corners_of(map, plan, b), PointWeights<T, D>(plan, b), channels.count, out);
  }
}

}  // namespace stn::STN_ISA
