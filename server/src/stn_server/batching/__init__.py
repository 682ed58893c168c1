"""Data, decision, waiting, doing: `work`, `policy`, `batcher`, `devices`."""
