"""The batcher: plain data, decisions, waiting, and computing on devices."""
