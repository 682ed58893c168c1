"""What the host of the kernels is tuned by: numbers that change how long a launch takes.

Those of the kernels themselves stand in ``native/cuda/tuning.cuh``. ``make bench-gpu`` judges both
on a GPU; what a call costs the host is seen without one, by ``python -m bench.bench_cuda_host``.
"""

THREADS = 256
"""The threads of a block: eight warps, which share one tile, its descriptor and its matrix."""

UNITS_PER_TILE = 1024
"""A unit is what one thread does at a time: a pixel, in as many channels as move together. With
more of them a tile is found and its matrix made less often; with fewer, small maps keep more
multiprocessors busy. Partial sums are those of tiles: gradients of parameters depend on it."""

MOST_TILES = 2
"""That a block runs over, one after the other, where there are many."""

FILLS = 8
"""Blocks for each multiprocessor, of which it runs three or four at a time: so many that the
device is busy to the end of a launch."""

FAR_FILLS = 2
"""The same for kernels that mostly find nothing to do: no more than are there at a time."""
