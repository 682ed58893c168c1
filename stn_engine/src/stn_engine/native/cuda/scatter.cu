// The kernels of the feature map's gradient under any other transform or padding.
#include "scatter.cuh"

STN_KERNEL(stn_peaks, stn::kBlocks, stn::find_peaks)
STN_KERNEL(stn_scatter_planes, stn::kBlocks, stn::scatter_tiles<false>)
STN_KERNEL(stn_collect_planes, stn::kBlocks, stn::collect_tiles<false>)
#if STN_AXES == 2
STN_KERNEL(stn_scatter_interleaved, stn::kBlocks, stn::scatter_tiles<true>)
STN_KERNEL(stn_collect_interleaved, stn::kBlocks, stn::collect_tiles<true>)
#endif
