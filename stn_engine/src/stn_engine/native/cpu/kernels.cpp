// All kernels, for the instruction set and the storage type that the build names: compiled once for each pair.
#include "kernels.h"

#include "parameter_runs.h"
#include "scatter.h"
#include "tiles.h"

namespace stn::STN_ISA {

template <class F>
STN_FUNCTION auto with_taps(const Problem& problem, F visit) {
  switch (problem.sampling.interpolation) {
    case Interpolation::nearest: return visit(std::integral_constant<int, 1>());
    case Interpolation::bilinear: return visit(std::integral_constant<int, 2>());
    default: return visit(std::integral_constant<int, 4>());
  }
}

// The last one of these has no room for a tile.
template <int D, int K>
constexpr bool kFitsTiles = D == 2 || K < 4;

template <class S, int D>
int64_t tiles(const Problem& problem) {
  if (!is_tileable(problem) || is_channels_last_gradient(problem)) return 0;
  return with_taps(problem, [&](auto k) -> int64_t {
    if constexpr (kFitsTiles<D, k()>) return tiling_of<Compute<S>, D, k()>(problem).units();
    else return 0;
  });
}

template <class S, int D>
void tile(const Problem& problem, int64_t n, int64_t unit) {
  with_taps(problem, [&](auto k) {
    if constexpr (kFitsTiles<D, k()>) {
      const Tiling tiling = tiling_of<Compute<S>, D, k()>(problem);
      Tile<S, Compute<S>, D, k()>(problem, tiling, unit).run(n);
    }
  });
}

template <class S, int D>
void band(const Problem& problem, int64_t n, int64_t first, int64_t last) {
  with_taps(problem, [&](auto k) { scatter_band<S, Compute<S>, D, k()>(problem, n, first, last); });
}

// Maps of integers have no gradients.
template <class S, int D>
constexpr Kernels kernels_of() {
  if constexpr (std::is_integral_v<S>) return {warp_run<S, D>, nullptr, nullptr, nullptr, nullptr, nullptr};
  else return {warp_run<S, D>, parameter_run<S, D>, field_run<S, D>, tiles<S, D>, tile<S, D>, band<S, D>};
}

using float32 = float;
using float64 = double;
using float16 = Float16;
using bfloat16 = BFloat16;
using uint8 = uint8_t;
using uint16 = uint16_t;
using int16 = int16_t;
using int32 = int32_t;
using int64 = int64_t;

#define STN_JOINED(left, right) left##right
#define STN_NAME(storage) STN_JOINED(kernels_, storage)

const Kernels& STN_NAME(STN_STORAGE)(int axes) {
  static constexpr Kernels images = kernels_of<STN_STORAGE, 2>(), volumes = kernels_of<STN_STORAGE, 3>();
  return axes == 3 ? volumes : images;
}

}  // namespace stn::STN_ISA
