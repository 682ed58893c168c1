// The forward kernels, equations (1) and (5) in one step.
#include "whole.cuh"

namespace stn {

template <int N, bool Interleaved>
STN_FUNCTION void warp_pixel(const Descriptor& problem, const S* source, S* target, const Pixel& pixel, const T (&x)[D],
                             int channel, int last) {
  const bool finite = all_finite(x);
  const TapPlan plan(problem, problem.feature_map, x);
  target += offset_of<D>(problem.output, 0, pixel);
  for_groups<N, Interleaved>(channel, last, [&](auto count, int first) {
    constexpr int M = decltype(count)::kCount;
    T values[M];
    if (finite)
      sample<M, Interleaved>(problem, plan, source + first * problem.feature_map.channel_stride, first, values);
    else fill_of(problem, first, true, values);
    store_channels<M, Interleaved>(target + first * problem.output.channel_stride, problem.output.channel_stride, M,
                                   values);
  });
}

// Joins the taps of whole points, some planes at a time: all taps of a pair of pixels are under way before the first is
// used.
STN_FUNCTION void warp_whole(const Descriptor& problem, const WholePoint (&points)[kQuad], const S* source, S* target,
                             const QuadSteps& to) {
  const Map& map = problem.feature_map;
  for_groups<kPlanes, false>(0, problem.channels, [&](auto count, int) {
    constexpr int M = decltype(count)::kCount;
    T values[M][kQuad];
#pragma unroll
    for (int first = 0; first < kQuad; first += kPair) {
      T taps[kPair][M][kTaps][1];
#pragma unroll
      for (int k = 0; k < kPair; ++k) {
        const S* from = source + points[first + k].first;
#pragma unroll
        for (int c = 0; c < M; ++c, from += map.channel_stride) read_whole<1, false>(from, 1, 0, map, taps[k][c]);
      }
#pragma unroll
      for (int k = 0; k < kPair; ++k)
#pragma unroll
        for (int c = 0; c < M; ++c) {
          T value[1];
          join_taps(points[first + k], reader_of(taps[k][c]), value);
          values[c][first + k] = value[0];
        }
    }
#pragma unroll
    for (int c = 0; c < M; ++c, target += problem.output.channel_stride) to.store(target, values[c]);
    source += M * map.channel_stride;
  });
}

// The same where the channels of a pixel lie side by side, but not in whole vectors.
STN_FUNCTION void warp_packed(const Descriptor& problem, const WholePoint (&points)[kQuad], const S* source, S* target,
                              int step) {
  const Map& map = problem.feature_map;
  for_groups<K == 4 ? 1 : 3, false>(0, problem.channels, [&](auto count, int first) {
    constexpr int M = decltype(count)::kCount;
#pragma unroll
    for (int p = 0; p < kQuad; ++p) {
      T taps[kTaps][M], values[M];
      read_whole<M, false>(source + first + points[p].first, map.stride[0], 1, map, taps);
      join_taps(points[p], reader_of(taps), values);
      store_channels<M, false>(target + first + p * step, 1, M, values);
    }
  });
}

// Two pixels of a quad, with taps beyond the border of the map, or none of the target.
template <class Generator>
STN_FUNCTION void warp_edges(const Descriptor& problem, const Place& place, const Generator& generator,
                             const Quad& quad, int p, const S* source, S* target) {
  EdgePoint points[kPair];
  find_edges(problem, place.n, generator, quad, p, points);
  target += offset_of<D>(problem.output, 0, quad.pixel(p));
  const int step = problem.output.stride[quad.is_row ? 0 : 1];
#pragma unroll 1
  for (int channel = 0; channel < problem.channels; ++channel) {
    T taps[kPair][kTaps][1], fill[1];
    fill_of(problem, channel, true, fill);
    const T outside = problem.fills != 0 ? fill[0] : T(0);
#pragma unroll
    for (int k = 0; k < kPair; ++k) points[k].read(source, problem.feature_map, outside, taps[k]);
#pragma unroll
    for (int k = 0; k < kPair; ++k) {
      T value[1];
      join_taps(points[k], reader_of(taps[k]), value);
      if (quad.has(p + k, problem.target))
        round_to(points[k].finite ? value[0] : fill[0], in_device_memory(target)[k * step]);
    }
    source += problem.feature_map.channel_stride;
    target += problem.output.channel_stride;
  }
}

// Taps come by the first-level cache: bringing the box of the source that a tile reads into shared memory first was
// measured on an H200 and took longer at every angle but multiples of 90 degrees (`tests/bench/README.md`).
template <class Generator>
STN_FUNCTION void warp_quads(const Descriptor& problem, const Place& place, const Generator& generator, const S* source,
                             S* target) {
  const Quad quad(place, problem.target, generator.is_steep());
  const bool are_planes = problem.feature_map.stride[0] == 1;
  const bool are_packed = problem.feature_map.channel_stride == 1 && problem.output.channel_stride == 1;
  if ((are_planes || are_packed) &&
      find_quad(problem, place.n, generator, quad, false, [&](const WholePoint(&points)[kQuad]) {
        const QuadSteps to(problem.output, target, quad.is_row);
        S* first = target + offset_of<D>(problem.output, 0, quad.pixel(0));
        if (are_planes) warp_whole(problem, points, source, first, to);
        else warp_packed(problem, points, source, first, to.step);
      }))
    return;
  if constexpr (kHasEdge) {
    if (has_edges(problem, generator)) {
#pragma unroll 1
      for (int p = 0; p < kQuad; p += kPair) warp_edges(problem, place, generator, quad, p, source, target);
      return;
    }
  }
#pragma unroll 1
  for (int p = 0; p < kQuad; ++p) {
    if (!quad.has(p, problem.target)) continue;
    const Pixel pixel = quad.pixel(p);
    T x[D];
    generator.point(problem, place.n, pixel, x);
    warp_pixel<kPlanes, false>(problem, source, target, pixel, x, 0, problem.channels);
  }
}

template <class Generator>
STN_FUNCTION void warp_interleaved(const Descriptor& problem, const Place& place, const Generator& generator,
                                   const S* source, S* target) {
  constexpr int N = kGroup<true>;
  const int pixels = pixels_of(problem.target);
  const bool is_simple = !generator.divides();
  const Inside inside(problem, false);
  UnitWalk walk(problem.channels / N);
#pragma unroll 1
  while (walk.pixel < pixels) {
    int numbers[kAtOnce], channels[kAtOnce];
    Pixel at[kAtOnce];
    WholePoint points[kAtOnce];
    bool are_whole = is_simple;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k, walk.go_on()) {
      numbers[k] = walk.pixel;
      channels[k] = walk.group * N;
      are_whole = are_whole && walk.pixel < pixels &&
                  find_whole(problem, place, generator, inside, walk.pixel, at[k], points[k]);
    }
    if (are_whole) {
      T taps[kAtOnce][kTaps][N];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        read_whole<N, true>(source + (points[k].first + static_cast<unsigned>(channels[k])),
                            problem.feature_map.stride[0], 1, problem.feature_map, taps[k]);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        T values[N];
        join_taps(points[k], reader_of(taps[k]), values);
        store_channels<N, true>(target + offset_of<D>(problem.output, 0, at[k]) + channels[k], 1, N, values);
      }
      continue;
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (numbers[k] >= pixels || !pixel_of(place, problem.target, numbers[k], at[k])) continue;
      T x[D];
      generator.point(problem, place.n, at[k], x);
      warp_pixel<N, true>(problem, source, target, at[k], x, channels[k], channels[k] + N);
    }
  }
}

// Volumes, unit by unit.
template <bool Interleaved, class Generator>
STN_FUNCTION void warp_units(const Descriptor& problem, const Place& place, const Generator& generator, const S* source,
                             S* target) {
  constexpr int N = kGroup<Interleaved>;
  const Units<N, Interleaved> units(problem, problem.target);
  for (int unit = threadIdx.x; unit < units.count(); unit += kThreads) {
    Pixel pixel;
    if (!pixel_of(place, problem.target, units.pixel(unit), pixel)) continue;
    T x[D];
    generator.point(problem, place.n, pixel, x);
    warp_pixel<N, Interleaved>(problem, source, target, pixel, x, units.first_channel(unit),
                               units.last_channel(unit, problem));
  }
}

template <bool Matrix, bool Interleaved>
STN_FUNCTION void warp_tiles(const Launch& launch) {
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const Generator<Matrix> generator(problem, place.n);
    const S* source = maps_of(problem.feature_map, place.n);
    S* target = maps_of(problem.output, place.n);
    if constexpr (kHasWhole && Interleaved) warp_interleaved(problem, place, generator, source, target);
    else if constexpr (kHasWhole) warp_quads(problem, place, generator, source, target);
    else warp_units<Interleaved>(problem, place, generator, source, target);
  }
}

}  // namespace stn

STN_KERNEL(stn_warp_matrix_planes, stn::kBlocks, stn::warp_tiles<true, false>)
STN_KERNEL(stn_warp_matrix_interleaved, stn::kVectorBlocks, stn::warp_tiles<true, true>)
STN_KERNEL(stn_warp_field_planes, stn::kFieldBlocks, stn::warp_tiles<false, false>)
STN_KERNEL(stn_warp_field_interleaved, stn::kFieldBlocks, stn::warp_tiles<false, true>)
