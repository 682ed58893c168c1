// The forward kernels, equations (1) and (5) in one step.
#include "interior.cuh"

namespace stn {

// Joins taps by their weights: rows along x, planes along y, volumes along z.
template <int N, class Weights, class Read>
STN_FUNCTION void join_taps(const Weights& plan, Read read, T (&values)[N]) {
  T row[N], plane[N];
  for_taps([&](int x, int y, int z) {
    T tap[N];
    read(x, y, z, tap);
#pragma unroll
    for (int c = 0; c < N; ++c) {
      row[c] = x == 0 ? tap[c] * plan.weight[0][x] : fused(tap[c], plan.weight[0][x], row[c]);
      if (x < K - 1) continue;
      plane[c] = y == 0 ? row[c] * plan.weight[1][y] : fused(row[c], plan.weight[1][y], plane[c]);
      if (y < K - 1) continue;
      if (D == 2) values[c] = plane[c];
      else values[c] = z == 0 ? plane[c] * plan.weight[D - 1][z] : fused(plane[c], plan.weight[D - 1][z], values[c]);
    }
  });
}

template <int N, bool Interleaved>
STN_FUNCTION void sample(const Descriptor& problem, const TapPlan& plan, const S* source, int channel, T (&values)[N]) {
  if constexpr (kHoldsTaps) {
    T taps[kTaps][N];
    read_taps<N, Interleaved>(problem, plan, source, channel, taps);
    join_taps(
        plan,
        [&](int x, int y, int z, T(&tap)[N]) {
#pragma unroll
          for (int c = 0; c < N; ++c) tap[c] = taps[(z * K + y) * K + x][c];
        },
        values);
  } else {
    T outside[N];
    fill_of(problem, channel, problem.fills != 0, outside);
    join_taps(
        plan,
        [&](int x, int y, int z, T(&tap)[N]) {
          read_tap<N, Interleaved>(problem, plan, source, channel, outside, x, y, z, tap);
        },
        values);
  }
}

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

template <int N, bool Interleaved, class Units>
STN_FUNCTION void warp_interior(const Descriptor& problem, const Place& place, const Rays& rays, const Units& units,
                                const S* source, S* target) {
  constexpr int Pixels = kAtOnce<Interleaved>;
  const Affinity affinity(rays);
  const bool by_rows = affinity.is_level();
  const int count = units.count();
#pragma unroll 1
  for (int unit = threadIdx.x; unit < count; unit += Pixels * kThreads) {
    InteriorTaps taps[Pixels];
    int to[Pixels];
#pragma unroll
    for (int p = 0; p < Pixels; ++p) {
      const int mine = smaller(unit + p * kThreads, count - 1);  // the last pixel may be done twice
      int x, y;
      place_in_tile(problem.target, units.pixel(mine), by_rows, x, y);
      x += place.x;
      y += place.row;
      taps[p].weigh_at(affinity, problem.feature_map, static_cast<T>(x), static_cast<T>(y), false);
      to[p] = x * problem.output.stride[0] + y * problem.output.stride[1];
      if (!Interleaved) continue;
      taps[p].first += units.first_channel(mine);
      to[p] += units.first_channel(mine);
    }
    for_groups<N, Interleaved>(0, Interleaved ? N : problem.channels, [&](auto channels, int first) {
      constexpr int M = decltype(channels)::kCount;
      const S* from = source + first * problem.feature_map.channel_stride;
      T read[Pixels][K * K][M];
#pragma unroll
      for (int p = 0; p < Pixels; ++p)
        read_interior<M, Interleaved>(from + taps[p].first, problem.feature_map, read[p]);
      S* into = target + first * problem.output.channel_stride;
#pragma unroll
      for (int p = 0; p < Pixels; ++p) {
        T values[M];
        join_taps(taps[p], reader_of(read[p]), values);
        store_channels<M, Interleaved>(into + to[p], problem.output.channel_stride, M, values);
      }
    });
  }
}

template <bool Matrix, bool Interleaved>
STN_FUNCTION void warp_tiles(const Launch& launch) {
  constexpr int N = kGroup<Interleaved>;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const Generator<Matrix> generator(problem, place.n);
    const Units<N, Interleaved> units(problem, problem.target);
    const S* source = maps_of(problem.feature_map, place.n);
    S* target = maps_of(problem.output, place.n);
    if constexpr (Matrix && kHasInterior) {
      if (is_interior<Interleaved>(problem, problem.target, place, generator.rays)) {
        warp_interior<N, Interleaved>(problem, place, generator.rays, units, source, target);
        continue;
      }
    }
    for (int unit = threadIdx.x; unit < units.count(); unit += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, problem.target, units.pixel(unit), pixel)) continue;
      T x[D];
      generator.point(problem, place.n, pixel, x);
      warp_pixel<N, Interleaved>(problem, source, target, pixel, x, units.first_channel(unit),
                                 units.last_channel(unit, problem));
    }
  }
}

}  // namespace stn

STN_KERNEL(stn_warp_matrix_planes, stn::kBlocks, stn::warp_tiles<true, false>)
STN_KERNEL(stn_warp_matrix_interleaved, stn::kVectorBlocks, stn::warp_tiles<true, true>)
STN_KERNEL(stn_warp_field_planes, stn::kVectorBlocks, stn::warp_tiles<false, false>)
STN_KERNEL(stn_warp_field_interleaved, stn::kVectorBlocks, stn::warp_tiles<false, true>)
