"""Problems as raw memory, and raw memory as tensors."""

import torch

from stn_engine.adapters import on_bytes


def bytes_of(tensor):
    """The bytes of a dense tensor, in the order in which they lie in memory."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.view(torch.uint8).numpy().tobytes()


def job_of(problem):
    """A problem without memory, and the bytes of its operands."""
    dense = [operand.clone() for operand in problem.operands]  # what is dense keeps its strides
    likes = [torch.empty_like(operand, device="meta") for operand in dense]
    return on_bytes.Job(problem.bound(*likes), [bytes_of(operand) for operand in dense])


def results_from(problem, results):
    """The results of a problem as tensors over their bytes."""
    pairs = zip(results, on_bytes.results_of(problem), strict=True)
    return [_tensor(memory, like) for memory, like in pairs]


def _tensor(memory, like):
    if not len(memory):  # torch takes no buffer without bytes
        return torch.empty(like.shape, dtype=like.dtype)
    return torch.frombuffer(bytearray(memory), dtype=like.dtype).as_strided(
        like.shape, like.stride()
    )
