"""Checks the distributions of the present version and uploads them to an index, by twine.

    python .ci/publish.py [--check] [--dist dist] [--repository testpypi] [project ...]

Nothing is uploaded unless everything is there and passes the checks of the index. Twine reads
credentials from the environment or its own configuration.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

ROOT = Path(__file__).parents[1]
PROJECTS = "proto", "stn_engine", "server", "client"


def distributions(dist: Path, projects: Iterable[str]) -> list[Path]:
    """The wheel and the sdist of the present version of each project.

    Raises:
        SystemExit: One is missing.
    """
    found = []
    for folder in projects:
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        name, version = canonicalize_name(project["name"]), project["version"]
        for kind, suffix, parsed in (
            ("wheel", ".whl", parse_wheel_filename),
            ("sdist", ".tar.gz", parse_sdist_filename),
        ):
            paths = [
                path
                for path in sorted(dist.glob(f"*{suffix}"))
                if parsed(path.name)[0] == name and str(parsed(path.name)[1]) == version
            ]
            if not paths:
                expected = f"expected the {kind} of {name} {version}, got none"
                raise SystemExit(f"{dist}: {expected}. Run `make wheels`.")
            found += paths
    return found


def main() -> None:
    """Checks, and unless told otherwise uploads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("projects", nargs="*", choices=[*PROJECTS, []], help="folders; none: all")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where they are")
    parser.add_argument("--check", action="store_true", help="upload nothing")
    index = parser.add_mutually_exclusive_group()
    index.add_argument("--repository", default="pypi", help="an index that twine knows by name")
    index.add_argument("--repository-url", help="another one")
    options = parser.parse_args()
    found = distributions(options.dist, options.projects or PROJECTS)
    twine = [sys.executable, "-m", "twine"]
    subprocess.run([*twine, "check", "--strict", *found], check=True)
    if not options.check:
        where = ["--repository", options.repository]
        if options.repository_url:
            where = ["--repository-url", options.repository_url]
        upload = [*twine, "upload", "--non-interactive", *where]
        raise SystemExit(subprocess.run([*upload, *found], check=False).returncode)


if __name__ == "__main__":
    main()
