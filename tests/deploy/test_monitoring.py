"""What watches the server: alert rules, the scrape, and every query of the dashboard."""

import contextlib
import json
import re
import subprocess
import threading
from pathlib import Path

import pytest
import yaml

from stn_client import Affine, Client, OverloadedError, RetryPolicy
from stn_client.local import LocalServer
from support.bad_requests import ramp, theta
from support.manifests import composed
from support.processes import run_python
from support.prometheus import Prometheus

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/alerts.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def promtool(*arguments):
    """Runs promtool; fails with what it says."""
    command = ["promtool", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def alerts():
    """Every alert rule."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return group["rules"]


def test_prometheus_takes_the_configuration():
    """With the rules it names."""
    promtool("check", "config", DEPLOY / "prometheus/prometheus.yaml")


def test_prometheus_finds_the_servers_of_compose_by_their_name():
    """At the port of metrics that the image exposes."""
    (job,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert set(found["names"]) <= composed("compose.yaml")["services"].keys()
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    (exposed,) = re.findall(r"^EXPOSE \d+ (\d+)$", dockerfile, re.MULTILINE)
    assert found["port"] == int(exposed)


def test_alerts_fire_when_they_should_and_only_then():
    """Histories of half an hour: all is well, nothing is, and somebody is forgotten."""
    promtool("test", "rules", DEPLOY / "prometheus/alerts_test.yaml")


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_has_its_place_in_the_runbook(rule):
    """The annotation leads to a section of the README."""
    path, anchor = rule["annotations"]["runbook"].split("#")
    assert anchor == rule["alert"].lower()
    assert f"### {rule['alert']}\n" in (DEPLOY.parent / path).read_text()
    assert rule["labels"]["severity"] in {"critical", "warning"}


def test_the_runbook_names_what_the_dashboard_shows():
    """Panels by their titles, and series by the beginning of their legends."""
    runbook = (DEPLOY / "README.md").read_text().split("## Runbook")[1]
    named = {" ".join(name.split()) for name in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", runbook)}
    named -= {"Seen:", "seen"}  # what an incident showed
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    legends = {
        target["legendFormat"].split(",")[0]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }
    mentioned = {"Calls refused or abandoned", "Calls by caller", "throttled", "not begun"}
    assert mentioned <= named <= titles | legends


def test_the_dashboard_reads_the_provisioned_source():
    """Both files name the same source."""
    source = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    (uid,) = (entry["uid"] for entry in source["datasources"])
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {uid}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.slow
def test_the_picture_shows_the_present_dashboard():
    """Whoever changes the dashboard draws it again."""
    result = run_python(DEPLOY.parent / ".ci/draw_dashboard.py", "--check")
    assert result.returncode == 0, result.stderr


@contextlib.contextmanager
def load(target):
    """Calls from four threads, more than are admitted."""
    done = threading.Event()

    def call():
        with Client(target, retry=RetryPolicy(attempts=1)) as stn:
            while not done.is_set():
                with contextlib.suppress(OverloadedError):
                    stn.warp(ramp(1, 3, 60, 80), Affine(theta(1)))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_every_query_of_the_dashboard_finds_data(tmp_path):
    """A real Prometheus scrapes a real server under load; each query has a number.

    So has each metric that an alert is about.
    """
    names = {name for rule in alerts() for name in re.findall(r"stn_\w+", rule["expr"])}
    with (
        LocalServer("--batching-max-admitted-items=2") as server,
        load(server.target),
        Prometheus(tmp_path, server.metrics) as prometheus,
    ):
        for query in [*QUERIES, *names]:
            recent = query.replace("$__rate_interval", "2s")
            prometheus.wait_for(f"count(({recent}) >= 0) > bool 0", 1.0)
