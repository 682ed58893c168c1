"""The first backend that can, or all the reasons why none can."""

import re
from dataclasses import dataclass, field

import pytest
import torch

from stn_engine import BackendUnavailableError, EngineError, ParameterError, dispatch, warp_ragged
from stn_engine.backends import cpu
from stn_engine.backends.cpu import CpuBackend
from stn_engine.backends.reference import ReferenceBackend
from stn_engine.backends.torch import TorchBackend
from support.strategies import random_gradients, random_warp


@dataclass
class PickyBackend:
    """Takes problems of one batch size and remembers what it ran."""

    name: str
    batch_size: int
    ran: list = field(default_factory=list)

    def unsupported_reasons(self, problem):
        if problem.batch_size == self.batch_size:
            return ()
        return (f"only N = {self.batch_size}", "on principle")

    def warp(self, problems, out=None):
        self.ran.append(list(problems))
        return TorchBackend().warp(problems, out)

    def warp_gradients(self, problems, out=None):
        self.ran.append(list(problems))
        return TorchBackend().warp_gradients(problems, out)


def warps_of(*batch_sizes):
    return [random_warp(seed, batch=(n, n)) for seed, n in enumerate(batch_sizes)]


def test_select_takes_the_first_that_can():
    """Order is preference."""
    one, two, any_size = PickyBackend("one", 1), PickyBackend("two", 2), TorchBackend()
    (problem,) = warps_of(2)
    assert dispatch.select(problem, (one, two, any_size)) is two
    assert dispatch.select(problem, (one, any_size, two)) is any_size


def test_select_tells_every_reason():
    """Nobody has to guess why no backend ran."""
    (problem,) = warps_of(3)
    with pytest.raises(
        BackendUnavailableError,
        match=r"one: only N = 1, on principle; two: only N = 2, on principle",
    ) as caught:
        dispatch.select(problem, (PickyBackend("one", 1), PickyBackend("two", 2)))
    assert caught.value.reasons == {
        "one": ("only N = 1", "on principle"),
        "two": ("only N = 2", "on principle"),
    }
    assert isinstance(caught.value, EngineError)


def test_problems_are_split_by_backend_and_put_back_in_order():
    """Each backend gets all of its problems at once."""
    one, two = PickyBackend("one", 1), PickyBackend("two", 2)
    problems = warps_of(1, 2, 1, 2)
    results = dispatch.warp(problems, (one, two))
    assert one.ran == [[problems[0], problems[2]]]
    assert two.ran == [[problems[1], problems[3]]]
    for result, problem in zip(results, problems, strict=True):
        assert torch.equal(result, TorchBackend().warp([problem])[0])


def test_gradients_are_dispatched_like_warps():
    """Gradient problems answer for the batch size of their warp."""
    one, two = PickyBackend("one", 1), PickyBackend("two", 2)
    problems = [random_gradients(5, warp) for warp in warps_of(2, 1)]
    dispatch.warp_gradients(problems, (one, two))
    assert (one.ran, two.ran) == ([[problems[1]]], [[problems[0]]])


def test_one_impossible_problem_stops_the_call_before_any_work():
    """Nothing runs when a problem in the list cannot."""
    one = PickyBackend("one", 1)
    with pytest.raises(BackendUnavailableError, match="one: only N = 1"):
        dispatch.warp(warps_of(1, 2), (one,))
    assert one.ran == []


@pytest.mark.parametrize("backend", [CpuBackend(), ReferenceBackend()], ids=lambda one: one.name)
def test_backends_of_the_host_read_host_memory_only(backend):
    """Every kind of problem is refused elsewhere, with the device named."""
    warp = random_warp(1)
    assert backend.unsupported_reasons(warp) == ()
    away = type(warp)(
        warp.feature_map.to("meta"), warp.transform.with_parameters(warp.transform.theta.to("meta"))
    )
    reasons = ("computes in host memory, the operands are on meta",)
    assert backend.unsupported_reasons(away) == reasons
    with pytest.raises(BackendUnavailableError, match=f"{backend.name}: computes in host memory"):
        dispatch.select(away, (backend,))


def test_without_its_native_module_the_cpu_backend_says_so(monkeypatch):
    """An installation without a compiler still runs, and tells why it is slow."""
    monkeypatch.setattr(cpu, "MISSING", "the native module is not usable: no such file")
    (problem,) = warps_of(1)
    assert CpuBackend().unsupported_reasons(problem) == (cpu.MISSING,)
    assert dispatch.select(problem).name == "torch"


def test_backend_order():
    """The fused kernels come first, what runs anywhere next, and the oracle is the last resort."""
    assert [backend.name for backend in dispatch.BACKENDS] == [
        "cuda",
        "cpu",
        "torch",
        "reference",
    ]


@pytest.fixture
def force(monkeypatch):
    """Sets STN_BACKEND as if it had been there from the start."""

    def set_variable(name):
        monkeypatch.setenv(dispatch.BACKEND_VARIABLE, name)
        dispatch.candidates.cache_clear()

    yield set_variable
    monkeypatch.undo()
    dispatch.candidates.cache_clear()


@pytest.mark.parametrize("backend", dispatch.BACKENDS, ids=lambda backend: backend.name)
def test_a_forced_backend_is_the_only_candidate(force, backend):
    """STN_BACKEND names it."""
    force(backend.name)
    assert dispatch.candidates() == (backend,)


def test_a_forced_backend_runs_what_another_would_have_run(force):
    """The oracle is last in the order, and first where it is named."""
    (problem,) = warps_of(2)
    force("reference")
    assert dispatch.select(problem).name == "reference"
    assert torch.equal(warp_ragged([problem])[0], ReferenceBackend().warp([problem])[0])


def test_an_empty_name_forces_nothing(force):
    """A variable set to nothing is a variable not set."""
    force("")
    assert dispatch.candidates() == dispatch.BACKENDS


def test_the_environment_is_read_once(force, monkeypatch):
    """Later changes of the variable go unnoticed."""
    force("reference")
    assert [backend.name for backend in dispatch.candidates()] == ["reference"]
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "torch")
    assert [backend.name for backend in dispatch.candidates()] == ["reference"]


def test_an_unknown_forced_backend_is_an_error_that_lists_the_known(force):
    """On every call, until the name is right."""
    force("tortch")
    known = tuple(backend.name for backend in dispatch.BACKENDS)
    message = rf"^STN_BACKEND: expected {re.escape(' | '.join(known))}, got 'tortch'"
    for _ in range(2):
        with pytest.raises(ParameterError, match=message) as caught:
            dispatch.warp(warps_of(1))
        assert (caught.value.value, caught.value.allowed) == ("tortch", known)


def test_a_forced_backend_that_cannot_says_why(force):
    """Nobody steps in for it."""
    force("reference")
    warp = random_warp(1)
    away = warp.bound(*(operand.to("meta") for operand in warp.operands))
    with pytest.raises(
        BackendUnavailableError, match=r"none \(reference: computes in host memory"
    ) as caught:
        dispatch.warp([away])
    assert list(caught.value.reasons) == ["reference"]
