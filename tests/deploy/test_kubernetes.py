"""The Kubernetes manifests, as `kubectl apply -k` would send them, and what a cluster finds there.

Not how they are written: whom a policy lets in, what a selector finds, who listens at a port.
"""

import copy
import json
import math
import os
import re
import subprocess
from dataclasses import replace
from pathlib import PurePosixPath

import kubernetes_validate
import pytest
import yaml

from stn_client.local import LocalServer
from stn_server.config import ServerConfig
from stn_server.health import LIVENESS
from stn_server.settings import load
from stn_server.sizing import IDLE_BYTES
from support.manifests import (
    API_VERSION,
    COMPONENTS,
    CUSTOM,
    DEPLOY,
    IMAGES,
    NAMESPACE,
    PROGRAMS,
    SERVER,
    WAYS,
    Objects,
    all_objects,
    own_copy,
    quantity_bytes,
    selects,
    validate,
)
from support.prometheus import Prometheus

ROOT = DEPLOY.parent
DNS_CACHE_S = 30
"""For so long CoreDNS may tell what is no longer true."""

RULES = yaml.safe_load((DEPLOY / "k8s/prometheus-adapter.yaml").read_text())["rules"]
README = (DEPLOY / "README.md").read_text()
CLIENT = dict(re.findall(r'label\s`([\w-]+): "(\w+)"`', README))
"""What the README tells callers to be labelled."""

MONITORING = re.search(r"namespace\s`(\w+)`", README)[1]
"""The namespace that may scrape, by the README."""

SECRETS = {"stn-tls": {"tls.crt", "tls.key", "ca.crt"}, "stn-tokens": {"tokens.toml"}}
"""What the README tells to create: those of Kubernetes' own type `tls` and a file."""


@pytest.fixture(params=WAYS)
def way(request):
    """The name of an overlay with components, as a person might lay them."""
    return request.param


@pytest.fixture
def objects(way):
    """All objects of it."""
    return all_objects(*WAYS[way])


@pytest.fixture
def config(objects, tmp_path):
    """What the server makes of its variables and its file."""
    return understood(objects, tmp_path)


def understood(objects, folder, memory_bytes=math.inf):
    """The server's settings; a file comes from the ConfigMap that is mounted there."""
    variables = {k: v for k, v in objects.environment.items() if k.startswith("STN_")}
    if path := variables.get("STN_CONFIG"):
        file = folder / "stn.toml"
        file.write_text(mounted(objects, path) or "")
        variables["STN_CONFIG"] = str(file)
    return load((), variables, memory_bytes)


def mounted(objects, path):
    """The text of a file of the server's container, None where the cluster has it.

    Fails unless there is such a file.
    """
    path = PurePosixPath(path)
    (mount,) = (
        mount
        for mount in objects.server["volumeMounts"]
        if PurePosixPath(mount["mountPath"]) == path.parent
    )
    (volume,) = (v for v in objects.pod["volumes"] if v["name"] == mount["name"])
    assert mount["readOnly"]
    if "secret" in volume:
        assert path.name in SECRETS[volume["secret"]["secretName"]]
        assert volume["secret"]["defaultMode"] == 0o440, "nobody else's"
        assert objects.pod["securityContext"]["fsGroup"] == 65532, "but the server's"
        return None
    name = volume["configMap"]["name"]
    assert name.startswith("stn-config")
    texts = [m["data"][path.name] for m in objects.of("ConfigMap") if m["metadata"]["name"] == name]
    return texts[0] if texts else None


def test_objects_fit_the_schemas_of_the_api(objects):
    """Kubernetes' own schemas, strictly: a misspelt field is an error."""
    assert objects.all
    for found in objects.all:
        if found["kind"] not in CUSTOM:
            validate(found)


def test_the_schemas_refuse_a_misspelt_field():
    """The check above can fail."""
    service = {**all_objects("cpu").one("Service"), "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="specs"):
        validate(service)


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "node", "sidecar"])
def test_overlays_need_nothing_that_a_cluster_lacks(overlay):
    """What an operator defines comes with a component."""
    assert not CUSTOM & {found["kind"] for found in all_objects(overlay).all}


def selectors(tree, path=()):
    """Every label selector of an object, with its place."""
    if isinstance(tree, dict):
        for key, below in tree.items():
            if key in {"selector", "labelSelector", "podSelector"}:
                plain = "matchLabels" not in below and below
                yield (*path, key), {"matchLabels": below} if plain else below
            else:
                yield from selectors(below, (*path, key))
    elif isinstance(tree, list):
        for below in tree:
            yield from selectors(below, path)


def test_every_selector_finds_the_servers_pods_and_no_clients(objects):
    """An empty one would find every pod of the namespace. Peers of policies are others."""
    services = [found["metadata"]["labels"] for found in objects.of("Service")]
    for found in objects.all:
        for path, selector in selectors(found):
            if {"ingress", "egress"} & set(path):
                continue
            sought = services if found["kind"] == "ServiceMonitor" else [objects.labels]
            assert all(selects(selector, labels) for labels in sought), (found["kind"], path)
            assert not selects(selector, CLIENT)


def test_what_scales_and_protects_is_about_the_workload(objects):
    """By kind and name; fewer may be missing than there always are."""
    made = {key: objects.workload[key] for key in ("apiVersion", "kind")}
    made["name"] = objects.workload["metadata"]["name"]
    scalers = [*objects.of("HorizontalPodAutoscaler"), *objects.of("ScaledObject")]
    assert len(scalers) == (made["kind"] == "Deployment")
    assert len(objects.of("PodDisruptionBudget")) == len(scalers)
    for scaler in scalers:
        spec = scaler["spec"]
        assert spec["scaleTargetRef"] == made
        least = spec.get("minReplicas", spec.get("minReplicaCount"))
        assert least > objects.one("PodDisruptionBudget")["spec"]["maxUnavailable"]
        assert "replicas" not in objects.workload["spec"], "applying again would reset it"


def listening(objects, config):
    """Where the server listens on the network: ports of calls, of metrics, and of health alone."""
    exposed = map(int, re.search(r"^EXPOSE (\d+) (\d+)$", DOCKERFILE, re.MULTILINE).groups())
    calls, metrics = exposed
    if "STN_LISTEN" in objects.environment:
        addresses = [one for one in config.listen if not one.startswith("unix:")]
    else:
        addresses = [f"0.0.0.0:{calls}"]
    assert all(address.startswith("0.0.0.0:") for address in addresses)
    admin = [config.admin_listen] if config.admin_listen else []
    ports = ([int(one.rpartition(":")[2]) for one in some] for some in (addresses, admin))
    return (*ports, metrics)


DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_server_listens_at_every_port_that_is_named(objects, config):
    """Those of the container; of the Service, which the README calls; and of who scrapes."""
    calls, admin, metrics = listening(objects, config)
    assert sorted(objects.ports.values()) == sorted([*calls, *admin, metrics])
    for service in objects.of("Service"):
        ports = {port["name"]: port for port in service["spec"]["ports"]}
        assert [objects.ports[port["targetPort"]] for port in ports.values()] == [*calls, metrics]
        assert all(port["port"] == objects.ports[port["targetPort"]] for port in ports.values())
        assert service["spec"]["clusterIP"] == "None", "clients see every pod"
        assert f"dns:///{service['metadata']['name']}:{calls[0]}`" in README
        secured = "https" if config.tls.certificate else "kubernetes.io/h2c"
        assert ports["grpc"]["appProtocol"] == secured
        for monitor in objects.of("ServiceMonitor"):
            (endpoint,) = monitor["spec"]["endpoints"]
            assert objects.ports[ports[endpoint["port"]]["targetPort"]] == metrics


def test_probes_are_answered(objects, config):
    """Kubernetes' own for gRPC speak no TLS, and show no token."""
    if objects.workload["kind"] == "Job":  # where nothing listens on the network
        assert objects.server["startupProbe"]["exec"]["command"] == ["python", "-m", PROBE]
        return
    calls, admin, _ = listening(objects, config)
    open_ports = admin if config.tls.certificate else [*calls, *admin]
    asked = {name: objects.server[f"{name}Probe"]["grpc"] for name in PROBES}
    assert all(probe["port"] in open_ports for probe in asked.values())
    services = {name: probe.get("service", "") for name, probe in asked.items()}
    assert services == {"startup": "", "readiness": "", "liveness": LIVENESS}


def test_probes_wait_for_the_largest_calls(objects):
    """The largest calls keep the event loop for seconds; a restart is for what lasts."""
    for name in PROBES:
        probe = objects.server.get(f"{name}Probe", {"timeoutSeconds": 5})
        assert probe["timeoutSeconds"] >= 5
        if name == "liveness" and "periodSeconds" in probe:
            assert probe["periodSeconds"] * probe["failureThreshold"] >= 30


PROBES = ("startup", "readiness", "liveness")
PROBE = "stn_server.probe"
PEERS = {
    "client": {"pod": CLIENT},
    "stranger": {"pod": {"app": "other"}},
    "server": {"pod": {"app.kubernetes.io/name": "stn"}},
    "client elsewhere": {"namespace": "elsewhere", "pod": CLIENT},
    "prometheus": {"namespace": MONITORING, "pod": {"app.kubernetes.io/name": "prometheus"}},
}


def test_the_policy_lets_in_whom_the_readme_says(objects, config):
    """Clients by their label to calls, Prometheus by its namespace to metrics; nobody else."""
    if objects.workload["kind"] == "Job":
        assert config.listen == ("unix:/run/stn/grpc.sock",), "no policy: no port takes calls"
        return
    (calls, admin, metrics) = listening(objects, config)
    let_in = {
        (name, port)
        for name, peer in PEERS.items()
        for port in (*calls, *admin, metrics, 22)
        if objects.allows("ingress", port, **peer)
    }
    assert let_in == {("client", calls[0]), ("prometheus", metrics)}


DNS = {"namespace": "kube-system", "pod": {"k8s-app": "kube-dns"}}
COLLECTOR = {"namespace": "observability", "pod": {"app.kubernetes.io/name": "otel-collector"}}
TARGETS = [
    ("DNS by UDP", 53, {**DNS, "protocol": "UDP"}),
    ("DNS by TCP", 53, DNS),
    ("collector", 4317, COLLECTOR),
    ("DNS of others", 53, {"namespace": "elsewhere", "pod": DNS["pod"]}),
    ("metrics of the collector", 8888, COLLECTOR),
    ("a pod beside the collector", 4317, {"namespace": "observability"}),
    ("a client", 8080, {"pod": CLIENT}),
]


def test_the_policy_lets_out_what_tracing_takes_and_nothing_else(way, objects, config):
    """The collector that the exporter is told, and DNS to find it; without tracing nothing."""
    if objects.workload["kind"] == "Job":
        assert not objects.of("NetworkPolicy"), "the pod is not the server's alone"
        return
    let_out = {name for name, port, peer in TARGETS if objects.allows("egress", port, **peer)}
    traced = config.tracing == "otlp"
    assert traced == ("tracing" in way or way == "production")
    assert let_out == ({"DNS by UDP", "DNS by TCP", "collector"} if traced else set())
    if traced:
        endpoint = objects.environment["OTEL_EXPORTER_OTLP_ENDPOINT"]
        assert endpoint == f"http://otel-collector.{COLLECTOR['namespace']}:4317"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("NetworkPolicy", ("spec", "podSelector"), {"matchLabels": {"app": "stn"}}),
        ("NetworkPolicy", ("spec", "ingress", 0, "from", 0, "podSelector"), {}),
        ("NetworkPolicy", ("spec", "ingress", 1, "ports", 0, "port"), "grpc"),
        ("NetworkPolicy", ("spec", "policyTypes"), ["Egress"]),
        ("NetworkPolicy", ("spec", "ingress", 0, "from", 0, "namespaceSelector"), {}),
    ],
)
def test_another_policy_lets_in_others(kind, path, value, tmp_path):
    """The check above can fail, as a cluster would decide otherwise."""
    changed = copy.deepcopy(all_objects("cpu").all)
    found = Objects(changed).one(kind)
    *way_there, last = path
    for key in way_there:
        found = found[key]
    found[last] = value
    objects = replace(all_objects("cpu"), all=changed)
    with pytest.raises(AssertionError):
        test_the_policy_lets_in_whom_the_readme_says(objects, understood(objects, tmp_path))


def test_files_that_settings_name_are_mounted(objects, config):
    """Certificates, tokens and the file of settings, where the cluster or the overlay has them."""
    named = [config.tls.certificate, config.tls.key, config.auth.tokens]
    for path in filter(None, named):
        assert mounted(objects, path) is None
    volumes = {volume["name"] for volume in objects.pod.get("volumes", ())}
    mounts = {m["name"] for one in objects.containers for m in one.get("volumeMounts", ())}
    assert mounts == volumes


def test_the_file_of_an_overlay_reaches_the_server(tmp_path):
    """Under a name with a digest of it."""
    config = understood(all_objects("production"), tmp_path)
    assert config.limits.upload_s == 30.0
    assert all_objects("production").one("Deployment")["metadata"]["namespace"] == "stn"


def test_the_server_has_time_to_stop(objects, config):
    """preStop, lame duck and grace fit into what Kubernetes waits."""
    assert objects.pod["enableServiceLinks"] is False, "a Service called stn injects STN_..."
    if objects.workload["kind"] == "Job":
        return
    pause_s = 3
    assert f"time.sleep({pause_s})" in str(objects.server["lifecycle"]["preStop"])
    needed_s = pause_s + config.lifecycle.lame_duck_s + config.lifecycle.grace_s
    assert needed_s < objects.pod["terminationGracePeriodSeconds"]


def test_pods_are_restricted(objects):
    """As the level `restricted` of the Pod Security Standards wants it, and more.

    But for the owner of a node's folder, which test_local_transport.py looks at.
    """
    for container in objects.containers:
        if container["name"] == "owner":
            continue
        context = {**objects.pod["securityContext"], **container["securityContext"]}
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    assert objects.server["securityContext"]["readOnlyRootFilesystem"]
    assert objects.pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & objects.pod.keys()


def test_images_are_those_that_the_overlay_was_told(way, objects):
    """Of every container, also of those that run first."""
    expected = IMAGES["gpu" if way.startswith("gpu") else "sidecar" if way == "sidecar" else "cpu"]
    for container in objects.containers:
        name = {"owner": "server"}.get(container["name"], container["name"])
        assert container["image"] == expected[name]
        assert container.get("imagePullPolicy", "IfNotPresent") == "IfNotPresent"


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "node", "sidecar", "production"])
@pytest.mark.parametrize(
    ("text", "match"), [(None, "images.env: no such file"), ("", "`data.server` is missing")]
)
def test_nothing_is_rendered_before_images_are_named(overlay, text, match, tmp_path):
    """`kubectl` says what is missing and sends nothing."""
    path = own_copy(tmp_path, overlay)
    for file in tmp_path.glob("k8s/*/images.env"):
        file.unlink() if text is None else file.write_text(text)
    command = [PROGRAMS / "kubectl", "kustomize", path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert match in ended.stderr


def test_the_readmes_command_names_the_image(tmp_path):
    """What Docker tells of a pushed image; `kubectl` finds it where the command has put it."""
    own_copy(tmp_path / "deploy", "cpu")
    (tmp_path / "deploy/k8s/cpu/images.env").unlink()
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho {SERVER}\n")
    docker.chmod(0o755)
    (command,) = re.findall(r"^echo .*images\.env$", README, re.MULTILINE | re.DOTALL)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, check=True)
    command = [PROGRAMS / "kubectl", "kustomize", tmp_path / "deploy/k8s/cpu"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"image: {SERVER}\n" in text


def test_resources_are_what_is_requested(objects):
    """A throttled thread holds up a batch, and memory that is not there kills the server."""
    resources = objects.server["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) >= 1


GIB = 1024**3
LARGEST = ServerConfig().limits.max_message_bytes


def test_limits_of_memory_follow_from_the_formula(way, objects, tmp_path):
    """They hold what may be inside, and that is room for the largest calls of the defaults.

    Who lays `node` under an overlay without more memory has smaller calls.
    """
    limit_bytes = quantity_bytes(objects.server["resources"]["limits"]["memory"])
    config = understood(objects, tmp_path, limit_bytes)
    assert held_bytes(config) <= limit_bytes
    assert config.limits.max_message_bytes == LARGEST or (config.local.dir and way != "node")


@pytest.mark.parametrize("overlay", ["cpu", "sidecar", "node", "gpu"])
def test_limits_of_memory_are_no_larger_than_the_formula(overlay, tmp_path):
    """At the edge: all of a limit may be taken, and with less there is less room for calls.

    On GPUs the README keeps a part for the driver, which no formula has.
    """
    text = " ".join(README.split())
    (for_driver,) = re.findall(r"the overlay has 8 GiB, (\d) of them beyond", text)
    objects = all_objects(overlay)
    limit_bytes = quantity_bytes(objects.server["resources"]["limits"]["memory"])
    limit_bytes -= (spare := int(for_driver) * GIB if overlay == "gpu" else 0)
    config = understood(objects, tmp_path, limit_bytes + spare)
    assert held_bytes(config) == limit_bytes
    with_less = understood(objects, tmp_path, limit_bytes - GIB)
    assert with_less.batching.max_admitted_bytes < config.batching.max_admitted_bytes


def held_bytes(config):
    """The most that a server holds, by the formula of the README."""
    arenas = config.local.max_arena_bytes if config.local.dir else 0
    kept = config.retained_bytes + config.residents.max_bytes + arenas
    return IDLE_BYTES + 2 * config.batching.max_admitted_bytes + kept


PARTS_OF_GPUS = {"gpu+mig": "nvidia.com/mig-1g.10gb", "gpu+time-slicing": "nvidia.com/gpu.shared"}


def test_servers_on_gpus_never_compute_without_one(way, objects, config):
    """They name the device, and start where one is: one GPU, or one part of one."""
    limits = objects.server["resources"]["limits"]
    gpus = {name: count for name, count in limits.items() if name.startswith("nvidia.com/")}
    if not way.startswith("gpu"):
        assert (gpus, config.device) == ({}, "auto")
        assert "runtimeClassName" not in objects.pod
        return
    assert gpus == {PARTS_OF_GPUS.get(way, "nvidia.com/gpu"): "1"}
    assert config.device == "cuda:0"
    assert objects.pod["runtimeClassName"] == "nvidia"


def test_the_device_plugin_offers_turns_by_the_name_that_is_asked_for():
    """Renamed, so that who wants a whole GPU gets no turns."""
    path = DEPLOY / "k8s/components/time-slicing/device-plugin.yaml"
    manifest = yaml.safe_load(path.read_text())
    validate(manifest)
    (text,) = manifest["data"].values()
    sliced = yaml.safe_load(text)["sharing"]["timeSlicing"]
    (resource,) = sliced["resources"]
    shared = ".shared" if sliced["renameByDefault"] else ""
    assert f"{resource['name']}{shared}" == PARTS_OF_GPUS["gpu+time-slicing"]
    assert resource["replicas"] > 1


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_a_rollout_waits_until_clients_can_find_the_new_pod(overlay, tmp_path):
    """No old pod goes before DNS tells everybody of its successor; added ones are found, too."""
    deployment = all_objects(overlay).one("Deployment")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert deployment["minReadySeconds"] > DNS_CACHE_S
    assert understood(all_objects(overlay), tmp_path).lifecycle.connection_age_s > 0


def test_zones_share_the_pods():
    """Those of one rollout; where there is but one zone, pods start all the same."""
    objects = all_objects("cpu", "zones")
    (spread,) = objects.pod["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["maxSkew"] == 1


def test_the_autoscaler_reads_what_the_adapter_serves():
    """By these names; what Prometheus makes of the rules stands below."""
    assert set(targets(all_objects("cpu"))) == {
        rule.get("name", {}).get("as", series(rule)) for rule in RULES
    }


def targets(objects):
    """What the autoscaler holds a metric of one pod at, by its name."""
    quantities = {
        entry["pods"]["metric"]["name"]: entry["pods"]["target"]["averageValue"]
        for entry in objects.one("HorizontalPodAutoscaler")["spec"]["metrics"]
    }
    return {
        name: float(text[:-1]) / 1000 if text.endswith("m") else float(text)
        for name, text in quantities.items()
    }


def test_keda_scales_like_the_autoscaler():
    """The same metrics, targets, bounds and pauses; it averages over pods what the query adds."""
    scaled = all_objects("cpu", "keda").one("ScaledObject")["spec"]
    plain = all_objects("cpu").one("HorizontalPodAutoscaler")["spec"]
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    bounds = scaled["minReplicaCount"], scaled["maxReplicaCount"]
    assert (*bounds, behavior) == (plain["minReplicas"], plain["maxReplicas"], plain["behavior"])
    thresholds = {
        trigger["name"]: float(trigger["metadata"]["threshold"]) for trigger in scaled["triggers"]
    }
    assert thresholds == targets(all_objects("cpu"))
    assert {trigger["metricType"] for trigger in scaled["triggers"]} == {"AverageValue"}
    assert all(trigger["metadata"]["query"].startswith("sum(") for trigger in scaled["triggers"])


@pytest.mark.slow
def test_what_autoscalers_ask_for_is_found(tmp_path):
    """A real Prometheus that scrapes a real server has an answer to every rule and query."""
    scaled = all_objects("cpu", "keda").one("ScaledObject")["spec"]
    queries = [trigger["metadata"]["query"] for trigger in scaled["triggers"]]
    for rule in RULES:
        query = rule["metricsQuery"].replace("<<.Series>>", series(rule))
        query = query.replace("<<.LabelMatchers>>", 'job="stn"')
        queries.append(query.replace("<<.GroupBy>>", "instance"))
    with LocalServer() as server, Prometheus(tmp_path, server.metrics) as prometheus:
        for query in queries:
            prometheus.wait_for(f"count(({query}) >= 0)", 1)


def series(rule):
    """The metric that a rule begins with."""
    return re.match(r"\w+", rule["seriesQuery"])[0]


def test_the_operator_gets_the_alerts_that_compose_has():
    """The same rules, about the job that it names after the label of the Service."""
    objects = all_objects("cpu", "monitoring")
    alerts = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())
    assert objects.one("PrometheusRule")["spec"] == alerts
    label = objects.one("ServiceMonitor")["spec"]["jobLabel"]
    job = objects.one("Service")["metadata"]["labels"][label]
    assert set(re.findall(r'job="(\w+)"', str(alerts))) == {job}


def test_grafana_gets_the_dashboard_that_compose_has():
    """In a ConfigMap that its sidecar finds by the label, small enough for kubectl to remember."""
    found = all_objects("cpu", "monitoring").one("ConfigMap")
    (text,) = found["data"].values()
    assert json.loads(text) == json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    assert found["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert len(text) < 256 * 1024


def test_the_readme_tells_the_times_of_a_pod(tmp_path):
    """Of a rollout and of an end, and the version whose schemas were asked."""
    text = " ".join(README.split())
    objects = all_objects("cpu")
    lifecycle = understood(objects, tmp_path).lifecycle
    ready_s = objects.workload["spec"]["minReadySeconds"]
    assert f"the lame duck ({lifecycle.lame_duck_s:.0f} s)" in text
    assert f"up to {lifecycle.grace_s:.0f} s for what was admitted" in text
    assert f"`minReadySeconds`, {ready_s}." in text
    assert f"`lifecycle.connection_age_s`, here {lifecycle.connection_age_s:.0f} s" in text
    (pause,) = re.findall(r"a pause \((\d) s, `preStop`\)", text)
    assert f"time.sleep({pause})" in str(objects.server["lifecycle"]["preStop"])
    assert f"schemas of Kubernetes {API_VERSION} " in text


def test_the_readme_tells_of_every_component():
    """And of every Secret that one needs."""
    section = README.split("## 4. Replicate it")[1].split("## 5.")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == set(COMPONENTS)
    assert set(SECRETS) <= set(re.findall(r"stn-\w+", section))
    assert NAMESPACE not in CLIENT
