// Channels are worked on in groups: N that lie side by side and move as one vector, or N planes.
#pragma once

#include "taps.cuh"

namespace stn {

template <bool Interleaved>
constexpr int kGroup = Interleaved ? kVector<S> : kPlanes;

// Says at compile time how many channels there are.
template <int N>
struct Channels {
  static constexpr int kCount = N;
};

// Reads N channels, of which those from `live` on are not there.
template <int N, bool Interleaved>
STN_FUNCTION void load_channels(const S* from, int64 stride, int live, T (&out)[N]) {
  if constexpr (Interleaved) {
    const Vector<S> loaded = fetched(reinterpret_cast<const Vector<S>*>(from));
#pragma unroll
    for (int c = 0; c < N; ++c) out[c] = widened(loaded.at[c]);
  } else {
#pragma unroll
    for (int c = 0; c < N; ++c) out[c] = c < live ? widened(fetched(from + c * stride)) : T(0);
  }
}

template <int N, bool Interleaved>
STN_FUNCTION void store_channels(S* to, int64 stride, int live, const T (&values)[N]) {
  if constexpr (Interleaved) {
    Vector<S> rounded;
#pragma unroll
    for (int c = 0; c < N; ++c) round_to(values[c], rounded.at[c]);
    *in_device_memory(reinterpret_cast<Vector<S>*>(to)) = rounded;
  } else {
#pragma unroll
    for (int c = 0; c < N; ++c)
      if (c < live) round_to(values[c], in_device_memory(to)[c * stride]);
  }
}

// The values of `fill` for some channels.
template <int N>
STN_FUNCTION void fill_of(const Descriptor& problem, int channel, bool used, T (&out)[N]) {
#pragma unroll
  for (int c = 0; c < N; ++c)
    out[c] = used && problem.fill != nullptr && channel + c < problem.channels
                 ? static_cast<T>(fetched(problem.fill + channel + c))
                 : T(0);
}

// The part of a map that belongs to item n of the batch.
STN_FUNCTION S* maps_of(const Map& map, int n) {
  return reinterpret_cast<S*>(map.data) + shared_index(n, map.batch) * map.batch_stride;
}

// Some channels of a tap, or what padding puts there.
template <int N, bool Interleaved>
STN_FUNCTION void read_tap(const Descriptor& problem, const TapPlan& plan, const S* source, int channel,
                           const T (&outside)[N], int x, int y, int z, T (&tap)[N]) {
#pragma unroll
  for (int c = 0; c < N; ++c) tap[c] = outside[c];
  if (plan.inside(x, y, z))
    load_channels<N, Interleaved>(source + plan.place(x, y, z), problem.feature_map.channel_stride,
                                  problem.channels - channel, tap);
}

constexpr int kTaps = D == 2 ? K * K : K * K * K;

// All taps of some channels. Most points lie within the map and are spared all tests.
template <int N, bool Interleaved>
STN_FUNCTION void read_taps(const Descriptor& problem, const TapPlan& plan, const S* source, int channel,
                            T (&taps)[kTaps][N]) {
  if (plan.whole()) {
    for_taps([&](int x, int y, int z) {
      load_channels<N, Interleaved>(source + plan.place(x, y, z), problem.feature_map.channel_stride, N,
                                    taps[(z * K + y) * K + x]);
    });
  } else {
    T outside[N];
    fill_of(problem, channel, problem.fills != 0, outside);
    for_taps([&](int x, int y, int z) {
      read_tap<N, Interleaved>(problem, plan, source, channel, outside, x, y, z, taps[(z * K + y) * K + x]);
    });
  }
}

// Gives tap (x, y, z) to whoever joins them.
template <int N>
STN_FUNCTION auto reader_of(const T (&taps)[kTaps][N]) {
  return [&taps](int x, int y, int z, T(&tap)[N]) {
#pragma unroll
    for (int c = 0; c < N; ++c) tap[c] = taps[(z * K + y) * K + x][c];
  };
}

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
    join_taps(plan, reader_of(taps), values);
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

// Calls f with every group of the channels from `channel` to `last`: N at a time, and planes at the end together.
template <int N, bool Interleaved, class F>
STN_FUNCTION void for_groups(int channel, int last, F f) {
  for (; last - channel >= N; channel += N) f(Channels<N>{}, channel);
  if (Interleaved || channel >= last) return;
  if (N > 2 && last - channel == 2) f(Channels<2>{}, channel);
  else f(Channels<1>{}, channel);
}

// What a thread does at a time is a unit: a pixel, and some of its channels. Interleaved channels go to neighbouring
// threads; planes are walked by one thread, which plans its taps once.
template <int N, bool Interleaved>
struct Units {
  int groups, pixels;

  STN_MEMBER Units(const Descriptor& problem, const Tiling& tiling)
      : groups(Interleaved ? problem.channels / N : 1), pixels(pixels_of(tiling)) {}

  STN_MEMBER int count() const { return pixels * groups; }
  STN_MEMBER int pixel(int unit) const { return Interleaved ? unit / groups : unit; }
  STN_MEMBER int first_channel(int unit) const { return Interleaved ? unit % groups * N : 0; }
  STN_MEMBER int last_channel(int unit, const Descriptor& problem) const {
    return Interleaved ? first_channel(unit) + N : problem.channels;
  }
};

// The units of a thread in interleaved channels, one after the other: all other lie between them.
struct UnitWalk {
  int pixel, group;

  // From that of the unit `base` on.
  STN_MEMBER explicit UnitWalk(int groups, unsigned base = 0)
      : pixel((base + threadIdx.x) / static_cast<unsigned>(groups)),
        group(static_cast<int>(base + threadIdx.x) - pixel * groups),
        groups(groups),
        pixels(kThreads / static_cast<unsigned>(groups)),
        rest(kThreads - pixels * groups) {}

  STN_MEMBER void go_on() {
    pixel += pixels;
    group += rest;
    if (group < groups) return;
    group -= groups;
    ++pixel;
  }

 private:
  int groups, pixels, rest;  // from one to the next
};

}  // namespace stn

#define STN_KERNEL(name, blocks, ...) \
  extern "C" __global__ void __launch_bounds__(stn::kThreads, blocks) name(STN_ARGUMENTS) { __VA_ARGS__(launch); }
