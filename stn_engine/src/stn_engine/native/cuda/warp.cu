// The forward kernels, equations (1) and (5) in one step.
#include "channels.cuh"

namespace stn {

// Rows along x, planes along y, volumes along z.
template <int N, class Read>
STN_FUNCTION void join_taps(const Plan& plan, Read read, T (&values)[N]) {
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
STN_FUNCTION void sample(const Item& item, const Plan& plan, const S* source, int channel, T (&values)[N]) {
  if constexpr (kHoldsTaps) {
    T taps[kTaps][N];
    read_taps<N, Interleaved>(item, plan, source, channel, taps);
    join_taps(
        plan,
        [&](int x, int y, int z, T(&tap)[N]) {
#pragma unroll
          for (int c = 0; c < N; ++c) tap[c] = taps[(z * K + y) * K + x][c];
        },
        values);
  } else {
    T outside[N];
    fill_of(item, channel, item.fills != 0, outside);
    join_taps(
        plan,
        [&](int x, int y, int z, T(&tap)[N]) {
          read_tap<N, Interleaved>(item, plan, source, channel, outside, x, y, z, tap);
        },
        values);
  }
}

template <int N, bool Interleaved>
STN_FUNCTION void warp_pixel(const Item& item, const S* source, S* target, const Pixel& pixel, const T (&x)[D],
                             int channel, int last) {
  const bool finite = all_finite(x);
  const Plan plan(item, item.source, x);
  target += offset_of<D>(item.target, 0, pixel);
  for_chunks<N, Interleaved>(channel, last, [&](auto count, int first) {
    constexpr int M = decltype(count)::kCount;
    T values[M];
    if (finite) sample<M, Interleaved>(item, plan, source + first * item.source.channel_stride, first, values);
    else fill_of(item, first, true, values);
    store_channels<M, Interleaved>(target + first * item.target.channel_stride, item.target.channel_stride, M, values);
  });
}

template <bool Matrix, bool Interleaved>
STN_FUNCTION void warp_tiles(const Launch& launch) {
  constexpr int N = kChunk<Interleaved>;
  for (int64 tile = blockIdx.x; tile < launch.tiles; tile += gridDim.x) {
    int64 first;
    const Item& item = item_of(launch, tile, first);
    const Place place = place_of(item.to, tile - first);
    const Generator<Matrix> generator(item, place.n);
    const Units<N, Interleaved> units(item, item.to);
    const S* source = maps_of(item.source, place.n);
    S* target = maps_of(item.target, place.n);
    for (int unit = threadIdx.x; unit < units.count(); unit += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, item.to, units.pixel(unit), pixel)) continue;
      T x[D];
      generator.point(item, place.n, pixel, x);
      warp_pixel<N, Interleaved>(item, source, target, pixel, x, units.first_channel(unit),
                                 units.last_channel(unit, item));
    }
  }
}

}  // namespace stn

STN_KERNEL(stn_warp_matrix_planes, stn::kBlocks, stn::warp_tiles<true, false>)
STN_KERNEL(stn_warp_matrix_interleaved, stn::kVectorBlocks, stn::warp_tiles<true, true>)
STN_KERNEL(stn_warp_field_planes, stn::kVectorBlocks, stn::warp_tiles<false, false>)
STN_KERNEL(stn_warp_field_interleaved, stn::kVectorBlocks, stn::warp_tiles<false, true>)
