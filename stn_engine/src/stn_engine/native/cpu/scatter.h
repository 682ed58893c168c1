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

// The same to pixels whose channels stand side by side, sixteen of them in a vector.
template <class S, class T>
STN_FUNCTION void add_to_pixels(const Products<T>& products, const S* grad, int64_t grad_stride, T* sums) {
  alignas(64) T from[kBlock][kLanes];
  for (int c = 0; c < kLanes; ++c, grad += grad_stride)
    for (int p = 0; p < products.points; ++p) from[p][c] = widened(grad[products.from[p]]);
  for (int p = 0, e = 0; p < products.points; ++p) {
    const Lanes<T> grads = load(from[p]);
    for (; e < products.end[p]; ++e) {
      T* sum = sums + products.offset[e];
      store(load(sum) + grads * products.weight[e], sum);
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
  if (band.channel_stride == 1)
    for (; c + kLanes <= channels; c += kLanes) add_to_pixels(products, grad + c * step, step, band.data + c);
  for (; c + kTogether <= channels; c += kTogether)
    add_to_planes<kTogether>(products, grad + c * step, step, band.data + c * band.channel_stride, band.channel_stride);
  for (; c < channels; ++c)
    add_to_planes<1>(products, grad + c * step, step, band.data + c * band.channel_stride, band.channel_stride);
}

// Strides of the pixels of a band's memory may differ from the map's own.
template <class T, int D, int K>
STN_FUNCTION bool is_in_band(const TapPlan<T, D, K>& plan, int tap, int b, const Problem& problem,
                             const Band<T>& band) {
  const int64_t place = plan.offset[D - 1][digit<K>(tap, D - 1)][b];
  const int64_t stride = problem.source.stride[D - 1];
  return place >= band.first * stride && place < band.last * stride;
}

// What a block of which every tap is in the band adds to some planes, from channel c on.
template <int Channels, class S, class T, int D, int K>
STN_FUNCTION void scatter_whole_block(const Problem& problem, const TapPlan<T, D, K>& plan, const Block& block,
                                      int64_t c, const Band<T>& band) {
  const int64_t step = problem.target.stride[0], grad_stride = problem.target.channel_stride;
  const S* grads = channel_of<const S>(problem.target, block.row, c);
  T* sums = band.data + c * band.channel_stride;
  for_pieces(problem.target, block, [&](int first, int count, int64_t from) {
    for (int b = first; b < first + count; ++b, from += step) {
      T grad[Channels];
      for (int d = 0; d < Channels; ++d) grad[d] = widened(grads[from + d * grad_stride]);
      for (int tap = 0; tap < kTaps<D, K>; ++tap) {
        T* sum = sums + tap_offset(plan, tap, b);
        const T weight = tap_weight(plan, tap, b);
        for (int d = 0; d < Channels; ++d) sum[d * band.channel_stride] += weight * grad[d];
      }
    }
  });
}

// Whether neighbouring rows meet in the same few sets of the first cache: those of several planes would then drive each
// other out of it.
template <class T>
STN_FUNCTION bool has_colliding_rows(const Map& map) {
  return map.stride[1] * static_cast<int64_t>(sizeof(T)) % kColliding == 0;
}

template <class S, class T, int D, int K>
STN_LARGE_FUNCTION void scatter_whole_block(const Problem& problem, const TapPlan<T, D, K>& plan, const Block& block,
                                            const Band<T>& band) {
  const int64_t channels = problem.source.channels;
  const bool together = !has_colliding_rows<T>(problem.source);
  if (channels == 2 && together) return scatter_whole_block<2, S>(problem, plan, block, 0, band);
  if (channels == 3 && together) return scatter_whole_block<3, S>(problem, plan, block, 0, band);
  for (int64_t c = 0; c < channels; ++c) scatter_whole_block<1, S>(problem, plan, block, c, band);
}

template <class S, class T, int D, int K>
STN_LARGE_FUNCTION void scatter_block(const Problem& problem, const TapPlan<T, D, K>& plan, const Block& block,
                                      const Band<T>& band) {
  const S* grad = channel_of<const S>(problem.target, block.row, 0);
  const bool is_covered = band.first == 0 && band.last == problem.source.size[D - 1];
  if (K == 2 && plan.whole && is_covered && problem.source.channels < kTogether)
    return scatter_whole_block<S>(problem, plan, block, band);
  Products<T> products;
  for_pieces(problem.target, block, [&](int first, int count, int64_t from) {
    for (int b = first; b < first + count; ++b, from += problem.target.stride[0]) {
      if (!plan.live[b]) continue;
      if (products.count + kTaps<D, K> > kProducts) {
        add_products(products, grad, problem.target, problem.source.channels, band);
        products.count = products.points = 0;
      }
      for (int tap = 0; tap < kTaps<D, K>; ++tap) {
        if (!tap_inside(plan, tap, b) || !is_in_band(plan, tap, b, problem, band)) continue;
        const int e = products.count++;
        products.offset[e] = tap_offset(plan, tap, b);
        products.weight[e] = tap_weight(plan, tap, b);
      }
      products.from[products.points] = from;
      products.end[products.points++] = products.count;
    }
  });
  add_products(products, grad, problem.target, problem.source.channels, band);
}

// Where coordinates have to be for a tap to fall into a band.
template <int D, int K>
STN_FUNCTION Box<D> band_box(const Problem& problem, int64_t first, int64_t last) {
  Box<D> box{};
  const double reach = K == 4 ? 2.0 : 1.0;
  const bool folds = problem.sampling.padding == Padding::reflection;
  const bool clips = problem.sampling.padding == Padding::border;
  for (int a = 0; a < D; ++a) {
    const int64_t low = a == D - 1 ? first : 0, high = a == D - 1 ? last : problem.source.size[a];
    box.low[a] = folds || (clips && low == 0) ? -kFar : static_cast<double>(low) - reach;
    box.high[a] = folds || (clips && high == problem.source.size[a]) ? kFar : static_cast<double>(high - 1) + reach;
  }
  return box;
}

// `problem` has the strides of the band's memory as those of its source.
template <class S, class T, int D, int K>
STN_LARGE_FUNCTION void scatter_item(const Problem& problem, int64_t n, const Band<T>& band) {
  const PointSource<T, D> source(problem, n);
  Readers<T, D> readers(problem, source.matrix());
  readers.invert();
  for_readers(problem, n, readers, band_box<D, K>(problem, band.first, band.last), [&](const Block& block) {
    Points<T, D> points;
    source.fill(block, points);
    TapPlan<T, D, K> plan;
    plan_taps(problem, block.count, points, plan);
    scatter_block<S>(problem, plan, block, band);
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

// Adds what all items of the batch that read item n_source have for a band.
template <class S, class T, int D, int K>
STN_FUNCTION void scatter_items(const Problem& problem, int64_t n_source, const Map& memory, const Band<T>& band) {
  Problem walked = problem;
  walked.source.channels = memory.channels;
  for (int a = 0; a < D; ++a) walked.source.stride[a] = memory.stride[a];
  const bool broadcast = problem.source.batch == 1;
  for (int64_t n = broadcast ? 0 : n_source; n < (broadcast ? problem.batch : n_source + 1); ++n)
    scatter_item<S, T, D, K>(walked, n, band);
}

// Channels of a band that fit on the stack side by side, whole vectors of them; 0 where planes are the better place for
// sums: there are few channels, or so few points that to clear and to turn the pixels takes longer than to add to them.
template <class T, int D, int K>
STN_FUNCTION int64_t channels_on_stack(const Problem& problem, int64_t pixels) {
  const Map& to = problem.grad_feature_map;
  if (to.channel_stride == 1 || to.channels < kLanes || problem.pixels() * kTaps<D, K> < pixels / 2) return 0;
  const int64_t fitting = kScatterBytes / static_cast<int64_t>(sizeof(T)) / pixels;
  return (fitting < to.channels ? fitting : to.channels) / kLanes * kLanes;
}

// Writes a row of pixels, whose `channels` stand side by side, into planes: a square at a time, so that every line of
// either memory is met once.
template <class S, class T>
STN_FUNCTION void turn_row(const T* sums, int64_t channels, int64_t width, S* planes, int64_t stride, int64_t plane) {
  alignas(64) T square[kLanes][kLanes];
  for (int64_t x = 0; x < width; x += kLanes) {
    const int count = static_cast<int>(width - x < kLanes ? width - x : kLanes);
    for (int64_t c = 0; c < channels; c += kLanes) {
      for (int b = 0; b < count; ++b)
        for (int l = 0; l < kLanes; ++l) square[l][b] = sums[(x + b) * channels + c + l];
      for (int l = 0; l < kLanes; ++l)
        store_numbers<S>(square[l], count, stride, planes + (c + l) * plane + x * stride);
    }
  }
}

// The gradient of a band of planes, the first of `channels` of them after another: a point then adds to as many lines
// of the cache as it has taps, not to as many for every channel. Returns where the channels that are left begin.
template <class S, class T, int D, int K>
STN_LARGE_FUNCTION int64_t scatter_on_stack(const Problem& problem, int64_t n_source, int64_t first, int64_t last,
                                            int64_t channels) {
  alignas(64) T sums[kScatterBytes / sizeof(T)];
  const Map& to = problem.grad_feature_map;
  Map memory = to;
  memory.channels = channels;
  memory.channel_stride = 1;
  memory = dense_band<D>(memory, last - first);
  const int64_t rows = D == 3 ? to.size[1] : last - first, planes = D == 3 ? last - first : 1;
  int64_t c = 0;
  for (; c + channels <= to.channels; c += channels) {
    std::memset(sums, 0, sizeof(T) * static_cast<size_t>(channels * to.size[0] * rows * planes));
    Problem group = problem;
    group.target.data = channel_of<S>(problem.target, Row{}, c);
    scatter_items<S, T, D, K>(group, n_source, memory, {first, last, sums - first * memory.stride[D - 1], 1});
    S* const map = static_cast<S*>(to.data) + n_source * to.batch_stride + c * to.channel_stride;
    for (int64_t z = 0; z < planes; ++z)
      for (int64_t y = 0; y < rows; ++y)
        turn_row<S>(sums + (z * rows + y) * memory.stride[1], channels, to.size[0],
                    map + first * to.stride[D - 1] + z * to.stride[2] + y * to.stride[1], to.stride[0],
                    to.channel_stride);
  }
  return c;
}

// The problem without its first `c` channels.
template <class S>
STN_FUNCTION Problem without_channels(const Problem& problem, int64_t c) {
  Problem rest = problem;
  rest.source.channels = rest.target.channels = rest.grad_feature_map.channels = problem.source.channels - c;
  rest.target.data = channel_of<S>(problem.target, Row{}, c);
  rest.grad_feature_map.data = channel_of<S>(problem.grad_feature_map, Row{}, c);
  return rest;
}

// The gradient of item n_source between two planes (rows) of its outermost axis.
template <class S, class T, int D, int K>
STN_FUNCTION void scatter_band(const Problem& whole, int64_t n_source, int64_t first, int64_t last) {
  const int64_t pixels = (last - first) * whole.source.size[0] * (D == 3 ? whole.source.size[1] : 1);
  int64_t done = 0;
  if (const int64_t channels = channels_on_stack<T, D, K>(whole, pixels); channels > 0)
    done = scatter_on_stack<S, T, D, K>(whole, n_source, first, last, channels);
  if (done == whole.source.channels) return;
  const Problem problem = without_channels<S>(whole, done);
  const Map& to = problem.grad_feature_map;
  S* const map = static_cast<S*>(to.data) + n_source * to.batch_stride;
  const Map memory = std::is_same_v<S, T> ? to : dense_band<D>(to, last - first);
  T* scratch = nullptr;
  if constexpr (!std::is_same_v<S, T>) scratch = new T[static_cast<size_t>(memory.channels * pixels)];
  T* const base = std::is_same_v<S, T> ? reinterpret_cast<T*>(map) : scratch - first * memory.stride[D - 1];
  for_band<D>(memory, first, last,
              [&](int64_t c, int64_t x, int64_t y, int64_t z) { base[offset_in(memory, c, x, y, z)] = T(0); });
  scatter_items<S, T, D, K>(problem, n_source, memory, {first, last, base, memory.channel_stride});
  if constexpr (!std::is_same_v<S, T>) {
    for_band<D>(memory, first, last, [&](int64_t c, int64_t x, int64_t y, int64_t z) {
      map[offset_in(to, c, x, y, z)] = stored<S>(base[offset_in(memory, c, x, y, z)]);
    });
    delete[] scratch;
  }
}

}  // namespace stn::STN_ISA
