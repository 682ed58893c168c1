"""Exceptions travel: out of worker processes, and into copies."""

import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
from concurrent.futures import ProcessPoolExecutor

import grpc
import pytest
import torch

from stn_engine import ShapeError
from stn_proto.ttrpc import Status
from stn_server.http2.frames import Code
from support.in_workers import warp_of_columns

PACKAGES = ("stn_proto", "stn_engine", "stn_server", "stn_client")
SAMPLES = {
    "str": "words",
    "int": 3,
    "float": 0.5,
    "float | str": "many",
    "float | None": 1.5,
    "bool": True,
    "object": ("anything", 1),
    "Sequence[object]": ("one", "other"),
    "Sequence[int]": (1, 2),
    "Sequence[Shape]": [("N", 2, 3)],
    "Sequence[torch.dtype]": [torch.float32],
    "torch.dtype": torch.float16,
    "Mapping[str, torch.device]": {"theta": torch.device("cpu")},
    "Mapping[str, tuple[str, ...]]": {"cpu": ("no compiler",)},
    "Sequence[tuple[str, str]]": [("theta", "too long")],
    "tuple[str, ...]": ("this", "that"),
    "Status": Status(code=3, message="words"),
    "StatusCode | None": grpc.StatusCode.INTERNAL,
    "grpc.StatusCode": grpc.StatusCode.CANCELLED,
    "Code": Code.PROTOCOL_ERROR,
}
"""A value for every annotation of a parameter."""


def all_exceptions():
    """Every exception class of the four packages, whichever module says that it is its own."""
    for package in map(importlib.import_module, PACKAGES):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__"):
                continue
            module = importlib.import_module(found.name)
            for _, one in inspect.getmembers(module, inspect.isclass):
                own = one.__module__.partition(".")[0] == package.__name__
                if issubclass(one, BaseException) and own:
                    yield one


def annotation_of(parameter):
    """As source text, whatever `from __future__ import annotations` made of it."""
    found = parameter.annotation
    text = found if isinstance(found, str) else inspect.formatannotation(found)
    return text.replace("collections.abc.", "").replace(
        "Sequence[Sequence[int | str]]", "Sequence[Shape]"
    )


def arguments_of(kind):
    """Positional and keyword arguments for each parameter of its constructor, defaults included."""
    positional, keywords = [], {}
    for one in kind.__mro__:
        if "__init__" not in vars(one) or not inspect.isfunction(one.__init__):
            continue
        parameters = list(inspect.signature(one.__init__).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind == parameter.KEYWORD_ONLY:
                keywords[parameter.name] = SAMPLES[annotation_of(parameter)]
            elif parameter.kind == parameter.POSITIONAL_OR_KEYWORD and one is first_of(kind):
                positional.append(SAMPLES[annotation_of(parameter)])
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return positional or ["words"] * (first_of(kind) is None), keywords


def first_of(kind):
    """The class whose constructor of Python code is called; None if there is none."""
    return next(
        (one for one in kind.__mro__ if inspect.isfunction(vars(one).get("__init__"))), None
    )


WAYS = {
    **{
        f"pickle, protocol {protocol}": lambda error, protocol=protocol: pickle.loads(
            pickle.dumps(error, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", sorted(set(all_exceptions()), key=repr), ids=repr)
def test_exceptions_survive_a_journey(kind, way):
    """Type, text, arguments and facts are those that were raised."""
    positional, keywords = arguments_of(kind)
    error = kind(*positional, **keywords)
    error.add_note("in layer 3")
    arrived = WAYS[way](error)
    assert arrived is not error
    assert type(arrived) is kind
    assert str(arrived) == str(error)
    assert arrived.args == error.args
    assert vars(arrived) == vars(error)


def test_the_packages_have_exceptions():
    """The walk finds those that users are told of, from every package."""
    found = {f"{one.__module__.partition('.')[0]}.{one.__name__}" for one in all_exceptions()}
    assert found >= {
        "stn_proto.WireFormatError",
        "stn_engine.ShapeError",
        "stn_engine.BackendUnavailableError",
        "stn_server.OverloadedError",
        "stn_server.ConfigError",
        "stn_client.InvalidRequestError",
        "stn_client.ContainerError",
    }


SPAWN = multiprocessing.get_context("spawn")
WRONG_SHAPE = r"^theta: expected shape \(N, 2, 3\) or \(N, 3, 4\), got \(1, 2, 4\)"


def test_a_wrong_shape_in_a_pool_reaches_the_parent():
    """And the pool goes on."""
    with SPAWN.Pool(1) as pool:
        with pytest.raises(ShapeError, match=WRONG_SHAPE) as caught:
            pool.apply_async(warp_of_columns, (4,)).get(timeout=60)
        assert caught.value.actual_shape == (1, 2, 4)
        assert pool.apply_async(warp_of_columns, (3,)).get(timeout=60) == (1, 1, 2, 2)


def test_a_wrong_shape_in_an_executor_reaches_the_parent():
    """And the executor is not broken."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as executor:
        with pytest.raises(ShapeError, match=WRONG_SHAPE):
            executor.submit(warp_of_columns, 4).result(timeout=60)
        assert executor.submit(warp_of_columns, 3).result(timeout=60) == (1, 1, 2, 2)
