"""The Open Inference Protocol: the same service for clients of Triton and KServe."""
