"""What a real API server and its controllers make of the overlays; no pod ever runs."""

import json
import re

import pytest
import yaml

from support.certificates import Authority
from support.manifests import CUSTOM, DEPLOY, TRAINER, WAYS, all_objects, own_copy

pytestmark = pytest.mark.timeout(300)

README = (DEPLOY / "README.md").read_text()
NVIDIA = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "nvidia"},
    "handler": "nvidia",
}
"""What the GPU operator makes."""

NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"}}
BINDING = {"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": "one"}}
"""What the scheduler says."""


def send(cluster, folder, manifest, *arguments, verb="apply", code=0):
    """Sends an object from a file; returns what `kubectl` says."""
    path = folder / "object.json"
    path.write_text(json.dumps(manifest))
    return cluster.kubectl(verb, f"--filename={path}", *arguments, code=code)


def level(way):
    """Of the Pod Security Standards; the owner of a node's folder is root."""
    return "privileged" if "node" in way else "restricted"


@pytest.mark.parametrize("way", WAYS)
def test_the_api_server_takes_every_overlay(cluster, way, tmp_path):
    """Strictly and without a warning; applying it again would change nothing."""
    # One overlay has a namespace of its own.
    namespace = "stn" if way == "production" else f"takes-{way.replace('+', '-')}"
    cluster.make_namespace(namespace, level(way))
    path = own_copy(tmp_path, *WAYS[way])
    there = (f"--namespace={namespace}", f"--kustomize={path}")
    for dry in ("server", "none"):
        said, warned = cluster.kubectl("apply", "--validate=strict", f"--dry-run={dry}", *there)
        assert warned == ""
        assert len(said.splitlines()) == len(all_objects(*WAYS[way]).all)
    cluster.wait_until_applied(*there)


@pytest.mark.parametrize("kind", sorted(CUSTOM))
def test_it_knows_the_kinds_of_operators(cluster, kind, tmp_path):
    """A misspelt field of them is refused: the test above can fail."""
    found = all_objects("production").one(kind)
    found = {**found, "spec": {**found["spec"], "misspelt": 1}}
    found["metadata"] = {"name": "misspelt"}
    _, said = send(cluster, tmp_path, found, "--validate=strict", "--dry-run=server", code=1)
    assert 'unknown field "spec.misspelt"' in said


def test_the_autoscaler_owns_the_number_of_pods(cluster, tmp_path):
    """It wants two at least, and they stay when the overlay is applied again."""
    cluster.make_namespace("scales", "restricted")
    there = ("apply", "--namespace=scales", f"--kustomize={own_copy(tmp_path, 'cpu')}")
    cluster.kubectl(*there)
    pods = cluster.wait_for("pods", "scales", lambda found: len(found) == 2)
    cluster.kubectl(*there)
    (deployment,) = cluster.objects("deployments", "scales")
    assert deployment["spec"]["replicas"] == 2
    assert {pod["metadata"]["name"] for pod in cluster.objects("pods", "scales")} == {
        pod["metadata"]["name"] for pod in pods
    }


def test_service_and_budget_find_the_pods(cluster, tmp_path):
    """Pods that somebody calls ready have addresses under the Service; one of two may go."""
    send(cluster, tmp_path, NODE)
    cluster.make_namespace("finds", "restricted")
    cluster.kubectl("apply", "--namespace=finds", f"--kustomize={own_copy(tmp_path, 'cpu')}")
    pods = cluster.wait_for("pods", "finds", lambda found: len(found) == 2)
    for number, pod in enumerate(pods):
        address = f"192.0.2.{number}"
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        status["conditions"] = [{"type": "Ready", "status": "True"}]
        patch = f"--patch={json.dumps({'status': status})}"
        name = pod["metadata"]["name"]
        path = f"--raw=/api/v1/namespaces/finds/pods/{name}/binding"
        send(cluster, tmp_path, BINDING | {"metadata": {"name": name}}, path, verb="create")
        cluster.kubectl("patch", "--namespace=finds", "--subresource=status", f"pod/{name}", patch)

    def addresses(found):
        return {a for one in found for end in one["endpoints"] or () for a in end["addresses"]}

    slices = cluster.wait_for(
        "endpointslices", "finds", lambda found: addresses(found) == {"192.0.2.0", "192.0.2.1"}
    )
    ports = {port["name"]: port["port"] for found in slices for port in found["ports"]}
    assert ports == {"grpc": 50051, "metrics": 9464}
    (budget,) = cluster.wait_for(
        "pdb", "finds", lambda found: found[0].get("status", {}).get("currentHealthy") == 2
    )
    assert (budget["status"]["expectedPods"], budget["status"]["disruptionsAllowed"]) == (2, 1)


def refusals(events):
    """Why controllers could not make pods."""
    return " ".join(event["message"] for event in events if event["reason"] == "FailedCreate")


def test_pods_on_gpus_wait_for_the_runtime_class(cluster, tmp_path):
    """Where the GPU operator is missing, its class is asked for by name."""
    cluster.make_namespace("gpus", "restricted")
    cluster.kubectl("apply", "--namespace=gpus", f"--kustomize={own_copy(tmp_path, 'gpu')}")
    cluster.wait_for(
        "events", "gpus", lambda found: 'RuntimeClass "nvidia" not found' in refusals(found)
    )
    send(cluster, tmp_path, NVIDIA)
    cluster.wait_for("pods", "gpus", lambda found: len(found) == 2)


def test_a_node_has_one_server_where_its_owner_may_be_root(cluster, tmp_path):
    """The README's `privileged`; a level below no pod is made, and the event says why."""
    send(cluster, tmp_path, NODE)
    path = own_copy(tmp_path, "node")
    for namespace in ("privileged", "baseline"):
        cluster.make_namespace(f"node-{namespace}", namespace)
        cluster.kubectl("apply", f"--namespace=node-{namespace}", f"--kustomize={path}")
    cluster.wait_for("pods", "node-privileged", lambda found: len(found) == 1)
    cluster.wait_for(
        "events", "node-baseline", lambda found: 'violates PodSecurity "baseline' in refusals(found)
    )
    assert "have to be `privileged` for it" in README


def test_a_changed_file_of_settings_is_rolled_out(cluster, tmp_path):
    """By a ConfigMap of another name, hence other pods; old pods keep theirs."""
    cluster.kubectl("create", "namespace", "changes")
    path = own_copy(tmp_path, "production")
    own = path / "kustomization.yaml"
    own.write_text(own.read_text().replace("namespace: stn", "namespace: changes"))
    cluster.kubectl("apply", f"--kustomize={path}")
    with (path / "stn.toml").open("a") as file:
        file.write("\n# changed\n")
    cluster.kubectl("apply", f"--kustomize={path}")
    cluster.wait_for("replicasets", "changes", lambda found: len(found) == 2)
    names = (found["metadata"]["name"] for found in cluster.objects("configmaps", "changes"))
    assert sum(name.startswith("stn-config-") for name in names) == 2


def test_a_trainer_has_an_image_of_its_user(cluster, tmp_path):
    """As it is the job is refused; with an image every `create` is another trainer."""
    cluster.make_namespace("trainers", "privileged")
    manifest = yaml.safe_load((DEPLOY / "k8s/node/trainer.yaml").read_text())
    _, said = send(cluster, tmp_path, manifest, "--namespace=trainers", verb="create", code=1)
    assert "containers[0].image: Required value" in said
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    container["image"] = TRAINER
    for _ in range(2):
        send(cluster, tmp_path, manifest, "--namespace=trainers", verb="create")
    cluster.wait_for("pods", "trainers", lambda found: len(found) == 2)


def test_a_sidecar_and_its_trainer_are_one_pod(cluster, tmp_path):
    """The server is a sidecar for the API, too: it is not waited for to end."""
    cluster.make_namespace("sidecar", "restricted")
    cluster.kubectl("apply", "--namespace=sidecar", f"--kustomize={own_copy(tmp_path, 'sidecar')}")
    (pod,) = cluster.wait_for("pods", "sidecar", lambda found: len(found) == 1)
    (server,) = pod["spec"]["initContainers"]
    assert (server["name"], server["restartPolicy"]) == ("server", "Always")


def test_the_readmes_commands_make_the_secrets(cluster, tmp_path):
    """With the keys by whose names the server looks for them."""
    cluster.kubectl("create", "namespace", "secrets")
    (tokens,) = re.findall(r"`kubectl (create secret generic stn-tokens [^`]+)`", README)
    (tmp_path / "tokens.toml").write_text("")
    given = tokens.replace("=tokens.toml", f"={tmp_path}/tokens.toml").split()
    cluster.kubectl(*given, "--namespace=secrets")
    assert "the Secret `stn-tls`, of cert-manager or `kubectl create secret tls`" in README
    certificate, key = Authority(tmp_path, "ours").issue("stn")
    files = (f"--cert={certificate}", f"--key={key}", "--namespace=secrets")
    cluster.kubectl("create", "secret", "tls", "stn-tls", *files)
    made = {one["metadata"]["name"]: one["data"] for one in cluster.objects("secrets", "secrets")}
    assert made["stn-tokens"].keys() == {"tokens.toml"}
    assert made["stn-tls"].keys() == {"tls.crt", "tls.key"}
