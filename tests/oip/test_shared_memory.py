"""System shared memory by NVIDIA's client: off unless allowed, never mapped, one's own alone."""

import os
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from oip.calls import same_bits, tensor, theta
from stn_client import Affine
from support.tokens import entry, replace

ALICE, BOB = "correct-horse-battery-staple", "another-horse-battery-stapler"


@contextmanager
def shared(size):
    """An object of shared memory, under a name that nobody else has."""
    key = f"/stn_test_{uuid4().hex}"
    handle = shm.create_shared_memory_region(key[1:], key, size)
    try:
        yield key, handle
    finally:
        shm.destroy_shared_memory_region(handle)


@pytest.fixture
def client(peer):
    """Without regions, before and after."""
    peer.triton.unregister_system_shared_memory()
    yield peer.triton
    peer.triton.unregister_system_shared_memory()


def lying(name, shape, region, size, offset=0, datatype="FP32"):
    made = triton.InferInput(name, list(shape), datatype)
    made.set_shared_memory(region, size, offset)
    return made


def placed(region, size, offset=0, name="output"):
    made = triton.InferRequestedOutput(name)
    made.set_shared_memory(region, size, offset)
    return made


def test_inputs_and_outputs_lie_in_shared_memory(client, peer, rng):
    u = rng.random((2, 3, 20, 30), np.float32)
    expected = peer.stn.warp(u, Affine(theta()))
    with shared(4096 + u.nbytes) as (key, handle), shared(2 * u.nbytes) as (other, results):
        shm.set_shared_memory_region(handle, [u], offset=4096)
        client.register_system_shared_memory("in", key, 4096 + u.nbytes)
        client.register_system_shared_memory("out", other, 2 * u.nbytes)
        for offset in (0, u.nbytes):
            result = client.infer(
                "stn_warp_affine",
                [lying("feature_map", u.shape, "in", u.nbytes, 4096), tensor("theta", theta())],
                outputs=[placed("out", u.nbytes, offset)],
            )
            assert result.get_response().raw_output_contents[0] == b""
            parameters = result.get_response().outputs[0].parameters
            assert parameters["shared_memory_region"].string_param == "out"
            found = shm.get_contents_as_numpy(results, np.float32, u.shape, offset)
            assert same_bits(found, expected)


def test_parameters_and_raw_outputs_may_mix(client, peer, rng):
    """Raw contents are those of inputs that are not in shared memory, in their order."""
    u, g = rng.random((2, 3, 5, 6), np.float32), rng.random((2, 3, 5, 6), np.float32)
    expected = peer.stn.warp_gradients(g, u, Affine(theta()))
    with shared(4096) as (key, handle), shared(4096) as (other, results):
        shm.set_shared_memory_region(handle, [theta()])
        client.register_system_shared_memory("in", key, 4096)
        client.register_system_shared_memory("out", other, 4096)
        result = client.infer(
            "stn_warp_affine_gradients",
            [
                tensor("grad_output", g),
                lying("theta", (2, 2, 3), "in", 48),
                tensor("feature_map", u),
            ],
            outputs=[
                triton.InferRequestedOutput("grad_feature_map"),
                placed("out", 48, 8, "grad_theta"),
            ],
        )
        assert same_bits(result.as_numpy("grad_feature_map"), expected.feature_map)
        found = shm.get_contents_as_numpy(results, np.float32, (2, 2, 3), 8)
        assert same_bits(found, expected.transform)


def test_a_region_begins_where_it_was_registered(client, peer, rng):
    """Not at whole pages alone, as it is not mapped."""
    u = rng.random((1, 1, 4, 5), np.float32)
    with shared(4096) as (key, handle):
        shm.set_shared_memory_region(handle, [u], offset=12)
        client.register_system_shared_memory("in", key, u.nbytes, offset=12)
        inputs = [lying("feature_map", u.shape, "in", u.nbytes), tensor("theta", theta(1))]
        result = client.infer("stn_warp_affine", inputs)
        assert same_bits(result.as_numpy("output"), peer.stn.warp(u, Affine(theta(1))))
        with pytest.raises(InferenceServerException, match="expected bytes within 80, got 80 byte"):
            client.infer(
                "stn_warp_affine",
                [lying("feature_map", u.shape, "in", u.nbytes, 4), tensor("theta", theta(1))],
            )


def test_regions_are_listed_and_forgotten(client):
    with shared(4096) as (key, _):
        client.register_system_shared_memory("one", key, 4096)
        client.register_system_shared_memory("two", key, 100, offset=7)
        regions = client.get_system_shared_memory_status().regions
        assert {name: (one.key, one.offset, one.byte_size) for name, one in regions.items()} == {
            "one": (key, 0, 4096),
            "two": (key, 7, 100),
        }
        assert set(client.get_system_shared_memory_status("two").regions) == {"two"}
        with pytest.raises(InferenceServerException, match="name: expected a name that is free"):
            client.register_system_shared_memory("one", key, 10)
        client.unregister_system_shared_memory("one")
        client.unregister_system_shared_memory("one")
        assert set(client.get_system_shared_memory_status().regions) == {"two"}
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
        with pytest.raises(InferenceServerException) as missing:
            client.get_system_shared_memory_status("two")
        assert missing.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize(
    ("key", "size", "offset", "status"),
    [
        ("/nobody_has_this", 1, 0, "NOT_FOUND"),
        ("/../../etc/passwd", 1, 0, "INVALID_ARGUMENT"),
        ("..", 1, 0, "INVALID_ARGUMENT"),
        ("a/b", 1, 0, "INVALID_ARGUMENT"),
        ("", 1, 0, "INVALID_ARGUMENT"),
        ("a\0b", 1, 0, "INVALID_ARGUMENT"),
        (None, 0, 0, "INVALID_ARGUMENT"),
        (None, 4097, 0, "INVALID_ARGUMENT"),
        (None, 1, 4096, "INVALID_ARGUMENT"),
        (None, 2**64 - 1, 1, "INVALID_ARGUMENT"),
        (None, 1, 2**64 - 1, "INVALID_ARGUMENT"),
    ],
)
def test_what_is_no_region_is_refused(client, key, size, offset, status):
    """And no name of an object is told."""
    with shared(4096) as (own, _):
        with pytest.raises(InferenceServerException) as refused:
            client.register_system_shared_memory("in", own if key is None else key, size, offset)
        assert refused.value.status() == f"StatusCode.{status}"
        assert own[1:] not in str(refused.value)
        assert "nobody_has_this" not in str(refused.value)
        assert not client.get_system_shared_memory_status().regions


def test_a_link_or_a_folder_is_no_region(client, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4096))
    name = f"stn_test_{uuid4().hex}"
    link, folder = Path("/dev/shm") / name, Path("/dev/shm") / f"{name}.d"
    link.symlink_to(secret)
    folder.mkdir()
    try:
        for key in (link.name, folder.name):
            with pytest.raises(InferenceServerException, match="key: expected shared memory"):
                client.register_system_shared_memory("in", key, 16)
    finally:
        link.unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("size", "offset"),
    [(79, 0), (81, 0), (80, 4017), (80, 2**63 - 1), (2**63 - 1, 0), (2**63 - 1, 2**63 - 1)],
)
def test_bytes_outside_a_region_are_refused_at_every_use(client, peer, size, offset):
    u = np.ones((1, 1, 4, 5), np.float32)
    with shared(4096) as (key, handle):
        client.register_system_shared_memory("in", key, 4096)
        for inputs, outputs in (
            ([lying("feature_map", u.shape, "in", size, offset)], None),
            ([tensor("feature_map", u)], [placed("in", size, offset)]),
        ):
            if (size, offset) == (81, 0) and outputs:  # more room than is needed
                continue
            with pytest.raises(InferenceServerException) as refused:
                client.infer(
                    "stn_warp_affine", [*inputs, tensor("theta", theta(1))], outputs=outputs
                )
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert peer.triton.is_server_ready()
        assert not shm.get_contents_as_numpy(handle, np.uint8, (4096,)).any()


def test_outputs_that_overlap_are_refused(client, rng):
    """Also where they lie in regions of their own: the later would be written over the other."""
    u = rng.random((1, 1, 4, 5), np.float32)
    inputs = [tensor("feature_map", u), tensor("grad_output", u), tensor("theta", theta(1))]
    with shared(4096) as (key, handle):
        client.register_system_shared_memory("all", key, 4096)
        client.register_system_shared_memory("some", key, 1000, offset=76)
        for region, offset, is_refused in (
            ("all", 79, True),
            ("some", 0, True),
            ("some", 4, False),
        ):
            outputs = [
                placed("all", u.nbytes, 0, "grad_feature_map"),
                placed(region, 24, offset, "grad_theta"),
            ]
            if not is_refused:  # they touch, and do not overlap
                result = client.infer("stn_warp_affine_gradients", inputs, outputs=outputs)
                assert list(result.get_response().raw_output_contents) == [b"", b""]
                continue
            with pytest.raises(InferenceServerException) as refused:
                client.infer("stn_warp_affine_gradients", inputs, outputs=outputs)
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
            assert refused.value.message().startswith("grad_theta.shared_memory_region: expected")
            assert not shm.get_contents_as_numpy(handle, np.uint8, (4096,)).any()


def test_a_client_that_shrinks_its_memory_gets_an_error(client, peer):
    """And the server goes on."""
    u = np.ones((1, 1, 30, 40), np.float32)
    with shared(3 * u.nbytes) as (key, _):
        client.register_system_shared_memory("in", key, u.nbytes)
        client.register_system_shared_memory("out", key, u.nbytes, offset=u.nbytes)
        os.truncate(f"/dev/shm{key}", 100)
        lies = [lying("feature_map", u.shape, "in", u.nbytes), tensor("theta", theta(1))]
        with pytest.raises(InferenceServerException, match="feature_map: expected as many bytes"):
            client.infer("stn_warp_affine", lies)
        with pytest.raises(InferenceServerException, match="output: expected as many bytes"):
            client.infer(
                "stn_warp_affine",
                [tensor("feature_map", u), tensor("theta", theta(1))],
                outputs=[placed("out", u.nbytes)],
            )
        assert Path(f"/dev/shm{key}").stat().st_size == 100
        os.truncate(f"/dev/shm{key}", 3 * u.nbytes)
        assert not client.infer("stn_warp_affine", lies).as_numpy("output").any()
    assert peer.triton.is_server_ready()


def test_memory_that_is_unlinked_is_there_until_it_is_unregistered(client, peer, rng):
    u = rng.random((1, 1, 4, 5), np.float32)
    with shared(4096) as (key, handle):
        shm.set_shared_memory_region(handle, [u])
        client.register_system_shared_memory("in", key, 4096)
    inputs = [lying("feature_map", u.shape, "in", u.nbytes), tensor("theta", theta(1))]
    result = client.infer("stn_warp_affine", inputs)
    assert same_bits(result.as_numpy("output"), peer.stn.warp(u, Affine(theta(1))))


def test_numbers_in_shared_memory_are_checked(client):
    with shared(4096) as (key, handle):
        shm.set_shared_memory_region(handle, [np.full((1, 2, 3), np.nan, np.float32)])
        client.register_system_shared_memory("in", key, 4096)
        u = np.ones((1, 1, 4, 5), np.float32)
        with pytest.raises(InferenceServerException, match="theta: expected finite numbers"):
            client.infer(
                "stn_warp_affine",
                [tensor("feature_map", u), lying("theta", (1, 2, 3), "in", 24)],
            )


def test_too_large_a_shape_takes_no_memory(start):
    """What would be read counts as if it had been sent."""
    server = start(
        "--oip-shared-memory=true",
        "--limits-max-message-bytes=1048576",
        "--limits-max-output-bytes=1048576",
    )
    with triton.InferenceServerClient(server.target) as client, shared(2**22) as (key, _):
        client.register_system_shared_memory("in", key, 2**22)
        lies = [lying("feature_map", (1, 1, 1024, 1024), "in", 2**22), tensor("theta", theta(1))]
        with pytest.raises(InferenceServerException, match="inputs: expected at most 1048576 byt"):
            client.infer("stn_warp_affine", lies, parameters={"output_size": "2,2"})


def test_it_is_off_unless_allowed(start):
    server = start()
    with triton.InferenceServerClient(server.target) as client, shared(4096) as (key, _):
        assert "system_shared_memory" not in client.get_server_metadata().extensions
        with pytest.raises(InferenceServerException) as refused:
            client.register_system_shared_memory("in", key, 4096)
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
        with pytest.raises(InferenceServerException) as missing:
            client.infer(
                "stn_warp_affine",
                [lying("feature_map", (1, 1, 2, 2), "in", 16), tensor("theta", theta(1))],
            )
        assert missing.value.status() == "StatusCode.NOT_FOUND"


def test_a_region_belongs_to_the_caller_that_registered_it(start, tmp_path):
    """Others cannot use, list or unregister it, and may have one of the same name."""
    tokens = tmp_path / "tokens.toml"
    replace(tokens, entry("alice", ALICE) + entry("bob", BOB))
    server = start("--oip-shared-memory=true", f"--auth-tokens={tokens}")
    alice, bob = ({"authorization": f"Bearer {token}"} for token in (ALICE, BOB))
    u = np.ones((1, 1, 4, 5), np.float32)
    lies = [lying("feature_map", u.shape, "in", u.nbytes), tensor("theta", theta(1))]
    with (
        triton.InferenceServerClient(server.target) as client,
        shared(4096) as (hers, _),
        shared(4096) as (his, _),
    ):
        client.register_system_shared_memory("in", hers, 4096, headers=alice)
        assert not client.get_system_shared_memory_status(headers=bob).regions
        with pytest.raises(InferenceServerException, match=r"feature_map.shared_memory_r"):
            client.infer("stn_warp_affine", lies, headers=bob)
        client.register_system_shared_memory("in", his, 100, headers=bob)
        assert client.get_system_shared_memory_status(headers=alice).regions["in"].key == hers
        client.unregister_system_shared_memory(headers=bob)
        assert not client.get_system_shared_memory_status(headers=bob).regions
        assert client.infer("stn_warp_affine", lies, headers=alice).as_numpy("output").shape


def test_there_are_only_so_many_regions(start):
    """Those whose object is gone make room."""
    server = start("--oip-shared-memory=true", "--oip-max-regions=2")
    with triton.InferenceServerClient(server.target) as client, shared(4096) as (key, _):
        client.register_system_shared_memory("one", key, 4096)
        with shared(4096) as (gone, _):
            client.register_system_shared_memory("two", gone, 4096)
            with pytest.raises(InferenceServerException) as full:
                client.register_system_shared_memory("three", key, 4096)
            assert full.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        client.register_system_shared_memory("three", key, 4096)
        assert set(client.get_system_shared_memory_status().regions) == {"one", "three"}


def test_no_descriptor_is_left(start):
    server = start("--oip-shared-memory=true")
    files = Path(f"/proc/{server.process.pid}/fd")

    def shared_files():
        links = (str(one.readlink()) for one in files.iterdir())
        return sum("stn_test" in link for link in links)

    with triton.InferenceServerClient(server.target) as client, shared(4096) as (key, _):
        for number in range(20):
            client.register_system_shared_memory(f"r{number}", key, 4096)
            with pytest.raises(InferenceServerException, match="byte_size: expected a region"):
                client.register_system_shared_memory("bad", key, 4097)
        assert shared_files() == 20
        client.unregister_system_shared_memory()
        assert shared_files() == 0


def test_memory_of_gpus_is_not_taken(client):
    """Unregistering is no error, as load generators begin and end with it."""
    with pytest.raises(InferenceServerException) as refused:
        client.register_cuda_shared_memory("gpu", b"A" * 64, 0, 64)
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
    client.unregister_cuda_shared_memory()
    assert not client.get_cuda_shared_memory_status().regions
