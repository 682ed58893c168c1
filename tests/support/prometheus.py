"""A real Prometheus that scrapes servers of a test (Debian package `prometheus`)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

PATIENCE_S = 60.0
PAUSE_S = 0.02

CONFIG = """
global:
  scrape_interval: {interval_ms}ms
  evaluation_interval: {interval_ms}ms
rule_files: {rules}
scrape_configs:
  - job_name: stn
    file_sd_configs:
      - files: [{targets}]
"""


class Prometheus:
    """Scrapes metrics addresses.

    Args:
        folder: For its configuration and its data.
        *metrics: URLs of the metrics.
        interval_ms: From one scrape to the next.
        rules: A file of rules, evaluated as often; None: there are none.
    """

    def __init__(self, folder, *metrics, interval_ms=100, rules=None):
        config, self._targets = folder / "prometheus.yml", folder / "targets.json"
        rules = [str(rules)] if rules else []
        text = CONFIG.format(targets=self._targets, interval_ms=interval_ms, rules=rules)
        config.write_text(text)
        self.scrape(*metrics)
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        flags = [f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [_command("prometheus"), *flags, f"--web.listen-address=127.0.0.1:{port}"],
                stdout=log,
                stderr=log,
            )

    def scrape(self, *metrics):
        """Scrapes these metrics addresses from now on, and no others."""
        targets = [urllib.parse.urlsplit(url).netloc for url in metrics]
        written = self._targets.with_suffix(".new")
        written.write_text(json.dumps([{"targets": targets}]))
        written.replace(self._targets)

    def series(self, expression):
        """The labels of every series that an expression has at present."""
        return [series["metric"] for series in self._ask("query", query=expression)]

    def query(self, expression):
        """The present value of an expression that has one, else None."""
        found = self._ask("query", query=expression)
        return float(found[0]["value"][1]) if found else None

    def query_range(self, expression, start, end, step):
        """The series of an expression: labels, times and values each, all in seconds."""
        found = self._ask("query_range", query=expression, start=start, end=end, step=step)
        return [
            (series["metric"], *zip(*((t, float(v)) for t, v in series["values"]), strict=True))
            for series in found
        ]

    def wait_for(self, expression, value):
        """Returns once an expression has a value; fails with the last one if it never does."""
        pause, deadline = threading.Event(), time.monotonic() + PATIENCE_S
        found = None
        while time.monotonic() < deadline:
            try:
                found = self.query(expression)
            except urllib.error.URLError as error:  # it is still starting
                found = error
            if found == value:
                return
            pause.wait(PAUSE_S)
        raise AssertionError(f"{expression}: expected {value}, got {found}.")

    def _ask(self, path, **question):
        """What its interface answers."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(question)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]["result"]

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._process.terminate()
        self._process.wait(PATIENCE_S)


def complaints(text):
    """What Prometheus' own linter says about an exposition."""
    command = [_command("promtool"), "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return checked.stdout + checked.stderr


def _command(name):
    """A program of the package; a test without it would prove nothing."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name}: expected it on the PATH, got none. apt install prometheus")
    return found


def free_port():
    """A port that nobody listens on; Prometheus does not tell which one it took."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
