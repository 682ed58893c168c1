// Tiles whose points all lie well within the map, as those of most tiles do: nothing is padded, no tap is tested, and
// taps lie at constant steps from the first one. Every operation is that of the general path, so results are the same
// bit for bit.
#pragma once

#include "channels.cuh"

namespace stn {

constexpr bool kHasInterior = D == 2;
// Up to here rounding moves a point by less than the pixel of slack, whatever cancels on the way to it.
constexpr int kFarthest = 1 << 21;

// Pixels between a point and the border of the map that its taps, and a pixel of slack, take up.
constexpr int kBefore = K == 4 ? 2 : 1, kBehind = K == 4 ? 4 : 3;

STN_FUNCTION bool lies_within(T at, T by_x, T by_y, T last_x, T last_y, int size) {
  const T along_x = by_x * last_x, along_y = by_y * last_y;
  const T low = at + smaller(along_x, T(0)) + smaller(along_y, T(0));
  const T high = at + larger(along_x, T(0)) + larger(along_y, T(0));
  return low >= T(kBefore) && high <= static_cast<T>(size - kBehind);  // false for NaN
}

// Whether the general path may be left, which is the same for all threads of a block. Pixels of planes must be
// neighbours in memory, so that a constant leads from a tap to the next one.
template <bool Interleaved>
STN_FUNCTION bool is_interior(const Descriptor& problem, const Tiling& tiling, const Place& place, const Rays& rays) {
  if (!Interleaved && problem.feature_map.stride[0] != 1) return false;
  if (!kHasInterior || rays.projective || (K < 4 && pads_by(problem, Padding::reflection))) return false;
  const int width = width_of(tiling), height = height_of(tiling);
  if (place.x + width > tiling.size[0] || place.row + height > tiling.rows || tiling.size[2] > 1) return false;
  const Pixel corner = {{place.x, place.row, 0}};
  const T last_x = static_cast<T>(width - 1), last_y = static_cast<T>(height - 1);
  bool within = true;
  for (int a = 0; a < 2; ++a) {
    const T* row = rays.at + a * (D + 1);
    const T farthest = magnitude(row[0]) * (static_cast<T>(place.x) + last_x) +
                       magnitude(row[1]) * (static_cast<T>(place.row) + last_y) + magnitude(row[D]);
    within = within && farthest <= T(kFarthest) &&
             lies_within(rays.ray(a, corner), row[0], row[1], last_x, last_y, problem.source.size[a]);
  }
  return within;
}

// The matrix of an affine map in registers.
struct Affinity {
  T row[2][3];

  STN_MEMBER explicit Affinity(const Rays& rays) {
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
      for (int b = 0; b < 3; ++b) row[a][b] = rays.at[a * (D + 1) + b];
  }

  // Whether a row of the target reads few rows of the source, so that a warp is best spread along it.
  STN_MEMBER bool is_level() const { return magnitude(row[1][0]) <= T(kLevelSlope); }

  STN_MEMBER T point(int a, T x, T y) const { return fused(row[a][0], x, fused(row[a][1], y, row[a][2])); }
};

// Weights of a point, and where its first tap lies.
struct InteriorTaps {
  int first;
  T weight[D][K], slope[D][K];

  STN_MEMBER void weigh_at(const Affinity& affinity, const Map& map, T x, T y, bool zero_subgradient) {
    first = 0;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      AxisTaps taps;
      first += static_cast<int>(weigh({affinity.point(a, x, y), T(1)}, zero_subgradient, taps)) * map.stride[a];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        weight[a][k] = taps.weight[k];
        slope[a][k] = taps.slope[k];
      }
    }
  }
};

// All taps of some channels, of which the first lies at `from`.
template <int N, bool Interleaved>
STN_FUNCTION void read_interior(const S* from, const Map& map, T (&taps)[K * K][N]) {
  const int step = Interleaved ? map.stride[0] : 1;
#pragma unroll
  for (int tap = 0; tap < K * K; ++tap)
    load_channels<N, Interleaved>(from + tap / K * map.stride[1] + tap % K * step, map.channel_stride, N, taps[tap]);
}

// Gives tap (x, y) to whoever joins them.
template <int N>
STN_FUNCTION auto reader_of(const T (&taps)[K * K][N]) {
  return [&taps](int x, int y, int, T(&tap)[N]) {
#pragma unroll
    for (int c = 0; c < N; ++c) tap[c] = taps[y * K + x][c];
  };
}

// Where pixel p of a tile lies in it, counted patch by patch or row by row.
STN_FUNCTION void place_in_tile(const Tiling& tiling, int p, bool by_rows, int& x, int& y) {
  if (by_rows) {
    x = p & (width_of(tiling) - 1);
    y = p >> (tiling.width_log + kPatchWidthLog);
  } else {
    place_in_tile(tiling, p, x, y);
  }
}

}  // namespace stn
