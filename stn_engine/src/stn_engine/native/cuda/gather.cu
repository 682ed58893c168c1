// The kernels of the feature map's gradient under matrices, where padding mirrors nothing.
#define STN_MIRRORS false
#include "gather.cuh"

STN_KERNEL(stn_preimage, stn::kFarBlocks, stn::find_preimages)
STN_KERNEL(stn_gather_planes, stn::kGatherBlocks, stn::gather_tiles<false>)
STN_KERNEL(stn_gather_far_planes, stn::kFarBlocks, stn::gather_far_tiles<false>)
#if STN_AXES == 2
STN_KERNEL(stn_gather_interleaved, stn::kGatherBlocks, stn::gather_tiles<true>)
STN_KERNEL(stn_gather_far_interleaved, stn::kFarBlocks, stn::gather_far_tiles<true>)
#endif
