// The gradient of a map where no inverse is at hand: products are added where they belong, equation (4).
//
// Reproducibly, sums are integers: every product is rounded to a multiple of a power of two that is fine enough for
// the largest |G|, and integers may be added in any order. float64 maps take a second integer for the rest. Otherwise
// floating-point sums are added as they come.
#pragma once

#include "channels.cuh"

namespace stn {

constexpr int kRestBits = 30;
constexpr int64 kPoison = 0x7fffffffffffffffll;  // in place of a sum with a term that is not finite
constexpr int64 kLargest = 1ll << 61;            // larger sums are poisoned; true ones stay below 2^59

STN_FUNCTION double power_of_two(int exponent) {
  const int biased = smaller(larger(exponent + 1023, 1), 2046);
  return __longlong_as_double(static_cast<int64>(biased) << 52);
}

// The largest sum that item n_source can get is 2^exponent: peak·points·4, since weights of a point sum to less than 4.
STN_FUNCTION int bound_of(const Item& item, int n_source) {
  const double peak = __longlong_as_double(static_cast<int64>(item.peaks[n_source]));
  const double points =
      static_cast<double>(item.to.size[0]) * item.to.rows * (item.by_source.batch == 1 ? item.batch : 1);
  const double bound = larger(peak, 1e-300) * points * 4.0;
  return static_cast<int>(__double_as_longlong(bound) >> 52) - 1022;
}

STN_FUNCTION int64 values_of(const Item& item) {
  return static_cast<int64>(item.by_source.batch) * item.channels * item.from.size[0] * item.from.rows;
}

STN_FUNCTION void add_integer(const Item& item, int64 index, T value, double scale) {
  int64* sums = reinterpret_cast<int64*>(item.accumulators);
  if (!is_finite(value)) {
    atomicMax(sums + index, kPoison);
    return;
  }
  const double scaled = static_cast<double>(value) * scale, whole = ::rint(scaled);
  atomicAdd(reinterpret_cast<uint64*>(sums + index), static_cast<uint64>(static_cast<int64>(whole)));
  if (sizeof(T) < 8) return;
  const int64 rest = static_cast<int64>(::rint((scaled - whole) * (1 << kRestBits)));
  atomicAdd(reinterpret_cast<uint64*>(sums + values_of(item) + index), static_cast<uint64>(rest));
}

STN_FUNCTION T collected(const Item& item, int64 index, double quantum) {
  const int64* sums = reinterpret_cast<const int64*>(item.accumulators);
  const int64 whole = sums[index];
  const T zero = T(0);
  if (whole > kLargest || whole < -kLargest) return zero / zero;  // NaN
  double sum = static_cast<double>(whole) * quantum;
  if (sizeof(T) == 8) sum += static_cast<double>(sums[values_of(item) + index]) * (quantum / (1 << kRestBits));
  return static_cast<T>(sum);
}

// Four neighbouring sums at once, where the device can.
STN_FUNCTION void add_four(float* to, const float* values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(values[0]), "f"(values[1]),
               "f"(values[2]), "f"(values[3])
               : "memory");
#else
  for (int c = 0; c < 4; ++c) atomicAdd(to + c, values[c]);
#endif
}

template <int N, bool Interleaved>
STN_FUNCTION void add_floats(T* to, int64 stride, int live, const T (&values)[N]) {
  if constexpr (Interleaved && N % 4 == 0 && sizeof(T) == 4) {
#pragma unroll
    for (int c = 0; c < N; c += 4) add_four(to + c, values + c);
  } else {
#pragma unroll
    for (int c = 0; c < N; ++c)
      if (c < live) atomicAdd(to + c * stride, values[c]);
  }
}

template <int N, bool Interleaved>
STN_FUNCTION void scatter_channels(const Item& item, const Plan& plan, int64 base, int channel, double scale,
                                   const T (&grad)[N]) {
  const int64 stride = item.by_source.channel_stride;
  for_taps([&](int x, int y, int z) {
    if (!plan.inside(x, y, z)) return;
    const int64 index = base + plan.place(x, y, z);
    const T weight = plan.product(x, y, z);
    T products[N];
#pragma unroll
    for (int c = 0; c < N; ++c) products[c] = weight * grad[c];
    if (item.peaks == nullptr)
      return add_floats<N, Interleaved>(reinterpret_cast<T*>(item.accumulators) + index, stride,
                                        item.channels - channel, products);
#pragma unroll
    for (int c = 0; c < N; ++c)
      if (Interleaved || c < item.channels - channel) add_integer(item, index + c * stride, products[c], scale);
  });
}

template <bool Interleaved>
STN_FUNCTION void scatter_tiles(const Launch& launch) {
  constexpr int N = kChunk<Interleaved>;
  for (Run run(launch); run.goes_on(); ++run.tile) {
    const Item& item = item_of(launch, run);
    const Place place = place_of(item.to, run.tile_of_item());
    const AnyGenerator generator(item, place.n);
    const Units<N, Interleaved> units(item, item.to);
    const int n_source = shared_index(place.n, item.by_source.batch);
    const double scale = item.peaks == nullptr ? 1.0 : power_of_two(59 - bound_of(item, n_source));
    for (int unit = threadIdx.x; unit < units.count(); unit += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, item.to, units.pixel(unit), pixel)) continue;
      T x[D];
      generator.point(item, place.n, pixel, x);
      if (!all_finite(x)) continue;
      const Plan plan(item, item.by_source, x);
      const S* grads = reinterpret_cast<const S*>(item.target.data) + offset_of<D>(item.target, place.n, pixel);
      for (int channel = units.first_channel(unit); channel < units.last_channel(unit, item); channel += N) {
        T grad[N];
        load_channels<N, Interleaved>(grads + channel * item.target.channel_stride, item.target.channel_stride,
                                      item.channels - channel, grad);
        scatter_channels<N, Interleaved>(
            item, plan, n_source * item.by_source.batch_stride + channel * item.by_source.channel_stride, channel,
            scale, grad);
      }
    }
  }
}

// The largest finite |G| of what every item of U gets its gradient from.
STN_FUNCTION void find_peaks(const Launch& launch) {
  for (Run run(launch); run.goes_on(); ++run.tile) {
    const Item& item = item_of(launch, run);
    const Place place = place_of(item.to, run.tile_of_item());
    double peak = 0.0;
    for (int p = threadIdx.x; p < pixels_of(item.to); p += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, item.to, p, pixel)) continue;
      const S* grads = reinterpret_cast<const S*>(item.target.data) + offset_of<D>(item.target, place.n, pixel);
      for (int c = 0; c < item.channels; ++c) {
        const double size = magnitude(static_cast<double>(widened(fetched(grads + c * item.target.channel_stride))));
        if (is_finite(size)) peak = larger(peak, size);
      }
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      peak = larger(peak, __shfl_xor_sync(kAllLanes, peak, distance));
    if (threadIdx.x % kWarp == 0)
      atomicMax(item.peaks + shared_index(place.n, item.by_source.batch),
                static_cast<uint64>(__double_as_longlong(peak)));
  }
}

// From sums to the gradient, rounded once.
template <bool Interleaved>
STN_FUNCTION void collect_tiles(const Launch& launch) {
  constexpr int N = kChunk<Interleaved>;
  for (Run run(launch); run.goes_on(); ++run.tile) {
    const Item& item = item_of(launch, run);
    const Place place = place_of(item.from, run.tile_of_item());
    const Units<N, Interleaved> units(item, item.from);
    const double quantum = item.peaks == nullptr ? 1.0 : 1.0 / power_of_two(59 - bound_of(item, place.n));
    const int64 stride = item.by_source.channel_stride;
    for (int unit = threadIdx.x; unit < units.count(); unit += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, item.from, units.pixel(unit), pixel)) continue;
      const int64 base = offset_of<D>(item.by_source, place.n, pixel);
      for (int channel = units.first_channel(unit); channel < units.last_channel(unit, item); channel += N) {
        T values[N] = {};
#pragma unroll
        for (int c = 0; c < N; ++c) {
          if (channel + c >= item.channels) continue;
          const int64 index = base + (channel + c) * stride;
          values[c] = item.peaks == nullptr ? reinterpret_cast<const T*>(item.accumulators)[index]
                                            : collected(item, index, quantum);
        }
        store_channels<N, Interleaved>(reinterpret_cast<S*>(item.by_source.data) + base + channel * stride, stride,
                                       item.channels - channel, values);
      }
    }
  }
}

}  // namespace stn
