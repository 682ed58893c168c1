// Threads that compute beside the caller's: a pool of our own, or those that OpenMP keeps for it.
#pragma once

#include <cstdint>
#include <functional>

namespace stn {

struct Threads {
  int count;  // with the caller's
  // Whether torch computes in the same thread before and after. Its OpenMP threads then spin for milliseconds and
  // wait for the next region; a second pool would share their cores with them and take twice as long. Who calls
  // from threads of their own that torch never sees wants our pool instead, which goes to sleep at once.
  bool beside_torch = false;
};

// Runs task(0) .. task(count - 1), each once and in any order, on up to `threads` threads of which the caller
// is one. Returns when all are done; the first exception that a task threw is thrown again. Calls from several
// threads at once are allowed: those that find the pool taken work alone.
void for_each_task(int64_t count, Threads threads, const std::function<void(int64_t)>& task);

}  // namespace stn
