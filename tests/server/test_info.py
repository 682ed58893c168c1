"""What GetServerInfo tells."""

import re
import typing
from importlib.metadata import version

import pytest

import stn_engine
from stn_engine import dispatch
from stn_proto.v1 import server_info_pb2, service_pb2, tensor_pb2, warp_pb2
from stn_server.batching.batcher import Statistics
from stn_server.config import BatchingConfig, ConfigError, LimitsConfig, ServerConfig
from stn_server.info import ServerInfo

STATISTICS = Statistics(1, 2, 3, 4, 5, 6, 7, 8, 9)


@pytest.fixture
def state():
    return {"ready": False, "statistics": Statistics(*[0] * 9)}


@pytest.fixture
def info(state):
    config = ServerConfig(
        limits=LimitsConfig(
            max_message_bytes=4096,
            max_payloads=10,
            max_envelope_bytes=1100,
            max_output_bytes=5,
            max_output_samples=6,
            max_dimension_px=7,
            max_control_points=8,
            max_calls=9,
        ),
        batching=BatchingConfig(max_admitted_items=8, max_admitted_bytes=9000),
    )
    return ServerInfo(config, lambda: state["ready"], lambda: state["statistics"])


def read(info):
    """The reply as a client reads it."""
    return server_info_pb2.GetServerInfoReply.FromString(info.message())


def test_it_names_the_server_and_its_version(info):
    """As installed."""
    reply = read(info)
    assert (reply.name, reply.version) == ("stn-server", version("stn-server"))
    assert [device.name for device in reply.devices] == ["cpu"]


def test_a_device_is_told_with_the_backend_that_runs_there():
    """Not with the first one of the engine, which may need another device."""
    info = ServerInfo(ServerConfig(), lambda: True, lambda: STATISTICS, ["cpu"])
    (device,) = server_info_pb2.GetServerInfoReply.FromString(info.message()).devices
    assert (device.name, device.backend) == ("cpu", "cpu")


def test_a_backend_that_cannot_run_there_is_an_error_of_configuration(monkeypatch):
    """It is the only one that the engine may use."""
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "cuda")
    dispatch.candidates.cache_clear()
    with pytest.raises(ConfigError, match="computes on CUDA devices, the operands are on cpu"):
        ServerInfo(ServerConfig(), lambda: True, lambda: STATISTICS)
    monkeypatch.undo()
    dispatch.candidates.cache_clear()


def test_a_backend_that_does_not_exist_is_an_error_of_configuration(monkeypatch):
    """The server does not start, instead of refusing every call."""
    dispatch.candidates.cache_clear()
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "abacus")
    with pytest.raises(ConfigError, match=r"^STN_BACKEND: expected .*, got 'abacus'"):
        ServerInfo(ServerConfig(), lambda: True, lambda: STATISTICS)


def test_limits_are_those_of_the_configuration(info):
    """A client can stay below them."""
    limits = read(info).limits
    assert [limits.max_message_bytes, limits.max_output_bytes] == [4096, 5]
    assert [limits.max_output_samples, limits.max_dimension_px] == [6, 7]
    assert [limits.max_admitted_items, limits.max_admitted_bytes] == [8, 9000]
    assert [limits.max_payloads, limits.max_envelope_bytes] == [10, 1100]
    assert limits.max_control_points == 8
    assert limits.max_calls == 9


@pytest.mark.parametrize("place", [0, 1])
def test_capabilities_are_what_the_engine_computes(info, place):
    """Everything offered is known to the engine, nothing known is missing."""
    offered = read(info).capabilities[place]
    for numbers, kind, values in (
        (offered.interpolations, warp_pb2.Interpolation, stn_engine.Interpolation),
        (offered.paddings, warp_pb2.Padding, stn_engine.Padding),
        (offered.coordinates, warp_pb2.Coordinates, stn_engine.Coordinates),
        (offered.subgradients, warp_pb2.Subgradient, stn_engine.Subgradient),
    ):
        names = [kind.Name(number).split("_", 1)[1] for number in numbers]
        assert sorted(names) == sorted(values.__members__)
    assert offered.layouts == [tensor_pb2.LAYOUT_NCHW, tensor_pb2.LAYOUT_NHWC]
    names = {
        field: {tensor_pb2.DataType.Name(number).split("_")[-1] for number in numbers}
        for field, numbers in (
            ("forward", offered.data_types),
            ("gradients", offered.gradient_data_types),
            ("parameters", offered.parameter_data_types),
        )
    }
    assert names["gradients"] == {"FLOAT16", "BFLOAT16", "FLOAT32", "FLOAT64"}
    integers = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
    assert names["forward"] == {*names["gradients"], *integers, "BOOL"}
    assert names["parameters"] == {"FLOAT32", "FLOAT64"}


def test_capabilities_in_3d_have_fewer_transforms(info):
    """Those of images are all that the engine has; volumes know no planar ones."""
    images, volumes = read(info).capabilities
    assert (images.dimensions, volumes.dimensions) == (2, 3)
    assert set(images.transforms) <= set(warp_pb2.Transform.DESCRIPTOR.fields_by_name)
    known = {name.title().replace("_", "") for name in images.transforms}
    computed = {kind.__name__ for kind in typing.get_args(stn_engine.Transform)}
    assert known == computed
    assert list(volumes.transforms) == ["affine", "sampling_grid", "flow"]


def test_methods_are_those_of_the_service(info):
    """All of them, by the names that they are called by."""
    service = service_pb2.DESCRIPTOR.services_by_name["SpatialTransformer"]
    assert list(read(info).methods) == [method.name for method in service.methods]


def test_an_instance_keeps_its_random_id(info):
    """The same in all answers of one server, another in those of the next."""
    first, again = read(info).instance_id, read(info).instance_id
    other = read(ServerInfo(ServerConfig(), lambda: True, lambda: STATISTICS)).instance_id
    assert first == again != other
    assert re.fullmatch("[0-9a-f]{32}", first)


def test_statistics_and_readiness_are_those_of_the_moment(info, state):
    """Asked again, it looks again."""
    before = read(info)
    state.update(ready=True, statistics=STATISTICS)
    after = read(info)
    assert (before.ready, after.ready) == (False, True)
    assert before.statistics == server_info_pb2.Statistics()
    counts = [getattr(after.statistics, f.name) for f in after.statistics.DESCRIPTOR.fields]
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_uptime_grows(info):
    """It counts from the making of the server, on a clock that never goes back."""
    first, second = read(info).uptime_s, read(info).uptime_s
    assert 0 <= first < second
