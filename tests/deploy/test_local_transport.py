"""Trainers and servers in containers that share the folder of the local transport.

Read from the files as Docker Compose and Kubernetes read them; `deploy/tests` runs two containers.
"""

import json
import math
import re
from dataclasses import dataclass

import pytest
import yaml

from stn_server.settings import load
from support.manifests import DEPLOY, composed, quantity_bytes, rendered, validate, variables

README = (DEPLOY / "README.md").read_text()
FLAT = " ".join(README.split())
TARGET = "unix:/run/stn/grpc.sock"
"""What trainers call, by the comments in the files."""

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Container:
    """What decides whether two containers meet."""

    user: int
    groups: frozenset[int]
    folder: object
    """What is mounted, whatever it is called inside."""
    path: str
    """Where."""
    read_only: bool
    memory_bytes: int


def in_compose(service, composed_files):
    """Of a service; the image's user where it names none."""
    user, group = map(int, service.get("user", "65532:65532").split(":"))
    (volume,) = service["volumes"]
    return Container(
        user=user,
        groups=frozenset({group, *map(int, service.get("group_add", ()))}),
        folder=json.dumps(composed_files["volumes"][volume["source"]]),
        path=volume["target"],
        read_only=volume.get("read_only", False),
        memory_bytes=int(service["mem_limit"]),
    )


def in_pod(container, pod):
    """Of a container in a pod, whose groups and users are those of the pod unless it says more."""
    context = {**pod["securityContext"], **container["securityContext"]}
    groups = {context["runAsGroup"], *context.get("supplementalGroups", ())}
    (mount,) = container["volumeMounts"]
    (folder,) = ({**v} for v in pod["volumes"] if v["name"] == mount["name"])
    if "hostPath" in folder:
        folder = folder["hostPath"]["path"]
    else:
        groups |= {context["fsGroup"]}
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    return Container(
        user=context["runAsUser"],
        groups=frozenset(groups),
        folder=json.dumps(folder),
        path=mount["mountPath"],
        read_only=mount.get("readOnly", False),
        memory_bytes=quantity_bytes(limits["memory"]),
    )


def named(containers, name):
    """The one of this name."""
    (found,) = (container for container in containers if container["name"] == name)
    return found


def by_compose():
    """Server and trainer of the Compose files, and the server's settings."""
    files = composed("compose.yaml", "compose.local.yaml")
    server, trainer = files["services"]["server"], files["services"]["trainer"]
    return in_compose(server, files), in_compose(trainer, files), server["environment"]


def pod_of(manifest):
    """What a workload makes."""
    return manifest["spec"]["template"]["spec"]


def trainer_of_a_node():
    """The job that is started beside the servers of the nodes."""
    return yaml.safe_load((DEPLOY / "k8s/node/trainer.yaml").read_text())


def as_sidecar():
    """Those of one pod."""
    pod = pod_of(rendered("sidecar")["Job"])
    server, trainer = named(pod["initContainers"], "server"), named(pod["containers"], "trainer")
    return in_pod(server, pod), in_pod(trainer, pod), variables(server)


def on_a_node():
    """Those of two pods."""
    pod, other = pod_of(rendered("node")["DaemonSet"]), pod_of(trainer_of_a_node())
    server, trainer = named(pod["containers"], "server"), named(other["containers"], "trainer")
    return in_pod(server, pod), in_pod(trainer, other), variables(server)


PAIRS = [by_compose, as_sidecar, on_a_node]
pairs = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.__name__)


@pairs
def test_both_mount_the_same_folder_at_the_path_that_the_server_tells(pair):
    """The SDK looks where GetServerInfo says; trainers cannot write there."""
    server, trainer, settings = pair()
    config = load((), settings)
    assert server.folder == trainer.folder
    assert server.path == trainer.path == config.local.dir
    assert trainer.read_only
    assert not server.read_only


@pairs
def test_the_target_lies_in_the_folder(pair):
    """A TCP address of another container is none that the SDK looks for a local transport at."""
    server, _, settings = pair()
    assert TARGET in load((), settings).listen
    assert TARGET.startswith(f"unix:{server.path}/")


@pytest.mark.parametrize(
    "file", ["compose.local.yaml", "k8s/sidecar/job.yaml", "k8s/node/trainer.yaml", "README.md"]
)
def test_users_are_told_the_target(file):
    """In the words of the SDK."""
    assert f'Client("{TARGET}")' in (DEPLOY / file).read_text()


@pairs
def test_the_trainer_may_connect_by_the_group_alone(pair):
    """Another user, who has the group of the server, for which all three sockets are open."""
    server, trainer, settings = pair()
    config = load((), settings)
    assert server.user == 65532
    assert trainer.user not in {0, server.user}
    assert 65532 in server.groups & trainer.groups
    assert config.listen_mode == config.local.mode == "0660"


@pairs
def test_arenas_fit_into_the_memory_of_either_side(pair):
    """Whoever touches a page first is charged; what the server has without is in `cpu`."""
    server, trainer, settings = pair()
    local = load((), settings).local
    assert server.memory_bytes == 4 * GIB + local.max_arena_bytes
    assert trainer.memory_bytes > local.max_caller_arena_bytes
    assert local.max_caller_arena_bytes <= local.max_arena_bytes


def test_the_readme_says_how_much_memory_that_is():
    """By the names of the settings, and what these are unless they are set."""
    assert "these two are 4 GiB, or half of a memory limit that is below 8 GiB, and 1 GiB" in FLAT
    for limit_bytes, arena_bytes in (math.inf, 4 * GIB), (8 * GIB, 4 * GIB), (6 * GIB, 3 * GIB):
        local = load((), {"STN_LOCAL_DIR": "/run/stn"}, limit_bytes).local
        assert (local.max_arena_bytes, local.max_caller_arena_bytes) == (arena_bytes, GIB)
    assert "limit of the server = limit without + `local.max_arena_bytes`" in README
    assert "limit of a trainer = its own + `local.max_caller_arena_bytes`" in README


def test_the_volume_of_compose_is_the_servers():
    """From the first moment on: one that Docker makes by itself is root's, and cannot be used."""
    options = composed("compose.yaml", "compose.local.yaml")["volumes"]["sockets"]["driver_opts"]
    assert (options["type"], options["device"]) == ("tmpfs", "tmpfs")
    assert options["o"].split(",")[:3] == ["uid=65532", "gid=65532", "mode=0750"]


def test_the_readmes_command_makes_the_same_volume():
    """In a shell, without Compose."""
    options = composed("compose.yaml", "compose.local.yaml")["volumes"]["sockets"]["driver_opts"]
    (command,) = re.findall(r"`docker volume create ([^`]+) sockets`", README)
    assert dict(word.split("=", 1) for word in command.split() if word != "--opt") == options


def test_compose_changes_nothing_else():
    """Neither the server, but for the folder and its memory, nor who watches it."""
    plain = composed("compose.yaml")["services"]
    services = composed("compose.yaml", "compose.local.yaml")["services"]
    trainer, server = services.pop("trainer"), services["server"]
    assert trainer["cap_drop"] == ["ALL"]
    assert trainer["read_only"]
    assert trainer["profiles"] == ["trainer"]
    assert trainer["depends_on"]["server"]["condition"] == "service_healthy"
    assert {"ipc", "pid", "shm_size"}.isdisjoint(trainer.keys() | server.keys())
    settings = server["environment"]
    services["server"] = {
        **server,
        "environment": {k: settings[k] for k in plain["server"]["environment"]},
        "mem_limit": plain["server"]["mem_limit"],
    }
    del services["server"]["volumes"]
    assert services == plain


@pytest.mark.parametrize(
    ("overlay", "kinds"),
    [
        ("sidecar", {"Job"}),
        ("node", {"DaemonSet", "Service", "NetworkPolicy"}),
    ],
)
def test_objects_fit_the_schemas_of_the_api(overlay, kinds):
    """Strictly; nothing is left of the autoscaler of a Deployment that is none any more."""
    objects = rendered(overlay)
    assert set(objects) == kinds
    for kind in kinds:
        validate(objects[kind])


def test_the_trainer_of_a_node_fits_the_schemas_of_the_api():
    """It is not part of the overlay: there are as many as one likes."""
    validate(trainer_of_a_node())


def test_the_sidecar_is_ready_before_the_trainer_and_ends_after_it():
    """An init container that always restarts is a sidecar; its startup probe is waited for."""
    pod = pod_of(rendered("sidecar")["Job"])
    server = named(pod["initContainers"], "server")
    assert server["restartPolicy"] == "Always"
    assert server["startupProbe"]["exec"]["command"] == ["python", "-m", "stn_server.probe"]
    assert pod["restartPolicy"] == "Never"
    assert pod["enableServiceLinks"] is False


def test_the_sidecar_takes_calls_of_its_pod_alone():
    """It listens on no address of the network."""
    *_, settings = as_sidecar()
    assert load((), settings).listen == (TARGET,)


def test_servers_are_as_locked_down_as_those_behind_the_service():
    """The same security of the container and its pod, and the same image."""
    plain = pod_of(rendered("cpu")["Deployment"])
    expected = plain["containers"][0]["securityContext"]
    sidecar = named(pod_of(rendered("sidecar")["Job"])["initContainers"], "server")
    assert sidecar["securityContext"].items() >= expected.items()
    pod = pod_of(rendered("node")["DaemonSet"])
    assert pod["securityContext"] == plain["securityContext"]
    assert named(pod["containers"], "server")["securityContext"] == expected
    images = {one["image"] for one in (sidecar, *pod["containers"], *pod["initContainers"])}
    assert images == {plain["containers"][0]["image"]}


def test_only_the_owner_of_the_folder_is_set_by_root():
    """By one capability, and before the server starts; the server itself has none."""
    pod = pod_of(rendered("node")["DaemonSet"])
    owner = named(pod["initContainers"], "owner")
    (mount,) = owner["volumeMounts"]
    assert owner["command"] == ["chown", "65532:65532", mount["mountPath"]]
    context = owner["securityContext"]
    assert (context["runAsUser"], context["runAsNonRoot"]) == (0, False)
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]


def test_a_folder_of_a_node_has_one_server():
    """An old pod has gone before the new one starts: two servers want two folders."""
    update = rendered("node")["DaemonSet"]["spec"].get("updateStrategy", {})
    assert update.get("rollingUpdate", {}).get("maxSurge", 0) == 0
    assert "strategy" not in rendered("node")["DaemonSet"]["spec"]
