"""Inference by NVIDIA's client: every model and option, bit for bit as the SDK has it."""

import asyncio
import re
import threading
from dataclasses import replace
from pathlib import Path
from queue import Queue

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from oip.calls import DATATYPES, KINDS, Peer, kinds, same_bits, tensors, theta
from stn_client import Affine, Flow, SamplingGrid


def kind(name, rng, **changes):
    return next(one for one in kinds(rng, **changes) if one[0] == name)


def model(operation, name):
    """The name of a model."""
    return f"stn_{operation}_{name}" if name != "sample" else "stn_sample"


@pytest.fixture
def u(rng):
    return rng.random((2, 3, 5, 6), np.float32)


@pytest.mark.parametrize("name", KINDS)
def test_a_warp_is_that_of_the_sdk(peer, rng, u, name):
    _, transform, arrays = kind(name, rng)
    size = None if name in {"flow", "sample"} else (6, 7)
    options = {"output_size": "6,7"} if size else None
    found = peer.output(model("warp", name), {"feature_map": u, **arrays}, options)
    assert same_bits(found, peer.stn.warp(u, transform, output_size=size))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_the_sdk(peer, rng, u, name):
    _, transform, arrays = kind(name, rng)
    g = rng.random((2, 3, 6, 7), np.float32)
    expected = peer.stn.warp_gradients(g, u, transform)
    inputs = {"grad_output": g, "feature_map": u, **arrays}
    found = peer.infer(f"{model('warp', name)}_gradients", inputs)
    parameters = next(iter(arrays))
    assert same_bits(found.as_numpy("grad_feature_map"), expected.feature_map)
    assert same_bits(found.as_numpy(f"grad_{parameters}"), expected.transform)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "sample"])
def test_a_grid_and_its_gradient_are_those_of_the_sdk(peer, rng, name):
    _, transform, arrays = kind(name, rng)
    options = {"output_size": "6,7"}
    found = peer.infer(f"stn_generate_grid_{name}", arrays, options).as_numpy("grid")
    assert same_bits(found, peer.stn.generate_grid(transform, (6, 7)))
    g = rng.random((2, 6, 7, 2), np.float32)
    expected = peer.stn.generate_grid_gradients(g, transform)
    found = peer.infer(f"stn_generate_grid_{name}_gradients", {"grad_grid": g, **arrays})
    assert same_bits(found.as_numpy(f"grad_{next(iter(arrays))}"), expected)


def test_volumes_have_models_of_their_own(peer, rng):
    u = rng.random((1, 2, 3, 4, 5), np.float32)
    solid = np.eye(3, 4, dtype=np.float32)[None] * np.float32(0.9)
    found = peer.output("stn_warp_affine_3d", {"feature_map": u, "theta": solid})
    assert same_bits(found, peer.stn.warp(u, Affine(solid)))
    displacement = rng.uniform(-0.2, 0.2, (1, 2, 3, 4, 3)).astype(np.float32)
    arrays = {"feature_map": u, "displacement": displacement}
    assert same_bits(peer.output("stn_warp_flow_3d", arrays), peer.stn.warp(u, Flow(displacement)))
    grid = rng.uniform(-1, 1, (1, 2, 3, 4, 3)).astype(np.float32)
    found = peer.output("stn_sample_3d", {"feature_map": u, "grid": grid})
    assert same_bits(found, peer.stn.warp(u, SamplingGrid(grid)))


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({"interpolation": "nearest"}, {"interpolation": "nearest"}),
        ({"interpolation": "bicubic", "padding": "border"},) * 2,
        ({"padding": "reflection", "align_corners": True},) * 2,
        ({"padding": "fill", "fill": 3}, {"padding": "fill", "fill": 3.0}),
        ({"padding": "fill", "fill": "0.5,-1,2"}, {"padding": "fill", "fill": (0.5, -1.0, 2.0)}),
        ({"coordinates": "pixel", "subgradient": "zero"},) * 2,
    ],
    ids=str,
)
def test_options_are_parameters(peer, u, parameters, options):
    found = peer.output("stn_warp_affine", {"feature_map": u, "theta": theta()}, parameters)
    assert same_bits(found, peer.stn.warp(u, Affine(theta()), **options))


def test_regularization_is_a_parameter(peer, rng, u):
    _, transform, arrays = kind("spline", rng)
    found = peer.output("stn_warp_spline", {"feature_map": u, **arrays}, {"regularization": 1})
    expected = peer.stn.warp(u, replace(transform, regularization=1.0))
    assert same_bits(found, expected)
    assert not same_bits(found, peer.stn.warp(u, transform))


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.uint8, np.uint16, np.int16),
        *(np.bool_, np.int8, np.int32, np.uint32, np.int64, np.uint64),
    ],
)
def test_every_type_of_elements_comes_back_as_it_went(peer, rng, dtype):
    u = (rng.random((2, 3, 5, 6)) * 255).astype(dtype)
    options = {"interpolation": "nearest"}
    result = peer.infer("stn_warp_affine", {"feature_map": u, "theta": theta()}, options)
    (output,) = result.get_response().outputs
    raw = result.get_response().raw_output_contents[0]
    assert raw == peer.stn.warp(u, Affine(theta()), **options).tobytes()
    assert output.datatype == DATATYPES[u.dtype.name]


def test_maps_may_have_their_channels_last(peer, u):
    last = np.ascontiguousarray(u.transpose(0, 2, 3, 1))
    inputs = {"feature_map": last, "theta": theta()}
    found = peer.output("stn_warp_affine", inputs, {"layout": "NHWC"})
    assert same_bits(found, peer.stn.warp(last, Affine(theta()), layout="NHWC"))


def test_items_broadcast(peer, u):
    arrays = {"feature_map": u, "theta": theta(1)}
    assert same_bits(peer.output("stn_warp_affine", arrays), peer.stn.warp(u, Affine(theta(1))))


def test_inputs_may_come_in_any_order(peer, u):
    arrays = {"theta": theta(), "feature_map": u}
    assert same_bits(peer.output("stn_warp_affine", arrays), peer.stn.warp(u, Affine(theta())))


def test_requested_outputs_alone_are_computed(peer, u):
    g = np.ones_like(u)
    inputs = {"grad_output": g, "feature_map": u, "theta": theta()}
    outputs = [triton.InferRequestedOutput("grad_theta")]
    found = peer.infer("stn_warp_affine_gradients", inputs, outputs=outputs)
    assert [one.name for one in found.get_response().outputs] == ["grad_theta"]
    expected = peer.stn.warp_gradients(g, u, Affine(theta()), needs=("transform",))
    assert same_bits(found.as_numpy("grad_theta"), expected.transform)


def test_the_id_and_the_model_come_back(peer, u):
    for request_id in ("", "one", "two", "a longer one, ä"):
        inputs = {"feature_map": u, "theta": theta()}
        response = peer.infer("stn_warp_affine", inputs, request_id=request_id).get_response()
        assert (response.id, response.model_name, response.model_version) == (
            request_id,
            "stn_warp_affine",
            "1",
        )


def test_values_that_change_between_like_requests_count(peer, rng, u):
    """What is kept of an earlier request is none of its values, nor its control points."""
    for _ in range(3):
        _, transform, arrays = kind("spline", rng)
        found = peer.output("stn_warp_spline", {"feature_map": u, **arrays})
        assert same_bits(found, peer.stn.warp(u, transform))
    moved = arrays | {"control_points": arrays["control_points"] * 1.1}
    found = peer.output("stn_warp_spline", {"feature_map": u, **moved})
    assert not same_bits(found, peer.stn.warp(u, transform))


def test_messages_may_be_compressed(peer, u):
    for algorithm in ("gzip", "deflate"):
        inputs = {"feature_map": u, "theta": theta()}
        found = peer.output("stn_warp_affine", inputs, compression_algorithm=algorithm)
        assert same_bits(found, peer.stn.warp(u, Affine(theta())))


def test_callbacks_have_results_and_errors(peer, u):
    ended = Queue()
    for name in ("stn_warp_affine", "nobody"):
        peer.triton.async_infer(
            name,
            tensors(feature_map=u, theta=theta()),
            callback=lambda result, error: ended.put((result, error)),
        )
        result, error = ended.get(timeout=30)
        if name == "nobody":
            assert (result, error.status()) == (None, "StatusCode.NOT_FOUND")
        else:
            assert error is None
            assert same_bits(result.as_numpy("output"), peer.stn.warp(u, Affine(theta())))


def test_a_call_can_be_cancelled(peer):
    """Its callback hears CANCELLED, whether it was queued or already computed."""
    ended = Queue()
    large = np.ones((1, 3, 1500, 1500), np.float32)
    context = peer.triton.async_infer(
        "stn_warp_affine",
        tensors(feature_map=large, theta=theta(1)),
        callback=lambda result, error: ended.put((result, error)),
    )
    context.cancel()
    result, error = ended.get(timeout=30)
    assert result is None
    assert error.status() in {"StatusCode.CANCELLED", None}
    assert "ancelled" in str(error)
    assert peer.triton.is_server_ready()


def test_a_stream_answers_in_order(peer, rng):
    ended = Queue()
    maps = [rng.random((1, 3, 4 + n % 5, 6), np.float32) for n in range(40)]
    peer.triton.start_stream(callback=lambda result, error: ended.put((result, error)))
    for number, u in enumerate(maps):
        peer.triton.async_stream_infer(
            "stn_warp_affine",
            tensors(feature_map=u, theta=theta(1)),
            request_id=str(number),
        )
    for number, u in enumerate(maps):
        result, error = ended.get(timeout=30)
        assert error is None
        assert result.get_response().id == str(number)
        assert same_bits(result.as_numpy("output"), peer.stn.warp(u, Affine(theta(1))))
    peer.triton.stop_stream()
    assert ended.empty()


def test_an_error_does_not_end_a_stream(peer, u):
    ended = Queue()
    peer.triton.start_stream(callback=lambda result, error: ended.put((result, error)))
    for name in ("stn_warp_affine", "nobody", "stn_warp_affine"):
        peer.triton.async_stream_infer(name, tensors(feature_map=u, theta=theta()), request_id=name)
    first, failed, last = (ended.get(timeout=30) for _ in range(3))
    assert first[1] is None
    assert last[1] is None
    assert str(failed[1]).startswith("model_name: expected a model of this server, got none.")
    peer.triton.stop_stream()


def test_an_error_ends_a_stream_that_wants_it(peer, u):
    ended = Queue()
    peer.triton.start_stream(
        callback=lambda result, error: ended.put((result, error)),
        headers={"triton_grpc_error": "true"},
    )
    peer.triton.async_stream_infer("nobody", tensors(feature_map=u, theta=theta()))
    _, error = ended.get(timeout=30)
    assert error.status() == "StatusCode.NOT_FOUND"
    peer.triton.stop_stream(cancel_requests=True)


def test_a_stream_can_be_cancelled(peer, u):
    ended = Queue()
    peer.triton.start_stream(callback=lambda result, error: ended.put((result, error)))
    large = np.ones((1, 3, 900, 900), np.float32)
    for _ in range(5):
        peer.triton.async_stream_infer(
            "stn_warp_affine", tensors(feature_map=large, theta=theta(1))
        )
    peer.triton.stop_stream(cancel_requests=True)
    found = peer.output("stn_warp_affine", {"feature_map": u, "theta": theta()})
    assert same_bits(found, peer.stn.warp(u, Affine(theta())))


def test_the_last_response_says_so_if_it_is_asked(peer, u):
    ended = Queue()
    peer.triton.start_stream(callback=lambda result, error: ended.put((result, error)))
    peer.triton.async_stream_infer(
        "stn_warp_affine",
        tensors(feature_map=u, theta=theta()),
        enable_empty_final_response=True,
    )
    result, error = ended.get(timeout=30)
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param is True
    peer.triton.stop_stream()


def test_awaited_calls_and_streams(server, peer, rng, u):
    """The client of asyncio: unary, many at a time, cancelled, and as a stream."""
    maps = [rng.random((1, 1, 3 + n, 4), np.float32) for n in range(20)]

    async def scenario():
        async with triton_aio.InferenceServerClient(server.target) as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(
                *(
                    client.infer("stn_warp_affine", tensors(feature_map=one, theta=theta(1)))
                    for one in maps
                )
            )
            call = client.infer("stn_warp_affine", tensors(feature_map=u, theta=theta()))
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

            async def requests():
                for number, one in enumerate(maps):
                    yield {
                        "model_name": "stn_warp_affine",
                        "inputs": tensors(feature_map=one, theta=theta(1)),
                        "request_id": str(number),
                    }

            streamed = [pair async for pair in client.stream_infer(requests())]
        return results, streamed

    results, streamed = asyncio.run(scenario())
    expected = [peer.stn.warp(one, Affine(theta(1))) for one in maps]
    assert all(map(same_bits, (one.as_numpy("output") for one in results), expected))
    assert [result.get_response().id for result, _ in streamed] == [str(n) for n in range(20)]
    assert all(error is None for _, error in streamed)
    assert all(map(same_bits, (one.as_numpy("output") for one, _ in streamed), expected))


def test_many_threads_share_a_client(peer, rng):
    maps = [rng.random((1, 3, 8 + n, 9), np.float32) for n in range(16)]
    expected = [peer.stn.warp(one, Affine(theta(1))) for one in maps]
    wrong = []

    def caller(number):
        for _ in range(10):
            inputs = {"feature_map": maps[number], "theta": theta(1)}
            if not same_bits(peer.output("stn_warp_affine", inputs), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_deadline_ends_a_call(peer):
    large = np.ones((1, 3, 1500, 1500), np.float32)
    inputs = tensors(feature_map=large, theta=theta(1))
    with pytest.raises(InferenceServerException, match=r"Deadline Exceeded|deadline") as ended:
        peer.triton.infer("stn_warp_affine", inputs, client_timeout=0.002)
    assert ended.value.status() in {
        "StatusCode.DEADLINE_EXCEEDED",
        "StatusCode.RESOURCE_EXHAUSTED",
    }


@pytest.mark.parametrize("name", KINDS)
def test_an_objective_is_that_of_the_sdk(peer, rng, u, name):
    """Value, count and gradient, if nothing else is asked for."""
    _, transform, arrays = kind(name, rng)
    fixed = rng.random((2, 3, 6, 7), np.float32)
    expected = peer.stn.objective(u, fixed, transform)
    objective = f"stn_objective_{'grid' if name == 'sample' else name}"
    found = peer.infer(objective, {"moving": u, "fixed": fixed, **arrays})
    for output in ("value", "count", "gradient"):
        assert same_bits(found.as_numpy(output), getattr(expected, output)), output
    assert found.as_numpy("gauss_newton") is None


def test_an_objective_has_weights_options_and_chosen_outputs(peer, rng, u):
    fixed = rng.random((2, 3, 6, 7), np.float32)
    weights = rng.random((2, 1, 6, 7), np.float32)
    comparison = {"loss": "huber", "delta": 0.25, "domain": "all"}
    expected = peer.stn.objective(
        u, fixed, Affine(theta()), weights=weights, needs=("gauss_newton",), **comparison
    )
    arrays = {"moving": u, "fixed": fixed, "theta": theta(), "weights": weights}
    for outputs in (("gauss_newton",), ("count", "value"), ("value", "gauss_newton", "count")):
        requested = [triton.InferRequestedOutput(output) for output in outputs]
        found = peer.infer("stn_objective_affine", arrays, comparison, outputs=requested)
        assert {one.name for one in found.get_response().outputs} == set(outputs)
        assert len(found.get_response().raw_output_contents) == len(outputs)
        for output in outputs:
            assert same_bits(found.as_numpy(output), getattr(expected, output)), output


def test_the_change_of_a_client_is_three_lines(server):
    """Those with a plus in the document, which run as they stand there."""
    text = (Path(__file__).parents[2] / "deploy/README.md").read_text()
    (diff,) = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    lines = diff.splitlines()
    assert [sum(line.startswith(sign) for line in lines) for sign in "+-"] == [3, 3]
    program = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    facts = {}
    exec(program.replace("stn:50051", server.target), facts)
    with Peer(server.target) as peer:
        assert same_bits(facts["v"], peer.stn.warp(facts["u"], Affine(facts["theta"])))
    facts["client"].close()
