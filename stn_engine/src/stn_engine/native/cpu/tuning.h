// What the CPU kernels, and the threads that run them, are tuned by: numbers that change how long they take, and no bit
// of a result but where they say so. `make bench-engine` judges them on the machine at hand, all rows of one group
// together: each helps some sizes at the cost of others.
#pragma once

#include <chrono>
#include <cstdint>

namespace stn {

// Numbers of a call, V's or those of G, below which a second thread is not awake in time.
constexpr int64_t kWorthAThread = 1 << 14;

// Numbers of a call below which it ends before another thread of Python has taken the interpreter over.
constexpr int64_t kWorthFreeing = 1 << 14;

// Numbers of a task: at least so many, to hide the taking of it; more in larger calls, as neighbouring pixels read the
// same lines, each of which a second thread would load anew; so few that every thread has some tasks.
constexpr int64_t kTaskSize = 1 << 14;
constexpr int64_t kMaxTaskSize = 1 << 18;
constexpr int64_t kTasksPerThread = 16;

// How often a thread looks for the next call before it goes to sleep, if the last one came soon: one to two hundred
// microseconds, the distance of calls in a training step. Where they come later it goes to sleep at once: to look then
// costs a client on the same host a tenth and more of its calls.
constexpr int kSpins = 4000;
constexpr std::chrono::microseconds kSoon{200};

// Target pixels that are worked on together. Fewer leave what is done once a block to be done more often, more do not
// fit the first cache with all that is known of them. Sums of gradients of parameters run over blocks, so that these
// depend on it.
constexpr int kBlock = 64;

// Target pixels of a chunk at most: the least that a thread takes at a time. Gradients of parameters are summed chunk
// by chunk, so that these depend on it.
constexpr int64_t kChunk = 4096;

// Blocks of which one channel is read after the other: so many that what neighbours read of a channel is still in the
// cache, so few that what is known of them is, too. With fewer channels than the second number one block is best.
constexpr int kBlocksTogether = 8;
constexpr int64_t kChannelsTogether = 4;

// How many rows of the target reads are announced to the cache ahead, which no hardware does along slanted lines.
constexpr int kRowsAhead = 8;

// Values of some points in some channels that wait in the first cache before they are stored.
constexpr int kBuffer = 1024;

// A tile of the gradient of a map: sums of its cells, of taps and channels, that stay in the second cache.
constexpr int kTileBytes = 52 * 1024;
constexpr int kKeptBytes = 20 * 1024;         // cells and weights beside it, kept for the next channels
constexpr int kKeepingTileBytes = 44 * 1024;  // of a tile beside which something is kept
constexpr int kFewestCells = 700;             // of a tile of several channels: smaller ones have too much border
constexpr int kMaxGroup = 4;                  // channels that are summed at a time
constexpr int kMaxGroups = 16;                // one after the other in the same tile, by the same thread
constexpr int kMaxBlocks = 128;               // whose cells and weights are kept

// Where a gradient is scattered: products that are found before they are added, and channels that are added at a time.
constexpr int kProducts = 1024;
constexpr int kTogether = 4;

// Bytes of which rows are a multiple if they meet in the same few sets of the first cache.
constexpr int kColliding = 4096;

// Sums of a band whose channels stand side by side while points are added to them: they stay in the second cache.
constexpr int kScatterBytes = 256 * 1024;

}  // namespace stn
