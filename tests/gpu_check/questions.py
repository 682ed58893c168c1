"""What only a device answers: threads, warnings, graphs, and memory that runs out in the server."""

import threading
import traceback
import warnings

import torch

from gpu_check.devices import EMULATED, Findings, device
from stn_engine import Affine, warp, warp_gradients
from stn_server.batching.devices import Accelerator, Gpu
from support.memory import job_of
from support.strategies import random_gradients, random_warp

there = device()
findings = Findings("questions")


def operands(n=4):
    u = torch.randn(n, 3, 64, 64, device=there.device)
    return u, torch.eye(2, 3, device=there.device).repeat(n, 1, 1)


def fresh_thread():
    """The first launch of a thread that never touched the device."""
    u, theta = operands()
    results = []
    thread = threading.Thread(target=lambda: results.append(warp(u, Affine(theta))))
    thread.start()
    thread.join()
    there.synchronize()
    return torch.allclose(results[0], u, atol=1e-5)


def warnings_are_errors():
    """Nothing on the way warns."""
    u, theta = operands()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warp(u, Affine(theta))
        warp_gradients(u, u, Affine(theta))
    return True


def captured_graph():
    """A graph reads its operands anew at every replay, whatever was called in between."""
    u, theta = operands()
    warp(u, Affine(theta))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = warp(u, Affine(theta))
    for _ in range(64):  # these take the memory that the capture may have left
        other = torch.randn(4, 3, 64, 65, device=there.device)
        warp(other, Affine(theta))
    torch.cuda.synchronize()
    u.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    return torch.allclose(out, u, atol=1e-5)


def server_out_of_memory():
    """The server's runner says that the device is full, and goes on when it is not."""
    gpu = Gpu(torch.device("cuda:0"))
    jobs = [job_of(random_warp(n, dtype=torch.float32)) for n in range(8)]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    full = [type(outcome).__name__ for outcome in gpu.run(jobs, lambda: None)]
    torch.cuda.set_per_process_memory_fraction(1.0)
    well = [type(outcome).__name__ for outcome in gpu.run(jobs, lambda: None)]
    return [sorted(set(full)), sorted(set(well))]


def server_runs():
    """The server's runner, with batches forward and backward."""
    gpu = Accelerator(there.device) if EMULATED else Gpu(torch.device("cuda:0"))
    warps = [random_warp(n, dtype=torch.float32) for n in range(8)]
    for problems in (warps, [random_gradients(3, one) for one in warps]):
        outcomes = gpu.run([job_of(problem) for problem in problems], lambda: None)
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if failed:
            raise failed[0]
    return True


QUESTIONS = (fresh_thread, warnings_are_errors, server_runs)
ONLY_A_DEVICE_KNOWS = (captured_graph, server_out_of_memory)

if __name__ == "__main__":
    for question in (*QUESTIONS, *(() if EMULATED else ONLY_A_DEVICE_KNOWS)):
        try:
            finding = {"answer": question()}
        except Exception:  # noqa: BLE001 - an answer, too
            finding = {"exception": traceback.format_exc()[-1500:]}
        findings.add(question=question.__name__, **finding)
