// What an item is compared by before its gradient is made, or where none is asked for.
#include "comparisons.cuh"

namespace stn {

// The moments of all pixels of a tile.
STN_FUNCTION void moment_tiles(const Launch& launch) {
  __shared__ WarpSums warps;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const AnyGenerator generator(problem, place.n);
    const S* source = maps_of(problem.feature_map, place.n);
    double sums[kMoments] = {};
#pragma unroll 1
    for (int p = threadIdx.x; p < pixels_of(problem.target); p += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, problem.target, p, pixel)) continue;
      T x[D];
      generator.point(problem, place.n, pixel, x);
      const T w = weight_of(problem, place.n, pixel, x);
      if (w == T(0)) continue;
      sums[kWeight] += static_cast<double>(w);
      const bool finite = all_finite(x);
      const TapPlan plan(problem, problem.feature_map, x);
      const S* fixed = fixed_of(problem, place.n, pixel);
#pragma unroll 1
      for (int c = 0; c < problem.channels; ++c) {
        T value[1] = {T(0)};
        if (finite) sample<1, false>(problem, plan, source + c * problem.feature_map.channel_stride, c, value);
        else value[0] = fill_value(problem, c);
        add_moments(problem, w, value[0], widened(fetched(fixed + c * problem.fixed.channel_stride)), sums);
      }
    }
#pragma unroll
    for (int m = 0; m < kMoments; ++m) put_warp_sum(sums[m], true, warps[threadIdx.x / kWarp][m]);
    put_terms(problem, loop.tile_of_problem(), 0, kMoments, warps);
  }
}

}  // namespace stn

STN_KERNEL(stn_moments, stn::kMomentBlocks, stn::moment_tiles)
