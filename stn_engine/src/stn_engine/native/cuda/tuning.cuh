// What the kernels are tuned by: numbers that change how long they take, and no bit of a result but where they say so.
// Those of their host stand in `backends/cuda/tuning.py`. `make bench-gpu` judges them on a GPU, all rows of one group
// together: each helps some programs at the cost of others. Registers and spills are seen without one, in what the
// compiler makes of a program (`tests/engine/test_cuda_programs.py`).
#pragma once

#include "storage.cuh"

namespace stn {

// What a program is compiled for.
using S = STN_STORAGE;
using T = Compute<S>;
constexpr int D = STN_AXES;
constexpr int K = taps_of(STN_INTERPOLATION);  // taps per axis

// Blocks of threads that share a multiprocessor, for which the compiler bounds the registers of a thread: more of them
// hide more of the time that reads take, until registers no longer suffice and go to memory.
constexpr bool kIsWide = sizeof(T) == 8 || D == 3;  // needs about twice the registers
constexpr int kBlocks = kIsWide ? 2 : K == 4 || sizeof(S) == 1 ? 3 : 4;
constexpr int kVectorBlocks = kIsWide || K == 4 ? 2 : 3;
constexpr int kFieldBlocks = kIsWide ? 2 : 3;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kGatherBlocks = 2;  // the compiler takes more registers for these devices
#else
constexpr int kGatherBlocks = kIsWide ? 2 : 3;
#endif
constexpr int kFarBlocks = 2;
constexpr int kSlopeBlocks = sizeof(T) == 8 ? 1 : kIsWide || K == 4 ? 2 : 3;
constexpr int kVectorSlopeBlocks = sizeof(T) == 8 ? 1 : 2;
constexpr int kMomentBlocks = kFieldBlocks;
constexpr int kObjectiveBlocks = kSlopeBlocks;

// Planes of channels that a thread walks together: more share what is known of a point, and take registers.
constexpr int kPlanes = K == 4 ? 1 : D == 2 ? 3 : 2;

// Whether registers hold all taps of a group of channels, so that all are read before the first is used.
constexpr bool kHoldsTaps = K < 4;

// Pixels that one thread does together where a tile has enough of them: they share what is known of a tile, and all
// their taps are under way before the first is used.
constexpr int kQuad = 4;

// Pixels of them that are done together at the border of a map.
constexpr int kPair = 2;

// Units of interleaved channels that a thread reads before it joins the first.
constexpr int kAtOnce = K == 4 || kVector<S> > 4 ? 1 : 2;

// How many rows of the source a row of the target may lead through, for each column, before the lanes of a warp are
// spread along columns of the target.
constexpr double kSteep = 1.0;

// Candidates that one thread gathers by itself: pixels with more of them are left to a whole warp, which adds in
// another order.
constexpr int kFewCandidates = D == 2 ? 64 : 128;

}  // namespace stn
