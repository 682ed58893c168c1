// All kernels, for the instruction set that the build names: compiled once for each.
#include "kernels.h"

#include "parameter_rows.h"
#include "scatter.h"
#include "tiles.h"

namespace stn::STN_ISA {

template <class F>
STN_FUNCTION auto with_taps(const Item& item, F visit) {
  switch (item.sampling.interpolation) {
    case Interpolation::nearest: return visit(std::integral_constant<int, 1>());
    case Interpolation::bilinear: return visit(std::integral_constant<int, 2>());
    default: return visit(std::integral_constant<int, 4>());
  }
}

// The last one of these has no room for a tile.
template <int D, int K>
constexpr bool kFitsTiles = D == 2 || K < 4;

template <class S, int D>
int64_t tiles(const Item& item) {
  if (!is_tileable(item) || is_channels_last_gradient(item)) return 0;
  return with_taps(item, [&](auto k) -> int64_t {
    if constexpr (kFitsTiles<D, k()>) return tiling_of<Compute<S>, D, k()>(item).units();
    else return 0;
  });
}

template <class S, int D>
void tile(const Item& item, int64_t n, int64_t unit) {
  with_taps(item, [&](auto k) {
    if constexpr (kFitsTiles<D, k()>) {
      const Tiling tiling = tiling_of<Compute<S>, D, k()>(item);
      Tile<S, Compute<S>, D, k()>(item, tiling, unit).run(n);
    }
  });
}

template <class S, int D>
void band(const Item& item, int64_t n, int64_t first, int64_t last) {
  with_taps(item, [&](auto k) { scatter_band<S, Compute<S>, D, k()>(item, n, first, last); });
}

template <class S, int D>
constexpr Kernels kKernels = {warp_rows<S, D>, parameter_rows<S, D>, field_rows<S, D>,
                              tiles<S, D>,     tile<S, D>,           band<S, D>};

template <int D>
const Kernels& kernels_of(Storage storage) {
  switch (storage) {
    case Storage::float64: return kKernels<double, D>;
    case Storage::float16: return kKernels<Float16, D>;
    case Storage::bfloat16: return kKernels<BFloat16, D>;
    case Storage::uint8: return kKernels<uint8_t, D>;
    default: return kKernels<float, D>;
  }
}

const Kernels& kernels(Storage storage, int axes) {
  return axes == 3 ? kernels_of<3>(storage) : kernels_of<2>(storage);
}

}  // namespace stn::STN_ISA
