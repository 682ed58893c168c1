"""Runs every kernel once on small problems; for tools that watch a process."""

import torch

from stn_engine import WarpSpec
from stn_engine.backends.cuda import CudaBackend
from support.on_device import on_device
from support.strategies import IMAGE, VOLUME, random_gradients, random_warp

CASES = [
    *(
        (kind, IMAGE)
        for kind in ("affine", "homography", "similarity", "thin_plate_spline", "grid")
    ),
    *((kind, VOLUME) for kind in ("affine", "flow")),
]

backend = CudaBackend()
for kind, sizes in CASES:
    for padding in ("zeros", "border", "reflection"):
        for channels in (3, 4):
            spec = WarpSpec(padding=padding)
            warp = random_warp(
                1, kind=kind, dtype=torch.float32, channels=channels, spec=spec, **sizes
            )
            if channels == 4:
                last = torch.channels_last if len(sizes["size"]) == 2 else torch.channels_last_3d
                warp = warp.bound(
                    warp.feature_map.contiguous(memory_format=last), warp.transform.parameters
                )
            problem = on_device(random_gradients(2, warp))
            backend.warp([problem.warp])
            backend.warp_gradients([problem])
torch.cuda.synchronize()
