"""The Open Inference Protocol, version 2: what Triton's and KServe's clients speak.

Its messages are known to protobuf by their public names, which only one module of a process can
register: nothing but a server imports this, so that an SDK lives beside ``tritonclient``.
"""
