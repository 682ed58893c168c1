"""Adapters between callers' data and addresses: what may be read and written where."""
