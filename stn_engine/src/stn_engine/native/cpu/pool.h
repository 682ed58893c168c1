// Threads that wait for work: one pool for the process, made when it is first needed.
#pragma once

#include <cstdint>
#include <functional>

namespace stn {

// Runs task(0) .. task(count - 1), each once and in any order, on up to `threads` threads of which the caller
// is one. Returns when all are done; the first exception that a task threw is thrown again. Calls from several
// threads at once are allowed: those that find the pool taken work alone.
void for_each_task(int64_t count, int threads, const std::function<void(int64_t)>& task);

}  // namespace stn
