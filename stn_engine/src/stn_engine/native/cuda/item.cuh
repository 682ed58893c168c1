// One problem of a launch, as the host describes it: the rows of the table are copies of `Item`.
//
// Axes are in the order x, y, z; strides are in elements. A block works on one tile of one item: it finds the
// item by the first tiles of all of them, and copies its row into shared memory.
#pragma once

#include "storage.cuh"

namespace stn {

// A batch of maps with channels (U, V, G), or of points with components (grid, flow).
struct Map {
  char* data;
  int64 batch_stride, channel_stride;
  int stride[kMaxAxes];
  int batch;
};

// How the pixels of a map are cut: tiles of 8·2^width_log by 4·2^height_log pixels of its rows along x, of which
// there are sizes[1]·sizes[2].
struct Tiling {
  int size[kMaxAxes];
  int rows;
  int width_log, height_log;
  int across, count;
};

struct Item {
  Map source, target, by_source, points, by_points;
  const char* parameters;  // (batch, count), contiguous: theta, or the source points of a spline
  char* by_parameters;
  const char* own_parameters;  // those of a similarity before it became theta
  const double* factors;       // (entries, count + 1): the matrix is linear in theta; or unit changes of points
  const double* basis;         // spline: (count / 2, target pixels)
  const double* fill;          // one per channel; null where all are 0
  double* sums;                // partial sums of the parameters' gradient, entries per tile
  char* accumulators;          // of a scattered gradient of U
  uint64* peaks;               // its largest |G|, as bits of a float64
  struct Reach* reaches;       // one per theta
  Tiling from, to;             // of the source, of the target
  int channels, batch, parameter_batch;
  int count, entries;  // parameters of one theta; entries of its matrix
  int padding, unit, kind, own_kind;
  int wide, own_wide;  // whether parameters or points are float64
  int zero_subgradient;
  int fills;  // whether taps outside read `fill`
};

static_assert(sizeof(Item) == STN_ITEM_BYTES, "the host describes items otherwise");

struct Launch {
  const Item* items;
  const int64* starts;  // the first tile of every item
  int64 tiles;
  int64 count;  // of items
};

// Where a block works.
struct Place {
  int n;
  int x, row;  // of its first pixel
};

// What shared memory holds of a launch; no thread writes it before all have read it.
struct Held {
  int64 last;           // behind the tiles of the block
  int64 first, behind;  // tiles of the item
  int n;                // whose matrix, of that item; -1: nobody's
};

STN_FUNCTION Held& held() {
  __shared__ Held state;
  return state;
}

// The tiles of a block: neighbours, so that most of them find their item in shared memory, and its matrix as well.
struct Run {
  int64 tile;

  STN_MEMBER explicit Run(const Launch& launch) {
    const int64 count = (launch.tiles + gridDim.x - 1) / gridDim.x;
    tile = blockIdx.x * count;
    if (threadIdx.x == 0) {
      held().last = tile + count < launch.tiles ? tile + count : launch.tiles;
      held().behind = 0;
    }
    __syncthreads();
  }

  STN_MEMBER bool goes_on() const { return tile < held().last; }
  STN_MEMBER int64 tile_of_item() const { return tile - held().first; }
};

// Every thread must call it, and none returns before all have: what it says holds until the next call, and shared
// memory that was read before may be written after.
STN_FUNCTION const Item& item_of(const Launch& launch, const Run& run) {
  __shared__ Item item;
  if (run.tile < held().behind) {
    __syncthreads();
    return item;
  }
  const int64 tile = run.tile;
  int below = 0;
#pragma unroll 1
  for (int64 base = 0; base < launch.count; base += kThreads) {
    const int64 at = base + threadIdx.x;
    below += __syncthreads_count(at < launch.count && fetched(launch.starts + at) <= tile);
  }
  const Item* found = launch.items + (below - 1);
  if (threadIdx.x == 0) {
    held().first = fetched(launch.starts + (below - 1));
    held().behind = below < launch.count ? fetched(launch.starts + below) : launch.tiles;
    held().n = -1;
  }
#pragma unroll 1
  for (int word = threadIdx.x; word < static_cast<int>(sizeof(Item) / 8); word += kThreads)
    reinterpret_cast<int64*>(&item)[word] = fetched(reinterpret_cast<const int64*>(found) + word);
  __syncthreads();
  return item;
}

STN_FUNCTION Place place_of(const Tiling& tiling, int64 index) {
  // 64-bit division is slow; few launches need it.
  const bool small = index >> 32 == 0;
  const int n =
      small ? static_cast<int>(static_cast<unsigned>(index) / tiling.count) : static_cast<int>(index / tiling.count);
  const int tile = static_cast<int>(index - static_cast<int64>(n) * tiling.count);
  return {n, tile % tiling.across << (tiling.width_log + 3), tile / tiling.across << (tiling.height_log + 2)};
}

// Pixel of a map.
struct Pixel {
  int at[kMaxAxes];
};

STN_FUNCTION int pixels_of(const Tiling& tiling) { return 32 << (tiling.width_log + tiling.height_log); }

// Pixel p of a tile; neighbouring p lie in patches of 8 x 4. False if the map ends before it.
STN_FUNCTION bool pixel_of(const Place& place, const Tiling& tiling, int p, Pixel& pixel) {
  const int patch = p >> 5, across = patch & ((1 << tiling.width_log) - 1), down = patch >> tiling.width_log;
  const int x = place.x + across * 8 + (p & 7), row = place.row + down * 4 + (p >> 3 & 3);
  if (x >= tiling.size[0] || row >= tiling.rows) return false;
  pixel.at[0] = x;
  pixel.at[1] = row;
  pixel.at[2] = 0;
  if (tiling.size[2] > 1) {
    pixel.at[1] = row % tiling.size[1];
    pixel.at[2] = row / tiling.size[1];
  }
  return true;
}

STN_FUNCTION int64 lattice_index(const Tiling& tiling, const Pixel& pixel) {
  return pixel.at[0] +
         static_cast<int64>(tiling.size[0]) * (pixel.at[1] + static_cast<int64>(tiling.size[1]) * pixel.at[2]);
}

// Index of an item in an operand that may be broadcast.
STN_FUNCTION int shared_index(int n, int batch) { return batch == 1 ? 0 : n; }

template <int Axes>
STN_FUNCTION int64 offset_of(const Map& map, int n, const Pixel& pixel) {
  int64 offset = n * map.batch_stride;
  for (int a = 0; a < Axes; ++a) offset += static_cast<int64>(pixel.at[a]) * map.stride[a];
  return offset;
}

STN_FUNCTION double number_at(const char* data, int wide, int64 index) {
  return wide ? fetched(reinterpret_cast<const double*>(data) + index)
              : static_cast<double>(fetched(reinterpret_cast<const float*>(data) + index));
}

STN_FUNCTION void put_number(char* data, int wide, int64 index, double value) {
  if (wide) reinterpret_cast<double*>(data)[index] = value;
  else reinterpret_cast<float*>(data)[index] = static_cast<float>(value);
}

}  // namespace stn

#define STN_ARGUMENTS const stn::Item *items, const stn::int64 *starts, stn::int64 tiles, stn::int64 count
#define STN_LAUNCH \
  stn::Launch { items, starts, tiles, count }
