"""Every rule that a request can break, and what it is told."""

import re
import tracemalloc

import numpy as np
import pytest

from stn_proto import FrameTooLargeError
from stn_server.batching.work import Operation
from stn_server.config import LimitsConfig
from stn_server.errors import RequestTooLargeError
from stn_server.status import answer_to
from stn_server.translate import Translator
from support.bad_requests import (
    BAD_REQUESTS,
    BASES,
    assign,
    ramp,
    replace,
    theta,
    warp_request,
)
from support.harness import decode

MESSAGE_FORM = re.compile(r"([a-z_.]+|[a-z_.]*\d+): expected \S.*, got \S.*\.( \S.*\.)?")


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_names_its_field(bad):
    """Class, path and text; nothing of the size it asks for is allocated."""
    translator = Translator(LimitsConfig())
    tracemalloc.start()
    try:
        with pytest.raises(bad.error, match=re.escape(f"{bad.field}: {bad.text}")) as caught:
            translator.decode(Operation(bad.method), bad.message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
    assert MESSAGE_FORM.fullmatch(str(caught.value))
    assert answer_to(caught.value, "").code is bad.code
    assert str(caught.value).startswith(bad.field)


@pytest.mark.parametrize(
    ("method", "limits", "text"),
    [
        ("Warp", {"max_dimension_px": 6}, "output_size: expected at most 6 px, got 7."),
        (
            "Warp",
            {"max_output_bytes": 1007},
            "output_size: expected at most 1007 bytes of output, got 1008.",
        ),
        ("WarpGradients", {"max_dimension_px": 6}, "grad_output: expected at most 6 px, got 7."),
        ("WarpGradients", {"max_output_bytes": 1007}, "grad_output: expected at most 1007 bytes"),
        ("GenerateGrid", {"max_output_bytes": 671}, "output_size: expected at most 671 bytes"),
        ("GenerateGridGradients", {"max_dimension_px": 6}, "grad_grid: expected at most 6 px"),
    ],
)
def test_the_limits_are_those_of_the_configuration(method, limits, text):
    """One less is refused; the very limit is not."""
    request = BASES[method]()
    with pytest.raises(RequestTooLargeError, match=re.escape(text)):
        decode(request, method, **limits)
    enough = {name: value + 1 for name, value in limits.items()}
    assert decode(request, method, **enough).cost.samples == 2 * 6 * 7


def test_payloads_and_envelope_are_limited_by_the_configuration():
    """The very limit passes, one more does not."""
    request = BASES["WarpGradients"]()
    assert len(request.payloads) == 3
    decode(request, "WarpGradients", max_payloads=3)
    request.payloads.append(b"")
    with pytest.raises(FrameTooLargeError, match="payloads: expected at most 3 payloads, got"):
        decode(request, "WarpGradients", max_payloads=3)
    decode(request, "WarpGradients", max_payloads=4)
    long = warp_request()
    long.spec.fill[:] = [0.5] * 200
    with pytest.raises(FrameTooLargeError, match="message: expected at most 1024 bytes without"):
        decode(long, "Warp", max_envelope_bytes=1024)


def test_one_map_under_many_transforms_counts_all_its_outputs():
    """Broadcasting does not slip under the limit."""
    request = warp_request()
    replace(request, request.feature_map, ramp(1, 3, 4, 5))
    replace(request, request.transform.affine.theta, theta(100))
    assign("output_size", [1000, 1000])(request)
    with pytest.raises(RequestTooLargeError, match=r"at most 268435456 bytes .* got 1200000000"):
        decode(request)


def test_many_samples_of_little_data_are_too_much():
    """One channel of bytes is small on the wire, but its source points are not."""
    request = warp_request()
    replace(request, request.feature_map, ramp(1, 1, 4, 5, dtype=np.uint8))
    replace(request, request.transform.affine.theta, theta(1))
    assign("output_size", [4097, 4096])(request)
    with pytest.raises(RequestTooLargeError, match=r"at most 16777216 samples, got 16781312\."):
        decode(request)
