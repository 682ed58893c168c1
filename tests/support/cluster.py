"""A Kubernetes cluster without nodes: etcd, the API server and the controllers, on loopback.

What is applied is validated, admitted and acted upon as in any cluster; no pod ever runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import threading
import time

from support.manifests import PROGRAMS
from support.prometheus import free_port

SERVERS = ("etcd", "kube-apiserver", "kube-controller-manager")
PATIENCE_S = 60.0
PAUSE_S = 0.1


class Cluster:
    """What `kubectl` says of a cluster, and does to it.

    Args:
        folder: Has the cluster's files.
    """

    def __init__(self, folder):
        self._environment = os.environ | {"KUBECONFIG": str(folder / "kubeconfig")}

    def kubectl(self, *arguments, code=0):
        """Runs it to its end, which has to be this exit code; returns both of its outputs."""
        command = [PROGRAMS / "kubectl", *arguments]
        ended = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == code, (arguments, ended.stdout, ended.stderr)
        return ended.stdout, ended.stderr

    def objects(self, kind, namespace):
        """Those of a kind, as they are now."""
        listed, _ = self.kubectl("get", kind, f"--namespace={namespace}", "--output=json")
        return json.loads(listed)["items"]

    def wait_for(self, kind, namespace, condition):
        """Returns the objects of a kind once they fulfil a condition; fails with the last ones."""
        found = None
        for _ in _until(PATIENCE_S):
            found = self.objects(kind, namespace)
            if condition(found):
                return found
        raise AssertionError(f"{kind} in {namespace}: {found}")

    def wait_until_applied(self, *arguments):
        """Returns once `kubectl diff` finds nothing; controllers at work are changes to it, too."""
        for _ in _until(PATIENCE_S):
            with contextlib.suppress(AssertionError):
                self.kubectl("diff", *arguments)
                return
        self.kubectl("diff", *arguments)

    def make_namespace(self, name, level):
        """One that enforces a level of the Pod Security Standards, and warns of breaches."""
        self.kubectl("create", "namespace", name)
        modes = (f"pod-security.kubernetes.io/{mode}={level}" for mode in ("enforce", "warn"))
        self.kubectl("label", "namespace", name, *modes)


@contextlib.contextmanager
def running_cluster(folder, definitions):
    """A cluster that ends with its context.

    Args:
        folder: Takes its files.
        definitions: A folder with CustomResourceDefinitions, which it then has.

    Raises:
        RuntimeError: A program or the definitions are missing, or the API server does not become
            ready; with its log.
    """
    missing = [name for name in SERVERS if shutil.which(name) is None]
    if missing:
        raise RuntimeError(
            f"cluster: expected {', '.join(SERVERS)} on the PATH, got no {', '.join(missing)}. "
            "Take etcd and the server binaries of a release of Kubernetes."
        )
    kinds = sorted(definitions.glob("*.yaml"))
    if not kinds:
        raise RuntimeError(
            f"cluster: expected files *.yaml with CustomResourceDefinitions in {definitions}, got "
            "none. Take those of ServiceMonitor, PrometheusRule and ScaledObject, and name their "
            "folder: make test-cluster CRDS=folder"
        )
    store, port = free_port(), free_port()
    _write_files(folder, port, token=secrets.token_hex(16))
    cluster = Cluster(folder)
    with (
        _running(_etcd(folder, store), folder),
        _running(_server(folder, store, port), folder) as server,
    ):
        _wait_until_ready(cluster, server, folder)
        with _running(_controllers(folder), folder):
            cluster.kubectl("apply", "--server-side", *(f"--filename={path}" for path in kinds))
            cluster.kubectl("wait", "--for=condition=Established", "crd", "--all")
            yield cluster


def _write_files(folder, port, token):
    """A token of an administrator, and what `kubectl` and the controllers call the server by."""
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    server = {"server": f"https://127.0.0.1:{port}"}
    server["certificate-authority"] = str(folder / "certificates/apiserver.crt")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tested", "cluster": server}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "tested", "context": {"cluster": "tested", "user": "admin"}}],
        "current-context": "tested",
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    command = ["openssl", "genrsa", "-out", folder / "accounts.key", "2048"]
    subprocess.run(command, check=True, capture_output=True)


def _etcd(folder, store):
    peers = f"http://127.0.0.1:{free_port()}"
    return [
        "etcd",
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls=http://127.0.0.1:{store}",
        f"--advertise-client-urls=http://127.0.0.1:{store}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",
    ]


def _server(folder, store, port):
    return [
        "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{store}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder}/certificates",
        f"--token-auth-file={folder}/tokens.csv",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder}/accounts.key",
        f"--service-account-signing-key-file={folder}/accounts.key",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--endpoint-reconciler-type=none",
    ]


def _controllers(folder):
    """They look at autoscalers every five seconds, and are not slowed down by what they ask."""
    return [
        "kube-controller-manager",
        f"--kubeconfig={folder}/kubeconfig",
        f"--service-account-private-key-file={folder}/accounts.key",
        "--leader-elect=false",
        "--secure-port=0",
        "--horizontal-pod-autoscaler-sync-period=5s",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]


@contextlib.contextmanager
def _running(command, folder):
    """A program that ends with its context."""
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _wait_until_ready(cluster, process, folder):
    """Returns once it answers, and has what it makes itself."""
    for _ in _until(PATIENCE_S):
        with contextlib.suppress(AssertionError):
            cluster.kubectl("get", "--raw=/readyz")
            return
        if process.poll() is not None:
            break
    raise RuntimeError(
        f"kube-apiserver: expected an answer within {PATIENCE_S:g} s, got none. Its log:\n"
        f"{(folder / 'kube-apiserver.log').read_text()}"
    )


def _until(patience_s):
    """One pass, and others with a pause before each while there is time."""
    pause, deadline = threading.Event(), time.monotonic() + patience_s
    yield
    while time.monotonic() < deadline:
        pause.wait(PAUSE_S)
        yield
