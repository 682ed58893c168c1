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

// The largest sum that map n_source can get is 2^exponent: peak·points·4, since weights of a point sum to less than 4.
STN_FUNCTION int bound_of(const Descriptor& problem, int n_source) {
  const double peak = __longlong_as_double(static_cast<int64>(fetched(problem.peaks + n_source)));
  const double points = static_cast<double>(problem.target.size[0]) * problem.target.rows *
                        (problem.grad_feature_map.batch == 1 ? problem.batch : 1);
  const double bound = larger(peak, 1e-300) * points * 4.0;
  return static_cast<int>(__double_as_longlong(bound) >> 52) - 1022;
}

STN_FUNCTION int64 values_of(const Descriptor& problem) {
  return static_cast<int64>(problem.grad_feature_map.batch) * problem.channels * problem.source.size[0] *
         problem.source.rows;
}

STN_FUNCTION void add_integer(const Descriptor& problem, int64 index, T value, double scale) {
  int64* sums = in_device_memory(reinterpret_cast<int64*>(problem.accumulators));
  if (!is_finite(value)) {
    atomicMax(sums + index, kPoison);
    return;
  }
  const double scaled = static_cast<double>(value) * scale, whole = ::rint(scaled);
  atomicAdd(reinterpret_cast<uint64*>(sums + index), static_cast<uint64>(static_cast<int64>(whole)));
  if (sizeof(T) < 8) return;
  const int64 rest = static_cast<int64>(::rint((scaled - whole) * (1 << kRestBits)));
  atomicAdd(reinterpret_cast<uint64*>(sums + values_of(problem) + index), static_cast<uint64>(rest));
}

STN_FUNCTION T collected(const Descriptor& problem, int64 index, double quantum) {
  const int64* sums = reinterpret_cast<const int64*>(problem.accumulators);
  const int64 whole = fetched(sums + index);
  const T zero = T(0);
  if (whole > kLargest || whole < -kLargest) return zero / zero;  // NaN
  double sum = static_cast<double>(whole) * quantum;
  if (sizeof(T) == 8)
    sum += static_cast<double>(fetched(sums + values_of(problem) + index)) * (quantum / (1 << kRestBits));
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
STN_FUNCTION void scatter_channels(const Descriptor& problem, const TapPlan& plan, int64 base, int channel,
                                   double scale, const T (&grad)[N]) {
  const int64 stride = problem.grad_feature_map.channel_stride;
  for_taps([&](int x, int y, int z) {
    if (!plan.inside(x, y, z)) return;
    const int64 index = base + plan.place(x, y, z);
    const T weight = plan.product(x, y, z);
    T products[N];
#pragma unroll
    for (int c = 0; c < N; ++c) products[c] = weight * grad[c];
    if (problem.peaks == nullptr)
      return add_floats<N, Interleaved>(in_device_memory(reinterpret_cast<T*>(problem.accumulators)) + index, stride,
                                        problem.channels - channel, products);
#pragma unroll
    for (int c = 0; c < N; ++c)
      if (Interleaved || c < problem.channels - channel) add_integer(problem, index + c * stride, products[c], scale);
  });
}

template <bool Interleaved>
STN_FUNCTION void scatter_tiles(const Launch& launch) {
  constexpr int N = kGroup<Interleaved>;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    const AnyGenerator generator(problem, place.n);
    const Units<N, Interleaved> units(problem, problem.target);
    const int n_source = shared_index(place.n, problem.grad_feature_map.batch);
    const double scale = problem.peaks == nullptr ? 1.0 : power_of_two(59 - bound_of(problem, n_source));
    for (int unit = threadIdx.x; unit < units.count(); unit += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, problem.target, units.pixel(unit), pixel)) continue;
      T x[D];
      generator.point(problem, place.n, pixel, x);
      if (!all_finite(x)) continue;
      const TapPlan plan(problem, problem.grad_feature_map, x);
      const S* grads =
          reinterpret_cast<const S*>(problem.grad_output.data) + offset_of<D>(problem.grad_output, place.n, pixel);
      for (int channel = units.first_channel(unit); channel < units.last_channel(unit, problem); channel += N) {
        T grad[N];
        load_channels<N, Interleaved>(grads + channel * problem.grad_output.channel_stride,
                                      problem.grad_output.channel_stride, problem.channels - channel, grad);
        scatter_channels<N, Interleaved>(
            problem, plan,
            n_source * problem.grad_feature_map.batch_stride + channel * problem.grad_feature_map.channel_stride,
            channel, scale, grad);
      }
    }
  }
}

// The largest finite |G| of what every map of U gets its gradient from.
STN_FUNCTION void find_peaks(const Launch& launch) {
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.target, loop.tile_of_problem());
    double peak = 0.0;
    for (int p = threadIdx.x; p < pixels_of(problem.target); p += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, problem.target, p, pixel)) continue;
      const S* grads =
          reinterpret_cast<const S*>(problem.grad_output.data) + offset_of<D>(problem.grad_output, place.n, pixel);
      for (int c = 0; c < problem.channels; ++c) {
        const double size =
            magnitude(static_cast<double>(widened(fetched(grads + c * problem.grad_output.channel_stride))));
        if (is_finite(size)) peak = larger(peak, size);
      }
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      peak = larger(peak, __shfl_xor_sync(kAllLanes, peak, distance));
    if (threadIdx.x % kWarp == 0)
      atomicMax(in_device_memory(problem.peaks) + shared_index(place.n, problem.grad_feature_map.batch),
                static_cast<uint64>(__double_as_longlong(peak)));
  }
}

// From sums to the gradient, rounded once.
template <bool Interleaved>
STN_FUNCTION void collect_tiles(const Launch& launch) {
  constexpr int N = kGroup<Interleaved>;
  for (TileLoop loop(launch); loop.goes_on(); ++loop.tile) {
    const Descriptor& problem = problem_of(launch, loop);
    const Place place = place_of(problem.source, loop.tile_of_problem());
    const Units<N, Interleaved> units(problem, problem.source);
    const double quantum = problem.peaks == nullptr ? 1.0 : 1.0 / power_of_two(59 - bound_of(problem, place.n));
    const int64 stride = problem.grad_feature_map.channel_stride;
    for (int unit = threadIdx.x; unit < units.count(); unit += kThreads) {
      Pixel pixel;
      if (!pixel_of(place, problem.source, units.pixel(unit), pixel)) continue;
      const int64 base = offset_of<D>(problem.grad_feature_map, place.n, pixel);
      for (int channel = units.first_channel(unit); channel < units.last_channel(unit, problem); channel += N) {
        T values[N] = {};
#pragma unroll
        for (int c = 0; c < N; ++c) {
          if (channel + c >= problem.channels) continue;
          const int64 index = base + (channel + c) * stride;
          values[c] = problem.peaks == nullptr ? fetched(reinterpret_cast<const T*>(problem.accumulators) + index)
                                               : collected(problem, index, quantum);
        }
        store_channels<N, Interleaved>(reinterpret_cast<S*>(problem.grad_feature_map.data) + base + channel * stride,
                                       stride, problem.channels - channel, values);
      }
    }
  }
}

}  // namespace stn
