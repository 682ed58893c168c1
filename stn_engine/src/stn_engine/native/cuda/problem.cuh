// Which problem of a launch a thread block works on, and where: `structures.h` says how the host describes it.
//
// Axes are in the order x, y, z; strides are in elements. A thread block works on one tile of one problem at a time.
// One problem comes with the launch. Of several there is a table, in which a block finds its own by the first tiles of
// all. Either way its descriptor is copied into shared memory.
#pragma once

#include "storage.cuh"

namespace stn {

// Where a tile lies.
struct Place {
  int n;
  int x, row;  // of its first pixel
};

// What shared memory holds of a launch; no thread writes it before all have read it.
struct Held {
  Descriptor problem;   // that of the present tile
  int64 last;           // behind the tiles of the thread block
  int64 first, behind;  // tiles of the problem
  int n;                // of whose theta the matrix is there; -1: of none
};

STN_FUNCTION Held& held() {
  __shared__ Held state;
  return state;
}

// Takes over a descriptor, a word each thread; `word(k)` reads one. Everybody has to meet before it is there.
template <class Word>
STN_FUNCTION void hold_problem(int64 first, int64 behind, Word word) {
  if (threadIdx.x == 0) {
    held().first = first;
    held().behind = behind;
    held().n = -1;
  }
#pragma unroll 1
  for (int k = threadIdx.x; k < static_cast<int>(sizeof(Descriptor) / 8); k += kThreads)
    reinterpret_cast<int64*>(&held().problem)[k] = word(k);
}

// The tiles of a thread block are neighbours, so that most of them find their problem in shared memory, and its matrix
// as well.
struct TileLoop {
  int64 tile;

  STN_MEMBER explicit TileLoop(const Launch& launch) {
    const int64 count = (launch.tiles + gridDim.x - 1) / gridDim.x;
    tile = blockIdx.x * count;
    if (threadIdx.x == 0) {
      held().last = tile + count < launch.tiles ? tile + count : launch.tiles;
      held().behind = 0;
    }
    if (launch.count == 1)
      hold_problem(0, launch.tiles, [&](int k) { return reinterpret_cast<const int64*>(&launch.problem)[k]; });
    __syncthreads();
  }

  STN_MEMBER bool goes_on() const { return tile < held().last; }
  STN_MEMBER int64 tile_of_problem() const { return tile - held().first; }
};

// The descriptor of the present tile. Every thread must call it, and none returns before all have: what it says holds
// until the next call, and shared memory that was read before may be written after.
STN_FUNCTION const Descriptor& problem_of(const Launch& launch, const TileLoop& loop) {
  if (loop.tile < held().behind) {
    __syncthreads();
    return held().problem;
  }
  int below = 0;
#pragma unroll 1
  for (int64 base = 0; base < launch.count; base += kThreads) {
    const int64 at = base + threadIdx.x;
    below += __syncthreads_count(at < launch.count && fetched(launch.starts + at) <= loop.tile);
  }
  const int64* found = reinterpret_cast<const int64*>(launch.table + (below - 1));
  hold_problem(fetched(launch.starts + (below - 1)),
               below < launch.count ? fetched(launch.starts + below) : launch.tiles,
               [&](int k) { return fetched(found + k); });
  __syncthreads();
  return held().problem;
}

STN_FUNCTION Place place_of(const Tiling& tiling, int64 index) {
  // 64-bit division is slow; few launches need it.
  const bool small = index >> 32 == 0;
  const int n =
      small ? static_cast<int>(static_cast<unsigned>(index) / tiling.count) : static_cast<int>(index / tiling.count);
  const unsigned tile = static_cast<unsigned>(index - static_cast<int64>(n) * tiling.count), across = tiling.across;
  return {n, static_cast<int>(tile % across) << (tiling.width_log + kPatchWidthLog),
          static_cast<int>(tile / across) << (tiling.height_log + kPatchHeightLog)};
}

// How many tiles of the present map a thread block has, from the present one on.
STN_FUNCTION int64 tiles_left(const Tiling& tiling, const TileLoop& loop, const Place& place) {
  return smaller(held().first + static_cast<int64>(place.n + 1) * tiling.count, held().last) - loop.tile;
}

// A pixel of a map.
struct Pixel {
  int at[kMaxAxes];
};

STN_FUNCTION int width_of(const Tiling& tiling) { return 1 << (tiling.width_log + kPatchWidthLog); }
STN_FUNCTION int height_of(const Tiling& tiling) { return 1 << (tiling.height_log + kPatchHeightLog); }
STN_FUNCTION int pixels_of(const Tiling& tiling) { return kWarp << (tiling.width_log + tiling.height_log); }

// Where pixel p of a tile lies in it, counted patch by patch.
STN_FUNCTION void place_in_tile(const Tiling& tiling, int p, int& x, int& y) {
  const int patch = p >> (kPatchWidthLog + kPatchHeightLog), across = patch & ((1 << tiling.width_log) - 1),
            down = patch >> tiling.width_log;
  x = (across << kPatchWidthLog) + (p & ((1 << kPatchWidthLog) - 1));
  y = (down << kPatchHeightLog) + (p >> kPatchWidthLog & ((1 << kPatchHeightLog) - 1));
}

// Pixel p of a tile as a pixel of the map; false if the map ends before it.
STN_FUNCTION bool pixel_of(const Place& place, const Tiling& tiling, int p, Pixel& pixel) {
  int x, row;
  place_in_tile(tiling, p, x, row);
  x += place.x;
  row += place.row;
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

// Index of a batch item in an operand that may be broadcast.
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
  if (wide) in_device_memory(reinterpret_cast<double*>(data))[index] = value;
  else in_device_memory(reinterpret_cast<float*>(data))[index] = static_cast<float>(value);
}

// Where number k of batch item n is.
STN_FUNCTION int64 index_of(const Numbers& numbers, int n, int k) {
  return n * numbers.batch_stride + k / numbers.columns * numbers.row_stride +
         k % numbers.columns * numbers.column_stride;
}

STN_FUNCTION double number_of(const Numbers& numbers, int n, int k) {
  return number_at(numbers.data, numbers.wide, index_of(numbers, n, k));
}

STN_FUNCTION void put_number(const Numbers& numbers, int n, int k, double value) {
  put_number(numbers.data, numbers.wide, index_of(numbers, n, k), value);
}

// Number k of the gradient of a theta: the transpose of the factors, times the gradient of the matrix.
STN_FUNCTION double grad_theta_of(const Descriptor& problem, int k, const double* grad_matrix) {
  double sum = 0.0;
#pragma unroll 3
  for (int e = 0; e < problem.entries; ++e)
    sum = fused(fetched(problem.factors + e * (problem.count + 1) + k), grad_matrix[e], sum);
  return sum;
}

}  // namespace stn

// By value, so that nothing has to be copied to the device for one problem.
#define STN_ARGUMENTS const __grid_constant__ stn::Launch launch
