"""`stn bench`, `stn top` and `stn completion`: what is measured, what is shown, what is refused."""

import json
import math
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from stn_client.cli import main
from stn_client.cli._bench import caller, row_of, show, sweep
from stn_client.cli._top import Snapshot, durations, looks_of, quantile, read, summary
from stn_client.testing import StubClient


def test_a_row_is_what_durations_come_to():
    """By hand: 100 calls of 1 to 100 ms in two seconds."""
    row = row_of(4, [k / 1e3 for k in range(1, 101)], 2.0, 3.5)
    assert (row.concurrency, row.calls, row.calls_per_s, row.items_per_batch) == (4, 100, 50.0, 3.5)
    assert row.mean_ms == pytest.approx(50.5)
    assert [row.p50_ms, row.p90_ms, row.p99_ms] == pytest.approx([50.5, 90.1, 99.01])
    assert row.longest_ms == pytest.approx(100)


def test_a_sweep_makes_as_many_calls_as_it_is_told():
    """At each concurrency, after one for each that is under way at a time."""
    with StubClient() as stub:
        rows = list(sweep(stub, caller(stub, (1, 3, 8, 9), gradients=True), [1, 3], 10))
        assert [call.method for call in stub.calls] == ["WarpGradients"] * (1 + 10 + 3 + 10)
        assert stub.calls[0].arrays["feature_map"].shape == (1, 3, 8, 9)
    assert [(row.concurrency, row.calls) for row in rows] == [(1, 10), (3, 10)]
    assert all(0 < row.p50_ms <= row.p99_ms <= row.longest_ms for row in rows)
    assert math.isnan(rows[0].items_per_batch)  # the stub knows no batches


def test_as_many_calls_are_under_way_as_the_row_says():
    """They meet: none returns before all are there."""
    barrier = threading.Barrier(3)
    with StubClient(lambda _call: barrier.wait(10) * 0) as stub:
        list(sweep(stub, caller(stub, (1, 1, 2, 2), gradients=False), [3], 6))
        assert len(stub.calls) == 9


def test_bench_prints_rows_for_programs_and_people(local_server, capsys):
    """As JSON, and as a table with a bar for every row."""
    command = [f"--target={local_server.target}", "bench", "--concurrency", "1", "2", "--calls=20"]
    assert main([*command, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["concurrency"], second["concurrency"], first["calls"]) == (1, 2, 20)
    assert first["calls_per_s"] > 0
    assert first["items_per_batch"] >= 1
    assert main([*command, "--gradients", "--size", "9", "7", "--channels=2"]) == 0
    table = capsys.readouterr().out
    assert "calls/s" in table
    assert "█" in table
    assert "\x1b" not in table  # no terminal, no colours


@pytest.mark.parametrize("duration_s", [1e-4, 0.123, 36.0])
def test_numbers_of_bench_are_whole_however_long_calls_take(capsys, monkeypatch, duration_s):
    """Within 80 columns, as in a pipe; what gives way is the bar, half as long for half as much."""
    monkeypatch.setenv("COLUMNS", "80")
    show([row_of(1, [duration_s] * 9, 9.0, 1.0), row_of(128, [duration_s] * 9, 18.0, math.nan)])
    first, second = capsys.readouterr().out.splitlines()[-3:-1]
    times = [f"{1e3 * duration_s:.2f}"] * 5
    assert first.split()[:-1] == ["1", "1", *times, "1.0"]
    assert second.split()[:-1] == ["128", "0", *times, "nan"]
    assert len(first) == len(second) <= 80
    assert 3 <= first.count("█") <= 2 * (second.count("█") + 1)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 0.15), (0.25, 0.1), (0.1, 0.04), (0.75, 0.2), (0.99, 0.2)]
)
def test_quantiles_are_those_of_prometheus(share, expected):
    """By hand: 25 below 0.1, 50 from 0.1 to 0.2, 25 beyond; observations before do not count."""
    before = {0.1: 10.0, 0.2: 10.0, math.inf: 12.0}
    after = {0.1: 35.0, 0.2: 85.0, math.inf: 112.0}
    assert quantile(before, after, share) == pytest.approx(expected)


def test_a_quantile_of_nothing_is_none():
    """Neither without observations nor without buckets."""
    assert math.isnan(quantile({1.0: 3.0, math.inf: 3.0}, {1.0: 3.0, math.inf: 3.0}, 0.5))
    assert math.isnan(quantile({}, {}, 0.5))


METRICS = """\
# TYPE stn_requests counter
stn_requests_total{{code="OK",method="Warp"}} {calls}
stn_requests_total{{code="OK",method="GenerateGrid"}} 1
# TYPE stn_refused counter
stn_refused_total{{reason="QUEUE_FULL"}} {refused}
# TYPE stn_request_duration_seconds histogram
stn_request_duration_seconds_bucket{{le="0.01",method="Warp"}} {fast}
stn_request_duration_seconds_bucket{{le="+Inf",method="Warp"}} {calls}
# TYPE stn_batch_items histogram
stn_batch_items_bucket{{le="+Inf"}} {batches}
stn_batch_items_count {batches}
stn_batch_items_sum {calls}
# TYPE stn_payload_bytes counter
stn_payload_bytes_total{{direction="received",transport="local"}} {received}
# TYPE stn_queue_age_seconds gauge
stn_queue_age_seconds 0.25
# TYPE stn_queued_items gauge
stn_queued_items 7
# TYPE stn_lanes gauge
stn_lanes{{device="cpu"}} 2
# TYPE stn_lane_busy_seconds counter
stn_lane_busy_seconds_total{{device="cpu"}} {busy}
"""
BEFORE = {"calls": 100, "refused": 4, "fast": 100, "batches": 50, "received": 0, "busy": 1}
AFTER = {"calls": 300, "refused": 10, "fast": 300, "batches": 100, "received": 2**23, "busy": 3}


@pytest.fixture
def metrics():
    """The URL of pages that are told one after the other."""
    pages = [METRICS.format(**BEFORE), METRICS.format(**AFTER)]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.pop(0) if pages else "no metrics {"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def test_top_tells_what_happened_between_two_looks(metrics):
    """By hand: in two seconds 200 calls in 50 batches, 6 refusals, 8 MiB, 2 of 4 lane seconds."""
    slept = []
    (pair,) = looks_of(metrics, 2.0, 1, sleep=slept.append)
    assert slept == [2.0]
    before, after = (
        Snapshot(instant_s, look.samples)
        for instant_s, look in zip((10.0, 12.0), pair, strict=True)
    )
    assert dict(summary(before, after)) == {
        "calls/s": "100.0",
        "refused/s": "3.0",
        "items per batch": "4.0",
        "batch": "nan ms",
        "wait in queue": "nan ms",
        "age of queue": "250.0 ms",
        "queued, running": "7, 0",
        "devices busy": "50 %",
        "received, sent": "4.0, 0.0 MiB/s",
    }
    (grids, warps) = durations(before, after)
    assert (grids[:2], warps[:2]) == (("GenerateGrid", 0.0), ("Warp", 100.0))
    assert warps[2] == pytest.approx([5.0, 9.0, 9.9])


def test_top_shows_a_server(local_server, capsys):
    """Its own metrics, as often as it is told."""
    assert main(["top", f"--metrics={local_server.metrics}", "--interval=0.05", "--count=2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("items per batch") == 2
    assert "p99" in shown


def test_top_of_this_machine_takes_no_proxy(local_server, monkeypatch):
    """Whatever the environment says, as calls do; one of another machine does."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for host in ("127.0.0.1", "localhost"):
        url = local_server.metrics.replace("127.0.0.1", host)
        assert main(["top", f"--metrics={url}", "--count=1"]) == 0
    assert main(["top", "--metrics=http://stn.invalid/metrics", "--count=1"]) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "http://127.0.0.1:1/metrics",
            "metrics: expected metrics, got [Errno 111] Connection refused. Say the metr",
        ),
        ("ftp://a/metrics", "metrics: expected a URL as http://127.0.0.1:9464/metrics, got ftp:"),
    ],
)
def test_top_says_in_one_line_what_is_wrong(capsys, url, message):
    assert main(["top", f"--metrics={url}", "--count=1"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told


def test_top_refuses_what_is_no_metrics(metrics):
    """A page of something else."""
    read(metrics), read(metrics)
    with pytest.raises(OSError, match="expected Prometheus metrics, got"):
        read(metrics)


@pytest.mark.parametrize("flags", [["--calls=0"], ["--concurrency", "0"], ["--size", "1"]])
def test_bench_refuses_what_cannot_be_measured(capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *flags])
    assert capsys.readouterr().err.count("\n") == 1


def test_completion_of_bash_completes(tmp_path, capsys):
    """Subcommands, as bash itself does with the script."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "stn.bash").write_text(capsys.readouterr().out)
    program = f"""
source {tmp_path / "stn.bash"}
COMP_WORDS=(stn b) COMP_CWORD=1
complete -p stn
_shtab_stn stn b stn
echo "${{COMPREPLY[@]}}"
"""
    told = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "_shtab_stn" in told[0]
    assert told[1].split() == ["bench"]
