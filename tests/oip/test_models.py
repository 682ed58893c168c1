"""What models, the server and their counts say of themselves, as NVIDIA's client reads them."""

import re
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from oip.calls import KINDS, tensors, theta

ROOT = Path(__file__).parents[2]
WARP = {"feature_map": np.ones((2, 1, 4, 5), np.float32), "theta": theta()}


def test_the_server_lives_and_is_ready(peer):
    assert peer.triton.is_server_live()
    assert peer.triton.is_server_ready()
    metadata = peer.triton.get_server_metadata()
    assert metadata.name == "stn-server"
    assert metadata.version == peer.stn.server_info().version
    assert {"statistics", "system_shared_memory"} <= set(metadata.extensions)
    assert "cuda_shared_memory" not in metadata.extensions


def test_there_is_a_model_for_every_operation_and_kind(peer):
    names = {model.name for model in peer.triton.get_model_repository_index().models}
    for kind in KINDS:
        stem = "stn_sample" if kind == "sample" else f"stn_warp_{kind}"
        assert {stem, f"{stem}_gradients"} <= names
        if kind != "sample":
            grid = f"stn_generate_grid_{kind}"
            assert {grid, f"{grid}_gradients"} <= names
    assert {"stn_warp_affine_3d", "stn_warp_flow_3d_gradients", "stn_sample_3d"} <= names
    assert "stn_warp_homography_3d" not in names
    assert all(map(peer.triton.is_model_ready, names))
    assert not peer.triton.is_model_ready("nobody")
    assert not peer.triton.is_model_ready("stn_warp_affine", "2")


def test_metadata_names_the_tensors(peer):
    found = peer.triton.get_model_metadata("stn_warp_spline_gradients", as_json=True)
    assert [
        (one["name"], one["datatype"], one["shape"]) for one in found["inputs"] + found["outputs"]
    ] == [
        ("grad_output", "FP32", ["-1"] * 4),
        ("feature_map", "FP32", ["-1"] * 4),
        ("points", "FP32", ["-1", "-1", "2"]),
        ("control_points", "FP64", ["-1", "-1", "2"]),
        ("grad_feature_map", "FP32", ["-1"] * 4),
        ("grad_points", "FP32", ["-1", "-1", "2"]),
    ]
    assert found["versions"] == ["1"]


def test_a_configuration_leaves_the_batch_out(peer):
    """As load generators expect it: dims are those of one item, and batches are possible."""
    config = peer.triton.get_model_config("stn_warp_affine").config
    metadata = peer.triton.get_model_metadata("stn_warp_affine")
    assert config.max_batch_size > 1000
    assert config.HasField("dynamic_batching")
    assert (config.dynamic_batching.priority_levels, config.backend) == (3, "stn")
    assert not config.model_transaction_policy.decoupled
    for described, configured in (
        *zip(metadata.inputs, config.input, strict=True),
        *zip(metadata.outputs, config.output, strict=True),
    ):
        assert (described.name, list(described.shape[1:])) == (
            configured.name,
            list(configured.dims),
        )
        assert f"TYPE_{described.datatype}" == service_pb2.model__config__pb2.DataType.Name(
            configured.data_type
        )


def test_every_model_can_be_asked(peer):
    for model in peer.triton.get_model_repository_index().models:
        assert (model.version, model.state) == ("1", "READY")
        metadata = peer.triton.get_model_metadata(model.name)
        config = peer.triton.get_model_config(model.name).config
        assert len(metadata.inputs) == len(config.input) >= 1
        (statistics,) = peer.triton.get_inference_statistics(model.name).model_stats
        assert statistics.name == model.name


def test_statistics_count_requests_items_and_launches(start):
    server = start()
    with triton.InferenceServerClient(server.target) as client:
        (before,) = client.get_inference_statistics("stn_warp_affine").model_stats
        assert (before.inference_count, before.last_inference) == (0, 0)
        for _ in range(5):
            client.infer("stn_warp_affine", tensors(**WARP))
        bad = tensors(**WARP | {"theta": np.full((2, 2, 3), np.inf, np.float32)})
        with pytest.raises(InferenceServerException, match="theta: expected finite numbers"):
            client.infer("stn_warp_affine", bad)
        (after,) = client.get_inference_statistics("stn_warp_affine").model_stats
        assert (after.inference_count, after.execution_count) == (10, 5)
        assert after.last_inference > 1.7e12
        stats = after.inference_stats
        for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            assert getattr(stats, name).count == 5, name
            assert getattr(stats, name).ns > 0, name
        assert stats.success.ns >= stats.queue.ns + stats.compute_infer.ns
        assert [(one.batch_size, one.compute_infer.count) for one in after.batch_stats] == [(2, 5)]
        everything = client.get_inference_statistics().model_stats
        assert sum(one.inference_count for one in everything) == 10
        assert len(everything) == len(client.get_model_repository_index().models)


@pytest.mark.parametrize(
    "ask",
    [
        triton.InferenceServerClient.get_trace_settings,
        triton.InferenceServerClient.get_log_settings,
        lambda client: client.load_model("stn_warp_affine"),
        lambda client: client.unload_model("stn_warp_affine"),
    ],
)
def test_what_is_not_offered_is_unimplemented(peer, ask):
    with pytest.raises(InferenceServerException, match="method: expected one of") as refused:
        ask(peer.triton)
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("ask", ["get_model_metadata", "get_model_config"])
def test_a_model_that_is_not_there_is_not_found(peer, ask):
    for name, version in (("nobody", ""), ("stn_warp_affine", "7"), ("", "")):
        with pytest.raises(InferenceServerException) as missing:
            getattr(peer.triton, ask)(name, version)
        assert missing.value.status() == "StatusCode.NOT_FOUND"


def test_the_published_numbers_are_ours():
    """Every field that the server's own description has is one of NVIDIA's, with its number."""
    theirs = {
        (message.name, field.name): field.number
        for file in (service_pb2.DESCRIPTOR, service_pb2.model__config__pb2.DESCRIPTOR)
        for message in all_messages(file.message_types_by_name.values())
        for field in message.fields
    }
    ours = dict(declared((ROOT / "proto/src/stn_proto/oip/inference.proto").read_text()))
    assert len(ours) > 120
    assert {name: number for name, number in ours.items() if theirs.get(name) != number} == {}


def all_messages(messages):
    for message in messages:
        yield message
        yield from all_messages(message.nested_types)


def declared(text):
    """(message, field) and number of every field of a .proto file."""
    scopes = []
    for line in map(str.strip, text.splitlines()):
        if opened := re.match(r"(\w+) (\w+) {(})?", line):
            if not opened[3]:
                is_one = opened[1] == "oneof"  # its fields are those of its message
                scopes.append(scopes[-1] if is_one else opened[2] * (opened[1] == "message"))
        elif line == "}":
            scopes.pop()
        elif (field := re.match(r".*\b(\w+) = (\d+);", line)) and scopes and scopes[-1]:
            yield (scopes[-1], field[1]), int(field[2])
