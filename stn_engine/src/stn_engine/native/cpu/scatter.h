// The gradient of a map by scatter, for whatever tiles do not fit: equation (4) pixel by pixel.
//
// Threads own bands of the map's outermost axis. Each walks all target pixels that can reach its band in raster
// order and adds what falls into it, so sums do not depend on how many bands there are.
#pragma once

#include "readers.h"
#include "taps.h"

namespace stn::STN_ISA {

// Sums of a band, in compute precision.
template <class T>
struct Band {
  int64_t first, last;  // along the outermost axis
  T* data;              // such that pixel offsets of the whole map may be added
  int64_t channel_stride;
};

// Products that one block contributes, point by point in raster order.
template <class T>
struct Products {
  int count = 0, points = 0;
  int64_t offset[kProducts];  // of the pixel in the band
  T weight[kProducts];
  int64_t from[kBlock];  // of G at a point, in a channel
  int end[kBlock];       // of a point's products
};

// Adds them to some channels, each in a plane of its own.
template <int Channels, class S, class T>
STN_FUNCTION void add_to_planes(const Products<T>& products, const S* grad, int64_t grad_stride, T* sums,
                                int64_t stride) {
  for (int p = 0, e = 0; p < products.points; ++p) {
    T from[Channels];
    for (int c = 0; c < Channels; ++c) from[c] = widened(grad[products.from[p] + c * grad_stride]);
    for (; e < products.end[p]; ++e) {
      T* sum = sums + products.offset[e];
      const T weight = products.weight[e];
      for (int c = 0; c < Channels; ++c) sum[c * stride] += weight * from[c];
    }
  }
}

template <class S, class T>
STN_LARGE_FUNCTION void add_products(const Products<T>& products, const S* grad, const Map& target, int64_t channels,
                                     const Band<T>& band) {
  if (band.channel_stride == 1 && target.channel_stride == 1) {
    for (int p = 0, e = 0; p < products.points; ++p) {
      const S* __restrict__ from = grad + products.from[p];
      for (; e < products.end[p]; ++e) {
        T* __restrict__ sum = band.data + products.offset[e];
        const T weight = products.weight[e];
        for (int64_t c = 0; c < channels; ++c) sum[c] += weight * widened(from[c]);
      }
    }
    return;
  }
  const int64_t step = target.channel_stride;
  int64_t c = 0;
  for (; c + kTogether <= channels; c += kTogether)
    add_to_planes<kTogether>(products, grad + c * step, step, band.data + c * band.channel_stride, band.channel_stride);
  for (; c < channels; ++c)
    add_to_planes<1>(products, grad + c * step, step, band.data + c * band.channel_stride, band.channel_stride);
}

// Strides of the pixels of a band's memory may differ from the map's own.
template <class T, int D, int K>
STN_FUNCTION bool is_in_band(const TapPlan<T, D, K>& plan, int tap, int b, const Item& item, const Band<T>& band) {
  const int64_t place = plan.offset[D - 1][digit<K>(tap, D - 1)][b];
  const int64_t stride = item.source.stride[D - 1];
  return place >= band.first * stride && place < band.last * stride;
}

template <class S, class T, int D, int K>
STN_LARGE_FUNCTION void scatter_block(const Item& item, const TapPlan<T, D, K>& plan, const Block& block,
                                      const Band<T>& band) {
  const S* grad = channel_of<const S>(item.target, block.row, 0);
  Products<T> products;
  for_pieces(item.target, block, [&](int first, int count, int64_t from) {
    for (int b = first; b < first + count; ++b, from += item.target.stride[0]) {
      if (!plan.live[b]) continue;
      if (products.count + kTaps<D, K> > kProducts) {
        add_products(products, grad, item.target, item.source.channels, band);
        products.count = products.points = 0;
      }
      for (int tap = 0; tap < kTaps<D, K>; ++tap) {
        if (!tap_inside(plan, tap, b) || !is_in_band(plan, tap, b, item, band)) continue;
        const int e = products.count++;
        products.offset[e] = tap_offset(plan, tap, b);
        products.weight[e] = tap_weight(plan, tap, b);
      }
      products.from[products.points] = from;
      products.end[products.points++] = products.count;
    }
  });
  add_products(products, grad, item.target, item.source.channels, band);
}

// Where coordinates have to be for a tap to fall into a band.
template <int D, int K>
STN_FUNCTION Box<D> band_box(const Item& item, int64_t first, int64_t last) {
  Box<D> box{};
  const double reach = K == 4 ? 2.0 : 1.0;
  const bool folds = item.sampling.padding == Padding::reflection;
  const bool clips = item.sampling.padding == Padding::border;
  for (int a = 0; a < D; ++a) {
    const int64_t low = a == D - 1 ? first : 0, high = a == D - 1 ? last : item.source.size[a];
    box.low[a] = folds || (clips && low == 0) ? -kFar : static_cast<double>(low) - reach;
    box.high[a] = folds || (clips && high == item.source.size[a]) ? kFar : static_cast<double>(high - 1) + reach;
  }
  return box;
}

// `item` has the strides of the band's memory as those of its source.
template <class S, class T, int D, int K>
STN_LARGE_FUNCTION void scatter_item(const Item& item, int64_t n, const Band<T>& band) {
  const PointSource<T, D> source(item, n);
  Readers<T, D> readers(item, source.matrix());
  readers.invert();
  for_readers(item, n, readers, band_box<D, K>(item, band.first, band.last), [&](const Block& block) {
    Points<T, D> points;
    source.fill(block, points);
    TapPlan<T, D, K> plan;
    plan_taps(item, block.count, points, plan);
    scatter_block<S>(item, plan, block, band);
    return true;
  });
}

// Visits every pixel of a band in every channel.
template <int D, class F>
STN_FUNCTION void for_band(const Map& map, int64_t first, int64_t last, F visit) {
  const int64_t y0 = D == 2 ? first : 0, y1 = D == 2 ? last : map.size[1];
  const int64_t z0 = D == 3 ? first : 0, z1 = D == 3 ? last : 1;
  const bool channels_last = map.channel_stride == 1;
  const int64_t outer = channels_last ? 1 : map.channels, inner = channels_last ? map.channels : 1;
  for (int64_t c = 0; c < outer; ++c)
    for (int64_t z = z0; z < z1; ++z)
      for (int64_t y = y0; y < y1; ++y)
        for (int64_t x = 0; x < map.size[0]; ++x)
          for (int64_t d = 0; d < inner; ++d) visit(c + d, x, y, z);
}

STN_FUNCTION int64_t offset_in(const Map& map, int64_t c, int64_t x, int64_t y, int64_t z) {
  return c * map.channel_stride + x * map.stride[0] + y * map.stride[1] + z * map.stride[2];
}

// Strides of dense memory for the band alone, in the map's own order of channels and pixels.
template <int D>
STN_FUNCTION Map dense_band(const Map& map, int64_t depth) {
  Map dense = map;
  const bool channels_last = map.channel_stride == 1;
  int64_t stride = channels_last ? map.channels : 1;
  for (int a = 0; a < D; ++a) {
    dense.stride[a] = stride;
    stride *= a == D - 1 ? depth : map.size[a];
  }
  dense.channel_stride = channels_last ? 1 : stride;
  return dense;
}

// The gradient of item n_source between two planes (rows) of its outermost axis.
template <class S, class T, int D, int K>
STN_FUNCTION void scatter_band(const Item& item, int64_t n_source, int64_t first, int64_t last) {
  const Map& to = item.by_source;
  S* const map = static_cast<S*>(to.data) + n_source * to.batch_stride;
  const Map memory = std::is_same_v<S, T> ? to : dense_band<D>(to, last - first);
  T* scratch = nullptr;
  if constexpr (!std::is_same_v<S, T>)
    scratch = new T[static_cast<size_t>(memory.channels * (last - first)) *
                    static_cast<size_t>(to.size[0] * (D == 3 ? to.size[1] : 1))];
  T* const base = std::is_same_v<S, T> ? reinterpret_cast<T*>(map) : scratch - first * memory.stride[D - 1];
  for_band<D>(memory, first, last,
              [&](int64_t c, int64_t x, int64_t y, int64_t z) { base[offset_in(memory, c, x, y, z)] = T(0); });
  Item walked = item;
  for (int a = 0; a < D; ++a) walked.source.stride[a] = memory.stride[a];
  const Band<T> band = {first, last, base, memory.channel_stride};
  const bool broadcast = item.source.batch == 1;
  for (int64_t n = broadcast ? 0 : n_source; n < (broadcast ? item.batch : n_source + 1); ++n)
    scatter_item<S, T, D, K>(walked, n, band);
  if constexpr (!std::is_same_v<S, T>) {
    for_band<D>(memory, first, last, [&](int64_t c, int64_t x, int64_t y, int64_t z) {
      map[offset_in(to, c, x, y, z)] = stored<S>(base[offset_in(memory, c, x, y, z)]);
    });
    delete[] scratch;
  }
}

}  // namespace stn::STN_ISA
