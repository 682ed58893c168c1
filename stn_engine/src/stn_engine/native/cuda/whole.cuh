// Points whose taps all lie within the map, as those of most do: nothing is padded, no tap is tested, and taps lie at
// constant steps from the first one. Every operation is that of the general path, so results are the same bit for bit.
#pragma once

#include "channels.cuh"

namespace stn {

constexpr bool kHasWhole = D == 2;
// Up to here a pixel is found without a conversion.
constexpr int kLargestSize = 1 << 22;

// The anchor of a coordinate, also as an integer: that of a sum whose last bit stands for 1. Where there is none, or
// where the map is too large for it, the integer lies in no map.
STN_FUNCTION T anchored(T x, int& pixel) {
#if defined(__CUDACC_RTC__)
  if constexpr (sizeof(T) == 4) {
    constexpr float kOnes = 12582912.0f;  // 1.5·2^23
    const float sum = K == 1 ? __fadd_rn(x, kOnes) : __fadd_rd(x, kOnes);
    pixel = __float_as_int(sum) - __float_as_int(kOnes);
    return sum - kOnes;
  }
#endif
  const T anchor = anchor_of(x);
  pixel = magnitude(anchor) < T(kLargestSize) ? static_cast<int>(anchor) : -1;  // false for NaN
  return anchor;
}

// Which anchors are those of whole points.
struct Inside {
  int first;          // along either axis
  unsigned count[2];  // 0 if padding moves what lies within the map, too
  bool may_be_flat;   // whether points that are pixels have no slope

  STN_MEMBER Inside(const Descriptor& problem, bool has_slopes) {
    // On the border itself clipping has no slope.
    first = K == 4 || (has_slopes && pads_by(problem, Padding::border)) ? 1 : 0;
    may_be_flat = has_slopes && problem.zero_subgradient != 0;
    const bool moves = K < 4 && pads_by(problem, Padding::reflection);
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      const int size = problem.source.size[a];
      count[a] = moves || size > kLargestSize ? 0 : larger(0, size - K / 2 - first);
    }
  }

  STN_MEMBER bool has(int a, int pixel) const { return static_cast<unsigned>(pixel - first) < count[a]; }
};

// A whole point: where its first tap lies, and what taps weigh.
struct WholePoint {
  unsigned first;
  T weight[D][K], slope[D][K];

  // Returns whether it is one; else nothing else holds. Linear slopes are 1 here: points that have none are others'.
  STN_MEMBER bool find(const Inside& inside, const Map& map, const T (&x)[D]) {
    bool is_whole = true;
    int place = 0;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      AxisTaps taps;
      int pixel;
      weigh({x[a], T(1)}, anchored(x[a], pixel), false, taps);
      is_whole = is_whole & inside.has(a, pixel);
      if (K == 2) is_whole = is_whole & (!inside.may_be_flat | (taps.weight[1] != T(0)));
      place += (K == 4 ? pixel - 1 : pixel) * map.stride[a];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        weight[a][k] = taps.weight[k];
        slope[a][k] = taps.slope[k];
      }
    }
    first = static_cast<unsigned>(place);
    return is_whole;
  }
};

// All taps of some channels, of which the first lies at `from`. Steps lead from a tap to the next one, and from a
// channel to the next one.
template <int N, bool Interleaved>
STN_FUNCTION void read_whole(const S* from, int step, int64 channel_step, const Map& map, T (&taps)[kTaps][N]) {
#pragma unroll
  for (int y = 0; y < K; ++y, from += map.stride[1])
#pragma unroll
    for (int x = 0; x < K; ++x) load_channels<N, Interleaved>(from + x * step, channel_step, N, taps[y * K + x]);
}

// The point of one pixel; whether the map has it and it is whole.
template <class Generator>
STN_FUNCTION bool find_whole(const Descriptor& problem, const Place& place, const Generator& generator,
                             const Inside& inside, int p, Pixel& pixel, WholePoint& point) {
  if (!pixel_of(place, problem.target, p, pixel)) return false;
  T x[D];
  generator.simple_point(problem, place.n, pixel, x);
  return point.find(inside, problem.feature_map, x);
}

// Four pixels that one thread does together, of a row or a column of the map. Lanes of a warp lie so that they read
// along rows of the source: words of different rows are in the same banks of the first cache, whose lines are rows.
struct Quad {
  int x, y;  // of the first
  bool is_row;

  // That of the present thread: a tile has one for each.
  STN_MEMBER Quad(const Place& place, const Tiling& tiling, bool is_row) : is_row(is_row) {
    const int index = threadIdx.x, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int width_log = tiling.width_log + kPatchWidthLog;
    if (is_row) {
      x = (warp & ((1 << tiling.width_log) - 1)) * 2 * kQuad + lane % 2 * kQuad;
      y = (warp >> tiling.width_log) * (kWarp / 2) + lane / 2;
    } else {
      x = index & ((1 << width_log) - 1);
      y = (index >> width_log) * kQuad;
    }
    x += place.x;
    y += place.row;
  }

  STN_MEMBER Pixel pixel(int p) const { return {{x + (is_row ? p : 0), y + (is_row ? 0 : p), 0}}; }

  STN_MEMBER bool fits(const Tiling& tiling) const {
    return x + (is_row ? kQuad - 1 : 0) < tiling.size[0] && y + (is_row ? 0 : kQuad - 1) < tiling.rows;
  }

  STN_MEMBER bool has(int p, const Tiling& tiling) const {
    return x + (is_row ? p : 0) < tiling.size[0] && y + (is_row ? 0 : p) < tiling.rows;
  }

  // Where the first pixel is among those of the tile, counted patch by patch; the others follow in its patch.
  STN_MEMBER int in_patches(const Place& place, const Tiling& tiling) const {
    const int right = x - place.x, below = y - place.row;
    const int patch = (below >> kPatchHeightLog << tiling.width_log) + (right >> kPatchWidthLog);
    return patch * kWarp + ((below & ((1 << kPatchHeightLog) - 1)) << kPatchWidthLog) +
           (right & ((1 << kPatchWidthLog) - 1));
  }
};
static_assert(kQuad == 1 << kPatchHeightLog, "the quads of a column are in one patch each");
static_assert(kTilePixels == kQuad * kThreads, "a tile of planes has a quad for each thread");

struct alignas(kQuad * sizeof(S) < 16 ? kQuad * sizeof(S) : 16) FourInRow {
  S at[kQuad];
};

// Where the pixels of quads are in a map, and whether those of a row move as one.
struct QuadSteps {
  static constexpr bool kMoves = kQuad * sizeof(S) <= 16;
  int step;
  bool is_vector;

  STN_MEMBER QuadSteps(const Map& map, const S* of_item, bool is_row)
      : step(map.stride[is_row ? 0 : 1]),
        is_vector(kMoves && is_row && map.stride[0] == 1 && ((map.stride[1] | map.channel_stride) % kQuad == 0) &&
                  reinterpret_cast<uint64>(of_item) % sizeof(FourInRow) == 0) {}

  STN_MEMBER void load(const S* from, T (&values)[kQuad]) const {
    if constexpr (kMoves) {
      if (is_vector) {
        const FourInRow loaded = fetched(reinterpret_cast<const FourInRow*>(from));
#pragma unroll
        for (int p = 0; p < kQuad; ++p) values[p] = widened(loaded.at[p]);
        return;
      }
    }
#pragma unroll
    for (int p = 0; p < kQuad; ++p) values[p] = widened(fetched(from + p * step));
  }

  STN_MEMBER void store(S* to, const T (&values)[kQuad]) const {
    if (is_vector) {
      FourInRow rounded;
#pragma unroll
      for (int p = 0; p < kQuad; ++p) round_to(values[p], rounded.at[p]);
      *in_device_memory(reinterpret_cast<FourInRow*>(to)) = rounded;
    } else {
#pragma unroll
      for (int p = 0; p < kQuad; ++p) round_to(values[p], in_device_memory(to)[p * step]);
    }
  }
};

// Runs f(points) if a quad lies in the map and all its points are whole; whether it did.
template <class Generator, class F>
STN_FUNCTION bool find_quad(const Descriptor& problem, int n, const Generator& generator, const Quad& quad,
                            bool has_slopes, F f) {
  if (generator.divides() || !quad.fits(problem.target)) return false;
  const Inside inside(problem, has_slopes);
  WholePoint points[kQuad];
  bool are_whole = true;
#pragma unroll
  for (int p = 0; p < kQuad; ++p) {
    T x[D];
    generator.simple_point(problem, n, quad.pixel(p), x);
    are_whole = are_whole & points[p].find(inside, problem.feature_map, x);
  }
  if (are_whole) f(points);
  return are_whole;
}

constexpr bool kHasEdge = kHasWhole && K <= 2;

// A point of which some taps may lie outside, unless padding mirrors. Of four of them nothing waits for another's taps.
struct EdgePoint {
  int first;
  unsigned there;  // a bit per tap of every axis; none of a point that is not finite
  bool finite;
  T weight[D][K], slope[D][K];

  STN_MEMBER void find(const Descriptor& problem, const T (&x)[D]) {
    finite = all_finite(x);
    first = 0;
    there = 0;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      const Padded<T> at = unmirrored(finite ? x[a] : T(-4), problem, a);
      AxisTaps taps;
      int pixel;
      weigh(at, anchored(at.x, pixel), problem.zero_subgradient != 0, taps);
      first += pixel * problem.feature_map.stride[a];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        there |= static_cast<unsigned>(static_cast<unsigned>(pixel + k) < static_cast<unsigned>(problem.source.size[a]))
                 << (a * K + k);
        weight[a][k] = taps.weight[k];
        slope[a][k] = taps.slope[k];
      }
    }
  }

  // The taps of one channel, or what padding puts there.
  STN_MEMBER void read(const S* from, const Map& map, T outside, T (&taps)[kTaps][1]) const {
    from += first;
#pragma unroll
    for (int y = 0; y < K; ++y, from += map.stride[1]) {
#pragma unroll
      for (int x = 0; x < K; ++x) {
        const unsigned bits = 1u << x | 1u << (K + y);
        taps[y * K + x][0] = outside;
        if ((there & bits) == bits) taps[y * K + x][0] = widened(fetched(from + x * map.stride[0]));
      }
    }
  }
};

// Whether such points are all that a generator may have.
template <class Generator>
STN_FUNCTION bool has_edges(const Descriptor& problem, const Generator& generator) {
  return !generator.divides() && !mirrors(problem) && problem.source.size[0] <= kLargestSize &&
         problem.source.size[1] <= kLargestSize;
}

// The points of two pixels of a quad, from pixel `p` on. Those that the map does not have are put into it.
template <class Generator>
STN_FUNCTION void find_edges(const Descriptor& problem, int n, const Generator& generator, const Quad& quad, int p,
                             EdgePoint (&points)[kPair]) {
#pragma unroll
  for (int k = 0; k < kPair; ++k) {
    Pixel pixel = quad.pixel(p + k);
    pixel.at[0] = smaller(pixel.at[0], problem.target.size[0] - 1);
    pixel.at[1] = smaller(pixel.at[1], problem.target.rows - 1);
    T x[D];
    generator.simple_point(problem, n, pixel, x);
    points[k].find(problem, x);
  }
}

}  // namespace stn
