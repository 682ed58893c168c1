"""Every metric moves as its help text says."""

import asyncio
import threading
from types import SimpleNamespace

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stn_engine import compilations
from stn_proto.v1 import service_pb2
from stn_server.call import Caller
from stn_server.errors import QueueFullError
from stn_server.events import End
from stn_server.metrics import ITEMS, SECONDS, Metrics
from stn_server.status import answer_to
from stn_server.tuning import MAX_NOTES
from support.bad_requests import BAD_REQUESTS, warp_request
from support.clock import run_in_virtual_time
from support.fakes import FakeRunner
from support.harness import make_batcher, outcome_of, serving, submit

LABELS = {
    "stn_requests": {"method", "code"},
    "stn_request_duration_seconds": {"method"},
    "stn_payload_bytes": {"direction", "transport"},
    "stn_queue_wait_seconds": set(),
    "stn_batch_items": set(),
    "stn_batch_bytes": set(),
    "stn_batch_duration_seconds": {"operation", "backend"},
    "stn_samples": set(),
    "stn_refused": {"reason"},
    "stn_abandoned_items": set(),
    "stn_queued_items": set(),
    "stn_running_items": set(),
    "stn_admitted_bytes": set(),
    "stn_queue_age_seconds": set(),
    "stn_device_memory_bytes": {"device"},
    "stn_device_resident_bytes": {"device"},
    "stn_log_lines_dropped": set(),
    "stn_arenas": set(),
    "stn_resident_tensors": set(),
    "stn_resident_bytes": set(),
    "stn_resident_evictions": {"reason"},
    "stn_arena_bytes": set(),
    "stn_lanes": {"device"},
    "stn_lane_busy_seconds": {"device"},
    "stn_kernel_compilations": {"outcome"},
    "stn_kernel_compilation_duration_seconds": set(),
    "stn_reloads": {"file", "outcome"},
    "stn_build_info": {"version"},
    "stn_ready": set(),
    "stn_caller_calls": {"caller"},
    "stn_caller_bytes": {"caller", "direction"},
    "stn_caller_device_seconds": {"caller"},
    "stn_event_loop_lag_seconds": set(),
    "stn_event_loop_still_seconds": set(),
    "stn_pending_calls": set(),
    "stn_pending_age_seconds": set(),
    "stn_receiving_bytes": set(),
    "stn_cpu_cores": set(),
    "stn_cpu_periods": set(),
    "stn_cpu_throttled_periods": set(),
    "stn_cpu_throttled_seconds": set(),
}

OK = End(grpc.StatusCode.OK, 1.0)


def call(**facts):
    """A call that has come by a socket."""
    return SimpleNamespace(
        **{
            "method": "Warp",
            "caller": Caller("", "unix"),
            "received_bytes": 0,
            "sent_bytes": 0,
            **facts,
        }
    )


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return Metrics(registry)


def test_buckets_begin_at_100_microseconds():
    """A small warp takes less than a millisecond; a large batch holds a thousand calls."""
    assert SECONDS[0] == pytest.approx(100e-6)
    assert list(SECONDS) == sorted(SECONDS)
    assert (SECONDS[-1], ITEMS[0], ITEMS[-1]) == (30.0, 1.0, 1024.0)


def test_names_and_labels_are_these_and_no_others(metrics, registry):
    """Base units in the names; no label takes a value that a caller chooses."""
    metrics.call_ended(call(sent_bytes=1), OK)
    refusal = QueueFullError("items", 1, 2, 0.1)
    answer = answer_to(refusal, "")
    metrics.call_ended(call(), End(answer.code, 0.1, answer, refusal))
    metrics.file_changed("tokens", "accepted", "")
    metrics.watch_memory({"cpu": lambda: 1.0})
    metrics.watch_copies({"cpu": lambda: 0.0})
    metrics.watch_lanes({"cpu": 1})
    found = {}
    for family in registry.collect():
        names = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[family.name] = names
        assert family.documentation
    found["stn_batch_duration_seconds"] |= {"operation", "backend"}
    found["stn_caller_device_seconds"] |= {"caller"}
    assert found == LABELS


def test_a_batch_is_observed_item_by_item(metrics, registry):
    """Waits of every item, the launch once, samples in all."""

    async def scenario():
        runner = FakeRunner(held=True)
        batcher = make_batcher(runner, metrics)
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(submit(batcher, "busy"))]
        await runner.begun(1)
        tasks += [asyncio.create_task(submit(batcher, n)) for n in range(3)]
        loop.call_later(2.0, runner.release)
        loop.call_later(5.0, runner.release)
        await asyncio.gather(*tasks)

    run_in_virtual_time(scenario())
    value = registry.get_sample_value
    assert value("stn_queue_wait_seconds_count") == 4
    assert value("stn_queue_wait_seconds_sum") == 6.0
    assert value("stn_batch_items_count") == 2
    assert value("stn_batch_items_sum") == 4
    labels = {"operation": "Warp", "backend": "cpu"}
    assert value("stn_batch_duration_seconds_sum", labels) == 5.0
    assert value("stn_samples_total") == 4


def test_the_queue_is_seen_as_it_is(metrics, registry):
    """Gauges are read when scraped."""

    def gauges():
        names = ("queued_items", "running_items", "admitted_bytes", "queue_age_seconds")
        return [registry.get_sample_value(f"stn_{name}") for name in names]

    async def scenario():
        runner = FakeRunner(held=True)
        batcher = make_batcher(runner, metrics)
        metrics.watch(batcher.statistics, batcher.queue_age_s)
        seen = [gauges()]
        tasks = [asyncio.create_task(submit(batcher, "busy"))]
        await runner.begun(1)
        tasks += [asyncio.create_task(submit(batcher, n)) for n in range(2)]
        loop = asyncio.get_running_loop()
        loop.call_later(1.5, lambda: seen.append(gauges()))
        loop.call_later(2.0, runner.release_all)
        await asyncio.gather(*tasks)
        return [*seen, gauges()]

    assert run_in_virtual_time(scenario()) == [
        [0, 0, 0, 0],
        [2, 1, 30, 1.5],
        [0, 0, 0, 0],
    ]


def test_who_leaves_the_queue_is_counted(metrics, registry):
    """An item that expires is abandoned."""

    async def scenario():
        runner = FakeRunner(held=True)
        batcher = make_batcher(runner, metrics)
        busy = asyncio.create_task(submit(batcher, "busy"))
        await runner.begun(1)
        await outcome_of(submit(batcher, "late", deadline=1.0))
        runner.release_all()
        await busy

    run_in_virtual_time(scenario())
    assert registry.get_sample_value("stn_abandoned_items_total") == 1


def test_every_end_of_a_call_is_counted_by_method_and_code():
    """Replies, bad requests and faults; messages in bytes."""
    request = warp_request().SerializeToString()
    bad = next(bad for bad in BAD_REQUESTS if bad.method == "GenerateGrid")

    def answer(batch):
        return [batch.problems[0][1][:1]]

    async def scenario():
        async with (
            serving(FakeRunner(answer)) as service,
            grpc.aio.insecure_channel(service.target) as channel,
        ):

            async def call(method, message):
                path = f"/{service_pb2.DESCRIPTOR.package}.SpatialTransformer/{method}"
                return await outcome_of(channel.unary_unary(path)(message))

            reply = await call("Warp", request)
            await call(bad.method, bad.message)
            await call("GenerateGrid", b"")
            await call("GetServerInfo", b"")
            return service, reply

    service, reply = asyncio.run(scenario())
    assert service.value("stn_requests_total", method="Warp", code="OK") == 1
    assert service.value("stn_requests_total", method="GetServerInfo", code="OK") == 1
    codes = {"method": "GenerateGrid", "code": "INVALID_ARGUMENT"}
    assert service.value("stn_requests_total", **codes) == 2
    assert service.value("stn_request_duration_seconds_count", method="GenerateGrid") == 2
    moved = {"transport": "tcp"}
    received = service.value("stn_payload_bytes_total", direction="received", **moved)
    sent = service.value("stn_payload_bytes_total", direction="sent", **moved)
    assert (received, sent) == (len(request), len(reply))


def test_nothing_is_lost_between_two_looks(metrics, registry):
    """However many calls there were, and however many threads look meanwhile."""
    calls, looks = 5 * MAX_NOTES, []
    asking = threading.Thread(target=lambda: looks.extend(registry.collect() for _ in range(50)))
    asking.start()
    for _ in range(calls):
        metrics.call_ended(call(), OK)
    asking.join()
    assert (
        registry.get_sample_value("stn_requests_total", {"method": "Warp", "code": "OK"}) == calls
    )
    durations = "stn_request_duration_seconds"
    assert registry.get_sample_value(f"{durations}_sum", {"method": "Warp"}) == calls


def test_what_nobody_looks_at_is_not_kept_for_long(metrics):
    """Notes take memory until they are counted."""
    for _ in range(MAX_NOTES):
        metrics.lane_freed("cpu", 1.0)
        assert len(metrics._notes) < MAX_NOTES
    assert len(metrics._notes) == 0


def test_kernels_are_counted_by_where_they_came_from(metrics, registry):
    """What is read from disk takes no time worth a bucket."""
    value = registry.get_sample_value
    assert value("stn_kernel_compilations_total", {"outcome": "failed"}) == 0
    compilations.watch(metrics.kernels_compiled)
    for outcome, duration_s in (("compiled", 2.0), ("cached", 0.1), ("failed", 1.0)):
        compilations.tell(compilations.Outcome(outcome), duration_s)
        assert value("stn_kernel_compilations_total", {"outcome": outcome}) == 1
    compilations.unwatch(metrics.kernels_compiled)
    compilations.tell(compilations.Outcome.COMPILED, 1.0)
    assert value("stn_kernel_compilations_total", {"outcome": "compiled"}) == 1
    assert value("stn_kernel_compilation_duration_seconds_count") == 2
    assert value("stn_kernel_compilation_duration_seconds_sum") == 3.0


def test_the_build_is_named(metrics, registry):
    """A constant 1 whose label is the version."""
    del metrics
    assert b'stn_build_info{version="' in generate_latest(registry)


def test_the_utilisation_of_a_device_follows_from_its_lanes(metrics, registry):
    """Busy seconds of all of its lanes, and how many there are."""
    metrics.watch_lanes({"cuda:0": 2})
    assert registry.get_sample_value("stn_lane_busy_seconds_total", {"device": "cuda:0"}) == 0
    metrics.lane_freed("cuda:0", 0.25)
    metrics.lane_freed("cuda:0", 0.5)
    assert registry.get_sample_value("stn_lane_busy_seconds_total", {"device": "cuda:0"}) == 0.75
    assert registry.get_sample_value("stn_lanes", {"device": "cuda:0"}) == 2
