"""The files of deploy/ for Docker Compose and Kubernetes, as these read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import kubernetes_validate
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROGRAMS = Path(sys.executable).parent
API_VERSION = "1.37"
WORKLOADS = ("Deployment", "DaemonSet", "Job")
SERVER, SERVER_ON_GPUS, TRAINER = (
    f"registry.example/{name}@sha256:{digit * 64}"
    for name, digit in (("stn-server", "1"), ("stn-server", "2"), ("stn-trainer", "3"))
)
IMAGES = {
    "cpu": {"server": SERVER},
    "gpu": {"server": SERVER_ON_GPUS},
    "sidecar": {"server": SERVER, "trainer": TRAINER},
}
"""The images of containers that somebody may have named, by the overlay that has a file of them."""

COMPONENTS = sorted(path.name for path in (DEPLOY / "k8s/components").iterdir())
ON_GPUS = {"mig", "time-slicing"}
"""Components for the overlay `gpu` alone."""

WAYS = {
    **{name: (name,) for name in ("cpu", "gpu", "node", "sidecar", "production")},
    **{f"cpu+{name}": ("cpu", name) for name in COMPONENTS if name not in ON_GPUS},
    **{f"gpu+{name}": ("gpu", name) for name in COMPONENTS},
    "cpu+tls+tokens+admin": ("cpu", "tls", "tokens", "admin"),
    "cpu+tokens+node": ("cpu", "tokens", "node"),
}
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds that the Kubernetes API itself does not define."""

NAMESPACE = "kubernetes.io/metadata.name"
"""The label that Kubernetes itself gives to every namespace: its name."""


def composed(*names):
    """Compose files laid over one another; Docker Compose refuses what it does not know."""
    command = [PROGRAMS / "docker-compose", "--profile=*"]
    for name in names:
        command += ["--file", DEPLOY / name]
    command += ["config", "--format=json"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(text)


FIELDS = {"status.podIP": "10.0.0.7"}
"""What a cluster says of a pod in variables that name a field of it."""


def variables(container):
    """The environment of a container of a pod, as a cluster fills it in."""
    return {
        entry["name"]: entry["value"]
        if "value" in entry
        else FIELDS[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container.get("env", ())
    }


@dataclass(frozen=True)
class Objects:
    """All that an overlay sends to Kubernetes, and what Kubernetes would find in it."""

    all: tuple

    def of(self, kind):
        """Every object of a kind."""
        return [found for found in self.all if found["kind"] == kind]

    def one(self, kind):
        """The only one of a kind."""
        (found,) = self.of(kind)
        return found

    @cached_property
    def workload(self):
        """What makes the server's pods."""
        (found,) = (found for kind in WORKLOADS for found in self.of(kind))
        return found

    @property
    def pod(self):
        """The spec of the server's pods."""
        return self.workload["spec"]["template"]["spec"]

    @property
    def labels(self):
        """Those of the server's pods."""
        return self.workload["spec"]["template"].get("metadata", {}).get("labels", {})

    @property
    def server(self):
        """The server's container."""
        (found,) = (one for one in self.containers if one["name"] == "server")
        return found

    @property
    def containers(self):
        """All of the server's pod, those that run first, too."""
        return [*self.pod.get("initContainers", ()), *self.pod["containers"]]

    @property
    def environment(self):
        """Variables of the server."""
        return variables(self.server)

    @property
    def ports(self):
        """The server's ports by name."""
        return {port["name"]: port["containerPort"] for port in self.server["ports"]}

    def allows(self, direction, port, *, namespace=None, pod=None, protocol="TCP"):
        """Whether policies let the server's pods and a peer connect, as a cluster decides it.

        Args:
            direction: "ingress" or "egress", as seen from the server.
            port: The number of the port, of whoever is called.
            namespace: The peer's; None: the server's own.
            pod: Its labels.
            protocol: Of the port.
        """
        policies = [
            policy["spec"]
            for policy in self.of("NetworkPolicy")
            if direction.title() in policy["spec"]["policyTypes"]
            and selects(policy["spec"]["podSelector"], self.labels)
        ]
        peers = {"ingress": "from", "egress": "to"}[direction]
        return not policies or any(
            any(_is_peer(peer, namespace, pod or {}) for peer in rule[peers])
            and any(self._is_port(found, port, protocol) for found in rule["ports"])
            for policy in policies
            for rule in policy.get(direction, ())
        )

    def _is_port(self, found, port, protocol):
        """Names are those of the server's ports."""
        number = self.ports.get(found["port"], found["port"])
        return (number, found.get("protocol", "TCP")) == (port, protocol)


def _is_peer(peer, namespace, pod):
    if "namespaceSelector" in peer:
        labels = {} if namespace is None else {NAMESPACE: namespace}
        if not selects(peer["namespaceSelector"], labels):
            return False
    elif namespace is not None:
        return False
    return selects(peer.get("podSelector", {}), pod)


def selects(selector, labels):
    """Whether a label selector of Kubernetes matches; an empty one matches everything."""
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def quantity_bytes(text):
    """A quantity of Kubernetes in bytes."""
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", text).groups()
    return int(number) * 1024 ** (1 + "KMG".index(unit[0]))


def all_objects(overlay, *components):
    """Those of a Kustomize overlay, laid under components."""
    return Objects(tuple(_rendered(overlay, components)))


def rendered(overlay):
    """Every object of a Kustomize overlay by its kind."""
    return {found["kind"]: found for found in _rendered(overlay, ())}


@cache
def _rendered(overlay, components):
    with tempfile.TemporaryDirectory() as folder:
        path = own_copy(Path(folder), overlay, *components)
        command = [PROGRAMS / "kubectl", "kustomize", path]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def own_copy(folder, overlay, *components):
    """Copies the overlays, as somebody has them who has named the images; returns what to apply.

    Args:
        folder: Takes the copy.
        overlay: Its name.
        *components: Those that an overlay of one's own lays over it; without any it stays alone.
    """
    for name in ("k8s", "grafana"):
        shutil.copytree(DEPLOY / name, folder / name)
    for name, images in IMAGES.items():
        lines = "".join(f"{container}={image}\n" for container, image in images.items())
        (folder / "k8s" / name / "images.env").write_text(lines)
    if not components:
        return folder / "k8s" / overlay
    own = folder / "k8s/own"
    own.mkdir()
    tree = {
        "resources": [f"../{overlay}"],
        "components": [f"../components/{c}" for c in components],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(tree))
    return own


def validate(manifest):
    """Raises unless an object fits Kubernetes' own schemas, strictly."""
    kubernetes_validate.validate(manifest, API_VERSION, strict=True)
