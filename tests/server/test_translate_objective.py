"""Messages of objectives to problems, and what is wrong with others."""

import numpy as np
import pytest
import torch

from stn_engine import Comparison, Domain, Loss
from stn_proto import get_tensor, split
from stn_proto.v1 import objective_pb2
from stn_server.batching.work import Finished, Operation
from stn_server.errors import InvalidRequestError, ResultTooLargeError, UnsupportedError
from support.bad_requests import objective_request, ramp, replace, theta
from support.harness import decode


def test_an_objective_is_what_the_message_says():
    """Operands in the order of the engine, what a batch must share, and the cost."""
    request = objective_request()
    task = decode(request, "Objective")
    problem, operands, *_ = task.job
    assert task.key.operation is Operation.OBJECTIVE
    arrays = ramp(1, 3, 4, 5), theta(), ramp(1, 3, 6, 7), ramp(1, 1, 6, 7)
    assert [bytes(one) for one in operands] == [one.tobytes() for one in arrays]
    assert problem.output_shape == (2, 3, 6, 7)
    assert (problem.comparison, problem.needs) == (Comparison(), ("gradient",))
    assert task.cost.samples == 2 * 6 * 7
    results_bytes = 2 * (8 + 8 + 4 * 6)  # value, count and gradient: V is never in memory
    assert task.cost.size_bytes == request.ByteSize() + results_bytes


def test_every_option_arrives():
    """None of them at its default, and no weights."""
    request = objective_request()
    request.ClearField("weights")
    del request.payloads[3:]
    request.loss = objective_pb2.LOSS_HUBER
    request.delta = 0.5
    request.domain = objective_pb2.DOMAIN_ALL
    request.needs.extend([objective_pb2.OBJECTIVE_RESULT_GAUSS_NEWTON])
    problem = decode(request, "Objective").template.problem
    assert problem.comparison == Comparison(loss=Loss.HUBER, delta=0.5, domain=Domain.ALL)
    assert problem.needs == ("gauss_newton",)
    assert problem.weights is None


def test_the_value_alone_may_be_wanted():
    """It says so, because nothing at all has a default."""
    request = objective_request()
    request.needs.append(objective_pb2.OBJECTIVE_RESULT_VALUE)
    task = decode(request, "Objective")
    results = [np.full(2, number).tobytes() for number in (0.25, 42.0)]
    envelope, payloads = split(task.encode(Finished(results, 0.0, 0.0, 1)))
    reply = objective_pb2.ObjectiveReply.FromString(envelope)
    assert get_tensor(reply.value, payloads, "value").tolist() == [0.25, 0.25]
    assert get_tensor(reply.count, payloads, "count").tolist() == [42.0, 42.0]
    assert not reply.HasField("gradient")
    assert not reply.HasField("gauss_newton")


def spoiled(**fields):
    """A request with other values in some fields."""
    request = objective_request()
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            replace(request, getattr(request, name), value)
        elif isinstance(value, list):
            getattr(request, name).extend(value)
        else:
            setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        (
            {"loss": 9},
            UnsupportedError,
            r"loss: expected one of LOSS_SSD, LOSS_HUBER, LOSS_NCC, go",
        ),
        (
            {"domain": 9},
            UnsupportedError,
            r"domain: expected one of DOMAIN_OVERLAP, DOMAIN_ALL, go",
        ),
        ({"needs": [9]}, UnsupportedError, r"needs: expected one of OBJECTIVE_RESULT_VALUE"),
        (
            {"needs": [0]},
            InvalidRequestError,
            r"needs: .*got OBJECTIVE_RESULT_UNSPECIFIED. Leave it out",
        ),
        ({"delta": 0.0}, InvalidRequestError, r"delta: expected a finite number > 0"),
        ({"delta": float("inf")}, InvalidRequestError, r"delta: expected a finite number > 0"),
        ({"fixed": ramp(1, 2, 6, 7)}, InvalidRequestError, r"fixed: .*got \(1, 2, 6, 7\)"),
        ({"fixed": ramp(3, 3, 6, 7)}, InvalidRequestError, r"fixed: .*got \(3, 3, 6, 7\)"),
        ({"weights": ramp(1, 3, 6, 7)}, InvalidRequestError, r"weights: .*got \(1, 3, 6, 7\)"),
        ({"moving": ramp(1, 3, 4, 5, dtype=np.uint8)}, InvalidRequestError, r"moving: .*uint8"),
        ({"fixed": ramp(1, 3, 6, 7, dtype=float)}, InvalidRequestError, r"fixed: .*float64"),
        (
            {"loss": objective_pb2.LOSS_NCC, "needs": [3]},
            InvalidRequestError,
            r"needs: expected \(\)",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(fields, error, match):
    """The path of the field, and what would do."""
    with pytest.raises(error, match=match):
        decode(spoiled(**fields), "Objective")


def test_results_are_limited_and_not_the_warp():
    """A thousand transforms of one pair have a thousand small results."""
    assert decode(objective_request(), "Objective", max_output_bytes=100).key.dtype is torch.float32
    with pytest.raises(ResultTooLargeError, match=r"fixed: .*bytes of output"):
        decode(objective_request(), "Objective", max_output_bytes=50)
    with pytest.raises(ResultTooLargeError, match=r"fixed: .*samples"):
        decode(objective_request(), "Objective", max_output_samples=80)
