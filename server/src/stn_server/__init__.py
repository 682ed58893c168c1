"""Batching gRPC server for spatial transformers and their exact gradients.

Owns RPC services, batching, metrics and lifecycle; the numerics are `stn_engine`'s, the wire is
`stn_proto`'s. Run it with `stn-server` or `python -m stn_server`.
"""
