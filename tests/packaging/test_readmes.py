"""The documents are true: their commands and examples run, their tables are fresh."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from stn_client._channels import BALANCING
from stn_client.local import LocalServer

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text()
SOURCES = {".py", ".h", ".cpp", ".cu", ".cuh"}
DOCUMENTS = ("README.md", "proto/README.md", "client/README.md")


def blocks(text, language):
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


SHELL = blocks(README, "sh")


def run(command, folder, timeout_s=100):
    """Runs a shell line with this environment's commands first on the path."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_the_readme_promises_three_commands():
    """Work on it starts with `make` and nothing before it, and CI runs what the README says."""
    (block,) = [block for block in SHELL if block.startswith("make ")]
    commands = [line.split("#")[0].strip() for line in block.splitlines()]
    assert commands == ["make demo", "make test", "make test-quick"]
    assert "make test" in (ROOT / ".ci/run").read_text().splitlines()


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_make_demo_aligns_two_photographs():
    """The demo exits with 0 only if gradients agree and the corner error is below 0.5 px."""
    result = run("make demo", ROOT, timeout_s=380)
    assert result.returncode == 0, result.stdout + result.stderr
    error_px = float(re.search(r"corner error (\S+) px", result.stdout)[1])
    assert error_px < 0.5
    assert re.search(r"\d+ requests/s in \d+ batches", result.stdout)
    assert re.search(r"Metrics at http://127.0.0.1:\d+/metrics", result.stdout)
    assert re.search(r"Aligning: \d+ steps.* affine, level 0", result.stderr), "a progress bar"
    pictures = {path.name for path in (ROOT / "build/demo").glob("*.png")}
    assert pictures >= {"gradients.png", "alignment.png", "convergence.png"}


@pytest.mark.alone
@pytest.mark.slow
def test_the_shell_examples_of_the_readme_run(tmp_path):
    """What the README says to type into a shell works, against a server on the default port."""
    used = [block for block in SHELL if not block.startswith("make ")]
    lines = [line for block in used for line in block.splitlines() if line]
    assert "stn-server" in lines
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "photo.png")
    with LocalServer("--listen=127.0.0.1:50051"):
        for line in lines:
            if line != "stn-server":
                result = run(line, tmp_path)
                assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "turned.png") as turned:
        assert turned.size == (40, 30)


@pytest.mark.slow
def test_the_security_of_the_server_readme_holds(tmp_path):
    """Its lines make a token and certificates, with which the server lets in the caller alone."""
    text = (ROOT / "server/README.md").read_text()
    security = text[text.index("## Security") : text.index("## Configuration")]
    *making, serving, calling = blocks(security, "sh")
    assert [block.count("openssl") for block in making] == [1, 5]
    for block in making:
        made = run(block, tmp_path)
        assert made.returncode == 0, made.stderr
    here = re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", serving.replace("\\\n", ""))
    command, *flags = shlex.split(here)
    assert command == "stn-server"
    flags = [str(tmp_path / one) if (tmp_path / one).exists() else one for one in flags]
    with LocalServer(*flags) as server:
        port = server.target.rpartition(":")[2]
        call = calling.replace(":50051", f":{port}")
        assert call != calling
        answered = run(call, tmp_path)
        assert answered.returncode == 0, answered.stderr
        assert "ready: true" in answered.stdout
        for left_out in ("--token-file token", "--tls-certificate alice.pem --tls-key alice.key"):
            assert run(call.replace(left_out, ""), tmp_path).returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_python_examples_run(document, tmp_path):
    """Every Python block is a program that ends well."""
    examples = blocks((ROOT / document).read_text(), "python")
    assert examples
    for example in examples:
        command = [sys.executable, "-W", "error", "-c", example]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_other_clients_are_told_the_service_config_of_the_sdk():
    """The JSON of the README is what the SDK gives to gRPC."""
    (config,) = blocks((ROOT / "client/README.md").read_text(), "json")
    assert json.loads(config) == BALANCING


@pytest.mark.slow
def test_the_tables_are_fresh():
    """Configuration, metrics, statuses, support and benchmarks say what the code says."""
    command = [sys.executable, str(ROOT / ".ci/generate_docs.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def slowest(benchmark, times_of):
    """The least of the ratios that this finds in the cells of a benchmark."""
    cells = json.loads((ROOT / f"tests/bench/results/{benchmark}.json").read_text())["cells"]
    return min(times for cell in cells for times in times_of(cell))


def beside_triton(cell):
    """Messages, whose bytes are made once."""
    return [times for name, times in cell["times"].items() if "SDK" not in name]


def beside_torch_rpc(cell):
    """Calls by gRPC, where torch's RPC made the same."""
    rates = {name: one["calls_per_s"] for name, one in cell["contenders"].items()}
    return [rates["grpc"] / rates["torch rpc"]] if "torch rpc" in rates else []


def test_the_readme_says_what_is_lost_beside_what_is_gained():
    """The spread of each row holds its slowest case, also where the other is faster."""
    table = README[README.index("| beside |") : README.index("<!-- end -->")]
    least = {}
    for row in re.findall(r"^\| (.+) \| (.+) \| ([\d.]+)[^|]* \|$", table, re.MULTILINE):
        least[row[:2]] = float(row[2])
    for beside, what, expected in (
        ("Triton", "messages by gRPC", slowest("triton", beside_triton)),
        ("torch's RPC", "calls on one host, gRPC", slowest("local", beside_torch_rpc)),
    ):
        (found,) = [
            value
            for (peer, compared), value in least.items()
            if beside in peer and what == compared
        ]
        assert found == round(expected, 2)


def gpu_report(**changes):
    """What `make gpu-check` leaves, as far as a sentence is made of it."""
    counts = {"tests": 1500, "skipped": 0, "failed": 0}
    stages = {tool: {"status": 0} for tool in ("memcheck", "racecheck", "synccheck")}
    return {
        "date": "2026-01-02",
        "device": {"device": "Some GPU"},
        "tests": {"gpu_tests": {**counts, "tests": 20}, "battery": counts},
        "stages": stages,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            (
                "of `tests/gpu` 20 tests passed, of the conformance battery 1,500 tests passed; "
                "compute-sanitizer: memcheck, racecheck and synccheck clean."
            ),
        ),
        (
            {
                "tests": {"gpu_tests": {}, "battery": {"tests": 9, "skipped": 2, "failed": 3}},
                "stages": {"memcheck": {"status": 9}, "racecheck": {"status": 0}},
            },
            (
                "of `tests/gpu` nothing was reported, of the conformance battery 4 tests passed, "
                "3 failed, 2 skipped; compute-sanitizer: racecheck clean, memcheck: status 9, "
                "synccheck: left out."
            ),
        ),
    ],
    ids=["all is well", "nothing is"],
)
def test_what_a_gpu_has_shown_is_said_whole(changes, said):
    """What failed and what was left out stand beside what went well."""
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / ".ci/generate_docs.py")
    generate_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate_docs)
    sentence = generate_docs.gpu_sentence(gpu_report(**changes))
    assert sentence == f"On Some GPU, 2026-01-02: {said}"


@pytest.mark.slow
def test_the_pictures_are_fresh():
    """The pictures of the conventions are what the engine draws, pixel by pixel."""
    command = [sys.executable, str(ROOT / ".ci/draw_conventions.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("citation", "number", "definition"),
    [
        (r"quations? \(.*", r"\((\d)\)", r" \((\d)\)$"),
        (r"ections? \d.*", r"\b(\d)\b", r"^## (\d)\."),
    ],
)
def test_what_the_engine_cites_is_written_down(citation, number, definition):
    """Equations and sections by their numbers."""
    equations = (ROOT / "stn_engine/docs/equations.md").read_text()
    written = set(re.findall(definition, equations, re.MULTILINE))
    sources = [path for path in (ROOT / "stn_engine/src").rglob("*") if path.suffix in SOURCES]
    cited = re.findall(citation, "\n".join(path.read_text() for path in sources))
    numbers = set(re.findall(number, " ".join(cited)))
    assert {"1", "2", "5"} <= numbers <= written


def test_links_between_documents_lead_somewhere():
    """Relative links name files that exist."""
    for document in ROOT.glob("**/*.md"):
        if ".venv" in document.parts or "build" in document.parts:
            continue
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
