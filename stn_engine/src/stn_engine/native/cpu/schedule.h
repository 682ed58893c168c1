// Whole calls: problems of any sizes, cut into tasks and run on threads.
#pragma once

#include <vector>

#include "kernels.h"
#include "pool.h"

namespace stn {

// V of every problem.
void warp(const std::vector<Problem>& problems, const InstructionSet& isa, Threads threads);

// The gradients of every problem that have memory.
void warp_gradients(const std::vector<Problem>& problems, const InstructionSet& isa, Threads threads);

}  // namespace stn
