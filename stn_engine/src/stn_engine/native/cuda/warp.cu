// The forward kernels, equations (1) and (5) in one step.
#include "channels.cuh"

namespace stn {

template <int N, bool Interleaved>
STN_FUNCTION void sample(const Item& item, const Plan& plan, const S* source, int channel, T (&values)[N]) {
  T outside[N], row[N], plane[N];
  fill_of(item, channel, item.fills != 0, outside);
  for_taps([&](int x, int y, int z) {
    T tap[N];
    read_tap<N, Interleaved>(item, plan, source, channel, outside, x, y, z, tap);
#pragma unroll
    for (int c = 0; c < N; ++c) {
      row[c] = fused(tap[c], plan.weight[0][x], x == 0 ? T(0) : row[c]);
      if (x == K - 1) plane[c] = fused(row[c], plan.weight[1][y], y == 0 ? T(0) : plane[c]);
      if (x < K - 1 || y < K - 1) continue;
      values[c] = D == 3 ? fused(plane[c], plan.weight[D - 1][z], z == 0 ? T(0) : values[c]) : plane[c];
    }
  });
}

template <int N, bool Interleaved>
STN_FUNCTION void warp_pixel(const Item& item, int n, const Pixel& pixel, const T (&x)[D], int channel, int last) {
  const bool finite = all_finite(x);
  const Plan plan(item, item.source, x);
  const S* source = maps_of(item.source, n);
  S* target = reinterpret_cast<S*>(item.target.data) + offset_of<D>(item.target, n, pixel);
  for (; channel < last; channel += N) {
    T values[N];
    if (finite) sample<N, Interleaved>(item, plan, source + channel * item.source.channel_stride, channel, values);
    else fill_of(item, channel, true, values);
    store_channels<N, Interleaved>(target + channel * item.target.channel_stride, item.target.channel_stride,
                                   item.channels - channel, values);
  }
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
    for (int unit = threadIdx.x; unit < units.count(); unit += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, item.to, units.pixel(unit), pixel)) continue;
      T x[D];
      generator.point(item, place.n, pixel, x);
      warp_pixel<N, Interleaved>(item, place.n, pixel, x, units.first_channel(unit), units.last_channel(unit, item));
    }
    __syncthreads();
  }
}

}  // namespace stn

STN_KERNEL(stn_warp_matrix_planes, stn::kBlocks, stn::warp_tiles<true, false>)
STN_KERNEL(stn_warp_matrix_interleaved, stn::kBlocks, stn::warp_tiles<true, true>)
STN_KERNEL(stn_warp_field_planes, stn::kFieldBlocks, stn::warp_tiles<false, false>)
STN_KERNEL(stn_warp_field_interleaved, stn::kFieldBlocks, stn::warp_tiles<false, true>)
