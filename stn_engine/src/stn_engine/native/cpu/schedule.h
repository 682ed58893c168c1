// Whole calls: items of any sizes, cut into tasks and run on threads.
#pragma once

#include <vector>

#include "kernels.h"
#include "pool.h"

namespace stn {

// V of every item.
void warp(const std::vector<Item>& items, const InstructionSet& isa, Threads threads);

// The gradients of every item that have memory.
void warp_gradients(const std::vector<Item>& items, const InstructionSet& isa, Threads threads);

}  // namespace stn
