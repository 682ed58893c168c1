// The backward kernels for maps under matrices that padding does not fold.
#define STN_MIRRORS false
#include "gather.cuh"

STN_KERNEL(stn_reach, stn::kFarBlocks, stn::find_reaches)
STN_KERNEL(stn_gather_planes, stn::kGatherBlocks, stn::gather_tiles<false>)
STN_KERNEL(stn_gather_far_planes, stn::kFarBlocks, stn::gather_far_tiles<false>)
#if STN_AXES == 2
STN_KERNEL(stn_gather_interleaved, stn::kGatherBlocks, stn::gather_tiles<true>)
STN_KERNEL(stn_gather_far_interleaved, stn::kFarBlocks, stn::gather_far_tiles<true>)
#endif
