// The nearest and bicubic samplers for sixteen points at once whose taps are all pixels of the map. The arithmetic
// is that of taps.h, which serves all other points, bit for bit.
#pragma once

#include "prefetch.h"
#include "pairs.h"
#include "taps.h"

namespace stn::STN_ISA {

// Whether sixteen points read nothing but pixels of the map, and padding leaves them where they are.
template <class T, int D, int K>
STN_FUNCTION bool taps_are_inside(const Problem& problem, const Points<T, D>& points, int b) {
  constexpr T low = K == 4 ? T(1) : T(0);
  Lanes<Mask<T>> all = Lanes<Mask<T>>::all(-1);
  for (int a = 0; a < D; ++a) {
    const T last = static_cast<T>(problem.source.size[a] - 1);
    const Lanes<T> x = load(points.at[a] + b);
    all &= (x >= Lanes<T>::all(low)) & (K == 4 ? x < Lanes<T>::all(last - T(1)) : x <= Lanes<T>::all(last));
  }
  return all_of(all);
}

// Where the first tap of sixteen points is, within a channel, and the weights of all.
template <class T, int D, int K>
struct InsideTaps {
  alignas(64) int offset[kLanes];
  int64_t stride[kMaxAxes] = {};
  Lanes<T> weight[D][K];

  STN_MEMBER InsideTaps(const Problem& problem, const Points<T, D>& points, int b) {
    Lanes<int32_t> first{};
    for (int a = 0; a < D; ++a) {
      const AxisTaps<Lanes<T>, K> taps = axis_taps<K>(load(points.at[a] + b));
      stride[a] = problem.source.stride[a];
      first += converted<int32_t>(taps.first) * static_cast<int32_t>(stride[a]);
      for (int k = 0; k < K; ++k) weight[a][k] = taps.weight[k];
    }
    store(first, offset);
  }

  // The sum over taps of value·weight, x innermost.
  template <bool Adjacent, class S>
  STN_MEMBER Lanes<T> sum(const S* channel) const {
    Lanes<T> volume{}, plane;
    for (int z = 0; z < (D == 3 ? K : 1); ++z) {
      plane = Lanes<T>{};
      for (int y = 0; y < K; ++y) plane += row<Adjacent>(channel + z * stride[2] + y * stride[1]) * weight[1][y];
      if constexpr (D == 3) volume += plane * weight[2][z];
    }
    return D == 3 ? volume : plane;
  }

 private:
  template <bool Adjacent, class S>
  STN_MEMBER Lanes<T> row(const S* at) const {
    if constexpr (K == 1) return Lanes<T>{} + load_single(at, offset) * weight[0][0];
    Lanes<T> sum{};
    for (int x = 0; x + 1 < K; x += 2) {
      const Pairs<T> pair = load_lanes<S, Adjacent>(at + x * stride[0], offset, static_cast<int>(stride[0]));
      sum = sum + pair.left * weight[0][x] + pair.right * weight[0][x + 1];
    }
    return sum;
  }
};

// V of sixteen points of a block from b on, in every channel.
template <class S, class T, int D, int K, bool Adjacent>
STN_LARGE_FUNCTION void warp_inside_taps(const Problem& problem, const S* source, const Points<T, D>& points,
                                         const Block& block, int b, int64_t ahead) {
  const InsideTaps<T, D, K> taps(problem, points, b);
  const Map& target = problem.target;
  const bool even = is_even(target, block);
  const int count = block.count - b < kLanes ? block.count - b : kLanes;
  S* channel = channel_of<S>(target, block.row, 0);
  for (int64_t c = 0; c < problem.source.channels; ++c) {
    if (ahead != 0) prefetch(source, taps.offset, kLanes, ahead);
    const Lanes<T> values = taps.template sum<Adjacent>(source);
    if (even) {
      store_lanes<S>(values, count, target.stride[0], channel + offset_of(target, block.row, block.j + b));
    } else {
      alignas(64) T numbers[kLanes];
      store(values, numbers);
      store_values<S>(numbers, target, block, b, count, channel);
    }
    source += problem.source.channel_stride;
    channel += target.channel_stride;
  }
}

// The same, whatever they read.
template <class S, class T, int D, int K>
STN_LARGE_FUNCTION void warp_edge_taps(const Problem& problem, const S* source, const Points<T, D>& points,
                                       const Block& block, int b) {
  const int count = block.count - b < kLanes ? block.count - b : kLanes;
  Points<T, D> some;
  for (int a = 0; a < D; ++a) store(load(points.at[a] + b), some.at[a]);
  TapPlan<T, D, K> plan;
  plan_taps(problem, count, some, plan);
  for (int64_t c = 0; c < problem.source.channels; ++c) {
    T values[kLanes];
    read_taps<S, T, D, K>(source + c * problem.source.channel_stride, plan, count, constants_of<T>(problem.sampling, c),
                          values);
    store_values<S>(values, problem.target, block, b, count, channel_of<S>(problem.target, block.row, c));
  }
}

}  // namespace stn::STN_ISA
