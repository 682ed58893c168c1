"""The files of deploy/ for Docker Compose and Kubernetes, as these read them."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import kubernetes_validate
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROGRAMS = Path(sys.executable).parent
API_VERSION = "1.37"


def composed(*names):
    """Compose files laid over one another; Docker Compose refuses what it does not know."""
    command = [PROGRAMS / "docker-compose", "--profile=*"]
    for name in names:
        command += ["--file", DEPLOY / name]
    command += ["config", "--format=json"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(text)


@cache
def rendered(overlay):
    """Every object of a Kustomize overlay by its kind."""
    command = [PROGRAMS / "kubectl", "kustomize", DEPLOY / "k8s" / overlay]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {found["kind"]: found for found in yaml.safe_load_all(text)}


def validate(manifest):
    """Raises unless an object fits Kubernetes' own schemas, strictly."""
    kubernetes_validate.validate(manifest, API_VERSION, strict=True)
