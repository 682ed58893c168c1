// G·∂V/∂(x, y, z) of a point, equations (2) and (3), summed over some channels.
#pragma once

#include "whole.cuh"

namespace stn {

// Values count from the first tap, so that a large common offset of the pixels cancels. Rows are summed once with
// weights and once with slopes, and joined along the other axes.
template <int N, class Slopes, class Read>
STN_FUNCTION void join_slopes(const Slopes& plan, Read read, const T (&grad)[N], T (&by)[D]) {
  T origin[N], value[N], slope[N], plane[N][D];
  for_taps([&](int x, int y, int z) {
    T tap[N];
    read(x, y, z, tap);
#pragma unroll
    for (int c = 0; c < N; ++c) {
      if (x + y + z == 0) origin[c] = tap[c];
      const T rise = tap[c] - origin[c];
      value[c] = fused(rise, plan.weight[0][x], x == 0 ? T(0) : value[c]);
      slope[c] = fused(rise, plan.slope[0][x], x == 0 ? T(0) : slope[c]);
      if (x < K - 1) continue;
      plane[c][0] = fused(slope[c], plan.weight[1][y], y == 0 ? T(0) : plane[c][0]);
      plane[c][1] = fused(value[c], plan.slope[1][y], y == 0 ? T(0) : plane[c][1]);
      if (D == 3) plane[c][D - 1] = fused(value[c], plan.weight[1][y], y == 0 ? T(0) : plane[c][D - 1]);
      if (y < K - 1) continue;
#pragma unroll
      for (int a = 0; a < D; ++a) {
        const T along_z = D == 2 ? T(1) : a == 2 ? plan.slope[D - 1][z] : plan.weight[D - 1][z];
        by[a] = fused(grad[c], D == 2 ? plane[c][a] : plane[c][a] * along_z, by[a]);
      }
    }
  });
}

template <int N, bool Interleaved>
STN_FUNCTION void add_slopes(const Descriptor& problem, const SlopeTapPlan& plan, const S* source, int channel,
                             const T (&grad)[N], T (&by)[D]) {
  if constexpr (kHoldsTaps) {
    T taps[kTaps][N];
    read_taps<N, Interleaved>(problem, plan, source, channel, taps);
    join_slopes(plan, reader_of(taps), grad, by);
  } else {
    T outside[N];
    fill_of(problem, channel, problem.fills != 0, outside);
    join_slopes(
        plan,
        [&](int x, int y, int z, T(&tap)[N]) {
          read_tap<N, Interleaved>(problem, plan, source, channel, outside, x, y, z, tap);
        },
        grad, by);
  }
}

// The derivative by the point of target pixel `pixel`, over the channels from `channel` to `last`.
template <int N, bool Interleaved>
STN_FUNCTION void slopes_of(const Descriptor& problem, int n, const Pixel& pixel, const T (&x)[D], int channel,
                            int last, T (&by)[D]) {
#pragma unroll
  for (int a = 0; a < D; ++a) by[a] = T(0);
  if (!all_finite(x)) return;
  const SlopeTapPlan plan(problem, x);
  const S* source = maps_of(problem.feature_map, n);
  const S* target = maps_of(problem.grad_output, n) + offset_of<D>(problem.grad_output, 0, pixel);
  for_groups<N, Interleaved>(channel, last, [&](auto count, int first) {
    constexpr int M = decltype(count)::kCount;
    T grad[M];
    load_channels<M, Interleaved>(target + first * problem.grad_output.channel_stride,
                                  problem.grad_output.channel_stride, M, grad);
    add_slopes<M, Interleaved>(problem, plan, source + first * problem.feature_map.channel_stride, first, grad, by);
  });
}

// The slopes of whole points, plane by plane.
STN_FUNCTION void add_whole_slopes(const Descriptor& problem, const WholePoint (&points)[kQuad], const S* source,
                                   const S* grads, const QuadSteps& from, T (&by)[kQuad][D]) {
  const Map& map = problem.feature_map;
  for_groups<kPlanes, false>(0, problem.channels, [&](auto count, int) {
#pragma unroll
    for (int c = 0; c < decltype(count)::kCount; ++c) {
      T taps[kQuad][kTaps][1], grad[kQuad];
      from.load(grads, grad);
#pragma unroll
      for (int p = 0; p < kQuad; ++p) read_whole<1, false>(source + points[p].first, 1, 0, map, taps[p]);
#pragma unroll
      for (int p = 0; p < kQuad; ++p) {
        const T one[1] = {grad[p]};
        join_slopes(points[p], reader_of(taps[p]), one, by[p]);
      }
      source += map.channel_stride;
      grads += problem.grad_output.channel_stride;
    }
  });
}

// Slopes of the pixels of a tile of planes, in the order of their patches.
template <class Generator>
STN_FUNCTION void find_quad_slopes(const Descriptor& problem, const Place& place, const Generator& generator,
                                   T (&slopes)[kTilePixels][D]) {
  const Quad quad(place, problem.target, generator.is_steep());
  const int first = quad.in_patches(place, problem.target), step = quad.is_row ? 1 : 1 << kPatchWidthLog;
  if (problem.feature_map.stride[0] == 1 &&
      find_quad(problem, place.n, generator, quad, true, [&](const WholePoint(&points)[kQuad]) {
        const S* source = maps_of(problem.feature_map, place.n);
        const S* grads = maps_of(problem.grad_output, place.n);
        T by[kQuad][D] = {};
        add_whole_slopes(problem, points, source, grads + offset_of<D>(problem.grad_output, 0, quad.pixel(0)),
                         QuadSteps(problem.grad_output, grads, quad.is_row), by);
#pragma unroll
        for (int p = 0; p < kQuad; ++p)
#pragma unroll
          for (int a = 0; a < D; ++a) slopes[first + p * step][a] = by[p][a];
      }))
    return;
#pragma unroll 1
  for (int p = 0; p < kQuad; ++p) {
    if (!quad.has(p, problem.target)) continue;
    T x[D], by[D];
    generator.point(problem, place.n, quad.pixel(p), x);
    slopes_of<kPlanes, false>(problem, place.n, quad.pixel(p), x, 0, problem.channels, by);
#pragma unroll
    for (int a = 0; a < D; ++a) slopes[first + p * step][a] = by[a];
  }
}

// Slopes of the units from `base` on of a tile of interleaved channels.
template <class Generator>
STN_FUNCTION void find_interleaved_slopes(const Descriptor& problem, const Place& place, const Generator& generator,
                                          int base, T (&slopes)[kTilePixels][D]) {
  constexpr int N = kGroup<true>;
  UnitWalk walk(problem.channels / N, base);
  const Inside inside(problem, true);
  const bool is_simple = !generator.divides();
  const S* source = maps_of(problem.feature_map, place.n);
  const S* grads = maps_of(problem.grad_output, place.n);
#pragma unroll 1
  for (int slot = threadIdx.x; slot < kTilePixels; slot += kThreads, walk.go_on()) {
    if (walk.pixel >= pixels_of(problem.target)) return;
    const int channel = walk.group * N;
    Pixel pixel;
    WholePoint point;
    T by[D] = {};
    if (is_simple && find_whole(problem, place, generator, inside, walk.pixel, pixel, point)) {
      T taps[kTaps][N], grad[N];
      load_channels<N, true>(grads + offset_of<D>(problem.grad_output, 0, pixel) + channel, 1, N, grad);
      read_whole<N, true>(source + (point.first + static_cast<unsigned>(channel)), problem.feature_map.stride[0], 1,
                          problem.feature_map, taps);
      join_slopes(point, reader_of(taps), grad, by);
    } else if (pixel_of(place, problem.target, walk.pixel, pixel)) {
      T x[D];
      generator.point(problem, place.n, pixel, x);
      slopes_of<N, true>(problem, place.n, pixel, x, channel, channel + N, by);
    }
#pragma unroll
    for (int a = 0; a < D; ++a) slopes[slot][a] = by[a];
  }
}

// Slopes of the pixels of a tile of volumes.
template <class Generator>
STN_FUNCTION void find_volume_slopes(const Descriptor& problem, const Place& place, const Generator& generator,
                                     T (&slopes)[kTilePixels][D]) {
#pragma unroll 1
  for (int p = threadIdx.x; p < kTilePixels; p += kThreads) {
    Pixel pixel;
    if (!pixel_of(place, problem.target, p, pixel)) continue;
    T x[D], by[D];
    generator.point(problem, place.n, pixel, x);
    slopes_of<kPlanes, false>(problem, place.n, pixel, x, 0, problem.channels, by);
#pragma unroll
    for (int a = 0; a < D; ++a) slopes[p][a] = by[a];
  }
}

}  // namespace stn
