"""The Kubernetes manifests, as `kubectl apply -k` would send them."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from stn_client.local import LocalServer
from stn_server.settings import load
from support.manifests import rendered, validate
from support.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
OVERLAYS = ("cpu", "gpu")
CUSTOM = {"ServiceMonitor"}
"""Kinds that the Kubernetes API itself does not define."""

DNS_CACHE_S = 30
"""For so long CoreDNS may tell what is no longer true."""

RULES = yaml.safe_load((ROOT / "deploy/k8s/prometheus-adapter.yaml").read_text())["rules"]
LABELS = {"app.kubernetes.io/name": "stn"}
README = (ROOT / "deploy/README.md").read_text()
CLIENT = dict(re.findall(r'label\s`([\w-]+): "(\w+)"`', README))
"""What the README tells callers to be labelled."""

MONITORING = {"kubernetes.io/metadata.name": re.search(r"namespace\s`(\w+)`", README)[1]}
"""The label that Kubernetes itself gives to the namespace that may scrape."""

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def container(overlay):
    """The server's container."""
    (found,) = rendered(overlay)["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


@overlays
def test_objects_fit_the_schemas_of_the_api(overlay):
    """Kubernetes' own schemas, strictly: a misspelt field is an error."""
    objects = rendered(overlay)
    assert set(objects) == CUSTOM | {
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
    }
    for kind in set(objects) - CUSTOM:
        validate(objects[kind])


def test_the_schemas_refuse_a_misspelt_field():
    """The check above can fail."""
    service = {**rendered("cpu")["Service"], "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="specs"):
        validate(service)


@overlays
def test_everything_selects_the_same_pods(overlay):
    """An empty selector would mean every pod of the namespace."""
    objects = rendered(overlay)
    spec = {kind: found["spec"] for kind, found in objects.items()}
    assert spec["Deployment"]["template"]["metadata"]["labels"] == LABELS
    assert spec["Service"]["selector"] == objects["Service"]["metadata"]["labels"] == LABELS
    assert spec["NetworkPolicy"]["podSelector"] == {"matchLabels": LABELS}
    for kind in ("Deployment", "PodDisruptionBudget", "ServiceMonitor"):
        assert spec[kind]["selector"] == {"matchLabels": LABELS}
    affinity = spec["Deployment"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    (apart,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert apart["podAffinityTerm"]["labelSelector"] == {"matchLabels": LABELS}
    assert not LABELS.items() <= CLIENT.items(), "a client is no server"


@overlays
def test_names_meet(overlay):
    """Autoscaler and Deployment, its fewest pods and the budget, the Service and the README."""
    objects = rendered(overlay)
    autoscaler = objects["HorizontalPodAutoscaler"]["spec"]
    deployment = objects["Deployment"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert autoscaler["minReplicas"] > objects["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    service = objects["Service"]
    (port,) = (p["port"] for p in service["spec"]["ports"] if p["name"] == "grpc")
    assert f"dns:///{service['metadata']['name']}:{port}`" in README


@overlays
def test_the_policy_lets_in_whom_the_readme_says(overlay):
    """Clients by one label, which is not the server's own; Prometheus by its namespace."""
    assert rendered(overlay)["NetworkPolicy"]["spec"]["ingress"] == [
        {"from": [{"podSelector": {"matchLabels": CLIENT}}], "ports": [{"port": "grpc"}]},
        {
            "from": [{"namespaceSelector": {"matchLabels": MONITORING}}],
            "ports": [{"port": "metrics"}],
        },
    ]


@overlays
def test_ports_meet(overlay):
    """Whatever is called or scraped by name is a port of the container."""
    ports = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    assert ports == {"grpc": 50051, "metrics": 9464}
    objects = rendered(overlay)
    service = {port["name"] for port in objects["Service"]["spec"]["ports"]}
    scraped = {endpoint["port"] for endpoint in objects["ServiceMonitor"]["spec"]["endpoints"]}
    allowed = {
        port["port"]
        for rule in objects["NetworkPolicy"]["spec"]["ingress"]
        for port in rule["ports"]
    }
    assert scraped < service == allowed == set(ports)
    assert all(port["targetPort"] == port["name"] for port in objects["Service"]["spec"]["ports"])
    probes = [container(overlay)[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    asked = {
        next(probe[kind]["port"] for kind in ("grpc", "tcpSocket") if kind in probe)
        for probe in probes
    }
    assert asked <= {"grpc", ports["grpc"]}


@overlays
def test_the_server_understands_its_settings_and_has_time_to_stop(overlay):
    """preStop, lame duck and grace fit into what Kubernetes waits."""
    settings = {entry["name"]: entry["value"] for entry in container(overlay)["env"]}
    lifecycle = load((), settings).lifecycle
    pod = rendered(overlay)["Deployment"]["spec"]["template"]["spec"]
    pause_s = 3
    assert f"time.sleep({pause_s})" in str(container(overlay)["lifecycle"]["preStop"])
    needed_s = pause_s + lifecycle.lame_duck_s + lifecycle.grace_s
    assert needed_s < pod["terminationGracePeriodSeconds"]
    assert pod["enableServiceLinks"] is False


@overlays
def test_pods_are_locked_down_and_have_their_resources(overlay):
    """Nobody's user, nothing to write, no capabilities; limits equal requests."""
    found = container(overlay)
    assert found["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert found["resources"]["requests"] == found["resources"]["limits"]
    assert found["image"] == {"cpu": "stn-server:cpu", "gpu": "stn-server:cuda"}[overlay]
    assert found["imagePullPolicy"] == "Always", "tags move"
    assert ("nvidia.com/gpu" in found["resources"]["limits"]) == (overlay == "gpu")


@overlays
def test_a_rollout_waits_until_clients_can_find_the_new_pod(overlay):
    """No old pod goes before DNS tells everybody of its successor; added ones are found, too."""
    deployment = rendered(overlay)["Deployment"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert deployment["minReadySeconds"] > DNS_CACHE_S
    settings = {entry["name"]: entry["value"] for entry in container(overlay)["env"]}
    assert load((), settings).lifecycle.connection_age_s > 0


@overlays
def test_the_autoscaler_reads_what_the_adapter_serves(overlay):
    """By these names; what Prometheus makes of the rules stands below."""
    autoscaler = rendered(overlay)["HorizontalPodAutoscaler"]["spec"]
    read = {entry["pods"]["metric"]["name"] for entry in autoscaler["metrics"]}
    assert read == {rule.get("name", {}).get("as", series(rule)) for rule in RULES}


@pytest.mark.slow
def test_the_rules_of_the_adapter_find_data(tmp_path):
    """A real Prometheus that scrapes a real server has every metric that they name."""
    with LocalServer() as server, Prometheus(tmp_path, server.metrics) as prometheus:
        for rule in RULES:
            query = rule["metricsQuery"].replace("<<.Series>>", series(rule))
            query = query.replace("<<.LabelMatchers>>", 'job="stn"')
            query = query.replace("<<.GroupBy>>", "instance")
            prometheus.wait_for(f"count(({query}) >= 0)", 1)


def series(rule):
    """The metric that a rule begins with."""
    return re.match(r"\w+", rule["seriesQuery"])[0]


@overlays
def test_alerts_are_about_the_job_that_is_scraped(overlay):
    """The operator names the job after the label, and the alerts ask for it."""
    label = rendered(overlay)["ServiceMonitor"]["spec"]["jobLabel"]
    job = rendered(overlay)["Service"]["metadata"]["labels"][label]
    alerts = (ROOT / "deploy/prometheus/alerts.yaml").read_text()
    assert set(re.findall(r'job="(\w+)"', alerts)) == {job}
