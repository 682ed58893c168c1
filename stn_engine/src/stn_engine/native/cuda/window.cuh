// The part of the source that a tile of an affine map reads, in shared memory: read from the device's memory in whole
// vectors, each once, all of them under way together and none held in registers. Taps are then found by 32-bit
// addresses at constant steps, and what padding puts beyond the border stands there like any other pixel. Every
// operation on them is that of the general path, so results are the same bit for bit.
#pragma once

#include "whole.cuh"

namespace stn {

constexpr bool kHasWindow = kWindows && D == 2 && K > 1 && sizeof(T) == 4;

constexpr int kCells = 4;         // that move as one
constexpr int kWindowPlanes = 3;  // of channels that are there at a time
constexpr int kWindowWidth = 52;  // cells of a row of one of them: a tile turned by any angle
constexpr int kWindowRows = 48;
constexpr int kPitch = kWindowPlanes * kWindowWidth;  // the rows of planes lie side by side

struct alignas(kCells * sizeof(T)) FourCells {
  T at[kCells];
};

struct alignas(kCells * sizeof(S)) FourElements {
  S at[kCells];
};

STN_FUNCTION T* window_cells() {
  __shared__ FourCells cells[kWindowRows * kPitch / kCells];
  return cells[0].at;
}

// Copies without registers.
STN_FUNCTION void copy_elements(const S* from, T* to) {
#if defined(__CUDACC_RTC__)
  const unsigned there = static_cast<unsigned>(__cvta_generic_to_shared(to));
  constexpr int kBytes = sizeof(FourElements);
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(there), "l"(from) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" : : "r"(there), "l"(from), "n"(kBytes) : "memory");
#else
  *reinterpret_cast<FourElements*>(to) = *reinterpret_cast<const FourElements*>(from);
#endif
}

// Of numbers that are neither NaN nor -0.
STN_FUNCTION T least_of(T a, T b) {
#if defined(__CUDACC_RTC__)
  if constexpr (sizeof(T) == 4) return ::fminf(a, b);
#endif
  return smaller(a, b);
}

STN_FUNCTION T largest_of(T a, T b) {
#if defined(__CUDACC_RTC__)
  if constexpr (sizeof(T) == 4) return ::fmaxf(a, b);
#endif
  return larger(a, b);
}

// Waits for the copies of this thread.
STN_FUNCTION void await_cells() {
#if defined(__CUDACC_RTC__)
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

// A tile and its window.
struct alignas(16) WindowTile {
  int x, y, last_x, last_y;  // the first and the last pixels of the tile
  int first, row;            // of the first cell
  int width, rows;           // in cells; no row where the tile has no window
};

// As many tiles are looked at together, a thread each.
constexpr int kWindowTiles = 32;

STN_FUNCTION WindowTile* window_tiles() {
  __shared__ WindowTile tiles[kWindowTiles];
  return tiles;
}

// What the windows of one item have in common. Cells of a row are counted across pixels and, where they lie side by
// side, channels.
struct WindowMap {
  bool are_packed;   // whether channels lie side by side
  bool are_there;
  bool move_vectors;  // whether rows begin, and end, with whole vectors
  int step;           // from pixel to pixel
  int size, height;   // of the map: cells of a row, and rows
  int row_step;
  int64 plane_step;
  const S* source;
  S* target;

  STN_MEMBER void take(const Map& map, const Tiling& tiling, int n, int channels) {
    source = maps_of(map, n);
    step = are_packed ? channels : 1;
    size = tiling.size[0] * step;
    height = tiling.size[1];
    row_step = map.stride[1];
    plane_step = are_packed ? 0 : map.channel_stride;
    move_vectors = ((row_step | size | static_cast<int>(plane_step)) % kCells == 0) &&
                   reinterpret_cast<uint64>(source) % sizeof(FourElements) == 0;
    are_there = map.stride[0] == step && larger(tiling.size[0], tiling.size[1]) <= kLargestSize;
  }

  STN_MEMBER bool has(int x, int y) const {
    return (static_cast<unsigned>(x) < static_cast<unsigned>(size)) &
           (static_cast<unsigned>(y) < static_cast<unsigned>(height));
  }

  STN_MEMBER T element(int channel, int x, int y) const {
    return widened(fetched(source + channel * plane_step + (x + y * row_step)));
  }

  // A window that begins at pixel (x, y) of the map and ends at another one, if there is room for it.
  STN_MEMBER void bound(WindowTile& tile, int x, int y, int last_x, int last_y) const {
    tile.first = x * step & ~(kCells - 1);
    tile.width = (last_x + 1) * step - tile.first;
    tile.row = y;
    const int rows = last_y + 1 - y;
    tile.rows = tile.width <= (are_packed ? kPitch : kWindowWidth) && rows <= kWindowRows ? rows : 0;
  }

  // Brings some planes, or all channels of pixels; settle() and a meeting must follow. `element` gives a cell where vectors
  // do not move. Returns whether they did.
  template <class Element>
  STN_MEMBER bool bring(const WindowTile& tile, int planes, int channel, Element element) const {
    const int lanes_log = are_packed ? kPackedLanesLog : kPlaneLanesLog, cell = (threadIdx.x & ((1 << lanes_log) - 1)) * kCells;
    const int at_once = kThreads >> lanes_log, first_row = threadIdx.x >> lanes_log;
    if (cell >= tile.width) return false;
    const int x = tile.first + cell;
    T* cells = window_cells() + (cell + first_row * kPitch);
    // Rows of vectors that lie in the map, or cell by cell.
    if (move_vectors & (static_cast<unsigned>(x) < static_cast<unsigned>(size)) & (tile.row >= 0) &
        (tile.row + tile.rows <= height)) {
      const S* from = source + channel * plane_step + (x + (tile.row + first_row) * row_step);
      for_vectors(tile, planes, [&](int plane, int row, int to) {
        copy_elements(from + (plane * plane_step + row * row_step), cells + to);
      });
      return true;
    }
#pragma unroll 1
    for (int plane = 0; plane < planes; ++plane, cells += kWindowWidth)
#pragma unroll 1
      for (int y = first_row; y < tile.rows; y += at_once)
#pragma unroll 1
        for (int k = 0; k < kCells; ++k)
          cells[(y - first_row) * kPitch + k] = element(channel + plane, x + k, tile.row + y);
    return false;
  }

  // Waits for what this thread has brought, and widens it where it lies.
  STN_MEMBER void settle(const WindowTile& tile, int planes, bool moved) const {
#if defined(__CUDACC_RTC__)
    asm volatile("cp.async.wait_all;" : : : "memory");
#endif
    if (sizeof(S) == sizeof(T) || !moved) return;
    const int lanes_log = are_packed ? kPackedLanesLog : kPlaneLanesLog;
    T* cells = window_cells() + ((threadIdx.x & ((1 << lanes_log) - 1)) * kCells + (threadIdx.x >> lanes_log) * kPitch);
    for_vectors(tile, planes, [&](int, int, int to) {
      const FourElements narrow = *reinterpret_cast<const FourElements*>(cells + to);
      FourCells wide;
#pragma unroll
      for (int k = 0; k < kCells; ++k) wide.at[k] = widened(narrow.at[k]);
      *reinterpret_cast<FourCells*>(cells + to) = wide;
    });
  }

 private:
  static constexpr int kPlaneLanesLog = 4, kPackedLanesLog = 6;  // lanes that bring a row
  static_assert(kCells << kPlaneLanesLog >= kWindowWidth && kCells << kPackedLanesLog >= kPitch, "too few lanes");

  // Calls f(plane, row, cell) for the vectors that one thread brings: every so many rows one, counted from its first.
  template <class F>
  STN_MEMBER void for_vectors(const WindowTile& tile, int planes, F f) const {
    if (are_packed) return for_rows<kPackedLanesLog>(tile, 0, f);
#pragma unroll 1
    for (int plane = 0; plane < planes; ++plane) for_rows<kPlaneLanesLog>(tile, plane, f);
  }

  template <int LanesLog, class F>
  static STN_MEMBER void for_rows(const WindowTile& tile, int plane, F f) {
    constexpr int kAtOnce = kThreads >> LanesLog;
    const int left = tile.rows - static_cast<int>(threadIdx.x >> LanesLog);
#pragma unroll
    for (int k = 0; k < kWindowRows; k += kAtOnce)
      if (k < left) f(plane, k, k * kPitch + plane * kWindowWidth);
  }
};

// Those of the source of a warp.
struct Windows : WindowMap {
  T low[2], high[2];  // between which padding moves coordinates

  STN_MEMBER void find(const Descriptor& problem, const Generator<true>& generator, int n) {
    const Map& map = problem.feature_map;
    are_packed = K == 2 && map.stride[0] != 1 && map.channel_stride == 1 && problem.output.channel_stride == 1;
    take(map, problem.source, n, problem.channels);
    target = maps_of(problem.output, n);
    are_there = are_there && !generator.divides() && !pads_by(problem, Padding::reflection);
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      low[a] = unmirrored(T(-kLargestSize), problem, a).x;
      high[a] = unmirrored(T(2 * kLargestSize), problem, a).x;
    }
  }

  // Where padding moves a coordinate, and the pixel before it.
  STN_MEMBER T moved(T x, int a) const { return least_of(largest_of(x, low[a]), high[a]); }

  // The window of a tile. Every operation that leads from a pixel to the first of its taps is monotonous along rows and
  // along columns, rounding included: two corners of the tile have the extremes of a coordinate.
  STN_MEMBER WindowTile tile_at(const Descriptor& problem, const Place& place, const Generator<true>& generator) const {
    WindowTile tile = {place.x, place.row};
    tile.last_x = smaller(place.x + width_of(problem.target), problem.target.size[0]) - 1;
    tile.last_y = smaller(place.row + height_of(problem.target), problem.target.rows) - 1;
    tile.rows = 0;
    if (!are_there) return tile;
    int before[2], behind[2];
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      const T* ray = generator.rays.at + a * (D + 1);
      const bool rises = ray[0] >= T(0), falls = ray[1] >= T(0);
      const T least = generator.rays.ray(
                  a, {{rises ? tile.x : tile.last_x, falls ? tile.y : tile.last_y, 0}}),
              most = generator.rays.ray(
                  a, {{rises ? tile.last_x : tile.x, falls ? tile.last_y : tile.y, 0}});
      if (!(is_finite(least) & is_finite(most))) return tile;
      anchored(moved(least, a), before[a]);
      anchored(moved(most, a), behind[a]);
      before[a] -= K / 2 - 1;
      behind[a] += K / 2;
    }
    bound(tile, before[0], before[1], behind[0], behind[1]);
    return tile;
  }

  // An element of a row, or what padding puts there.
  STN_MEMBER T padded_element(const Descriptor& problem, int channel, int x, int y) const {
    if (K == 4 && pads_by(problem, Padding::border)) {
      x = larger(0, smaller(x, size - 1));
      y = larger(0, smaller(y, height - 1));
    }
    if (has(x, y)) return element(channel, x, y);
    T fill[1];
    if (are_packed) channel = ((x % step) + step) % step;
    fill_of(problem, channel, problem.fills != 0, fill);
    return fill[0];
  }
};

// A point of a tile: the cell of its first tap, and what taps weigh.
struct WindowPoint {
  int cell;
  T weight[D][K];

  // At a pixel that is given by numbers: up to the largest size they are exact.
  STN_MEMBER void find(const Windows& windows, const WindowTile& tile, const T* rays, T column, T line) {
    constexpr int kBefore = K / 2 - 1;
    int at[2];
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      const T* ray = rays + a * (D + 1);
      const T x = windows.moved(fused(ray[0], column, fused(ray[1], line, ray[2])), a);
      AxisTaps taps;
      weigh({x, T(1)}, anchored(x, at[a]), false, taps);
#pragma unroll
      for (int k = 0; k < K; ++k) weight[a][k] = taps.weight[k];
    }
    cell = at[1] * kPitch + at[0] * windows.step - ((tile.row + kBefore) * kPitch + kBefore * windows.step + tile.first);
  }
};

// How many tiles of the present map a thread block does together.
STN_FUNCTION int tiles_of_item(const Tiling& tiling, const TileLoop& loop, const Place& place) {
  return static_cast<int>(smaller(tiles_left(tiling, loop, place), static_cast<int64>(kWindowTiles)));
}

}  // namespace stn
