# Every task of the project. `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PYTHONSAFEPATH := 1

PROJECTS := proto stn_engine server client
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
EMULATED := $(VENV)/.emulated

# Installs again only when a dependency list changed. This compiles the engine, which takes minutes.
$(INSTALLED): .ci/constraints.txt .ci/requirements.txt $(PROJECTS:%=%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --requirement .ci/requirements.txt
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --no-build-isolation \
		--editable proto --editable stn_engine --editable server[otel] --editable client[demo,docker,jax,playground,terminal]
	@touch $@

CPP := $(shell find stn_engine/src/stn_engine/native -type f ! -name "*.md")
NATIVE := stn_engine/CMakeLists.txt $(CPP)

# Compiles again only what changed.
$(BUILT): $(INSTALLED) $(NATIVE)
	@mkdir -p build
	cd stn_engine && $(abspath $(BIN))/python build_backend.py >../build/native.log 2>&1 \
		|| (cat ../build/native.log; exit 1)
	@touch $@

PROTOC := $(VENV)/protoc/.installed

$(PROTOC): .ci/requirements-protoc.txt | $(INSTALLED)
	$(PYTHON) -m venv $(VENV)/protoc
	$(VENV)/protoc/bin/pip install --quiet --requirement $<
	@touch $@

TRITONCLIENT := build/tritonclient

# NVIDIA's own client has an environment of its own, as its pins are others than the server's.
$(TRITONCLIENT)/.installed: .ci/requirements-tritonclient.txt
	$(PYTHON) -m venv $(TRITONCLIENT)
	$(TRITONCLIENT)/bin/pip install --quiet --requirement $<
	@touch $@

WITH_TRITONCLIENT := SERVER_PYTHON=$(abspath $(BIN))/python \
	PYTHONPATH=$(abspath proto/src):$(abspath client/src) $(TRITONCLIENT)/bin/python

RAY := build/ray

# Ray has an environment of its own above the project's: what both have is Ray's there.
$(RAY)/.installed: .ci/requirements-ray.txt $(INSTALLED)
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install --quiet --requirement $<
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		>$$(echo $(RAY)/lib/python*/site-packages)/above.pth
	@touch $@

WITH_RAY := RAY_USAGE_STATS_ENABLED=0 SERVER_PYTHON=$(abspath $(BIN))/python \
	PYTHONPATH=$(subst $() ,:,$(abspath $(PROJECTS:%=%/src))) $(RAY)/bin/python

BUILD := $(BIN)/python -m build --quiet --no-isolation
ENGINE := dist/.engine

# The engine as a wheel, from the objects of $(BUILT), with the C library that it needs in its name.
$(ENGINE): $(BUILT) $(shell find stn_engine/src -name '*.py') stn_engine/README.md
	rm -rf dist
	$(BUILD) --wheel --outdir dist/untagged stn_engine
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --plat auto --wheel-dir dist dist/untagged/*.whl
	rm -r dist/untagged
	@touch $@

WHEELHOUSE := wheelhouse/.filled

# What the image is built from without a network.
$(WHEELHOUSE): $(ENGINE) deploy/requirements.lock deploy/requirements-build.lock
	rm -rf wheelhouse
	$(BIN)/pip download --quiet --only-binary=:all: --dest wheelhouse \
		--requirement deploy/requirements.lock --requirement deploy/requirements-build.lock
	@touch $@

.PHONY: demo test test-quick test-newest-torch test-oip test-ray test-containers test-cluster wheels publish wheelhouse lock sbom gpu-check gpu-check-dry test-gpu check fuzz-native fuzz-server overload chaos soak memory format proto native-numbers docs dashboard bench-server bench-local bench-client bench-many bench-registration bench-oip bench-triton bench-replicas bench-ray bench-engine bench-gpu clean help

demo: $(BUILT)  ## warp a photo, differentiate it, align two photos, all through a real server
	$(BIN)/python client/examples/first_light.py --output build/demo

# The CUDA kernels as the tests run them without a GPU.
$(EMULATED): $(BUILT) tests/support/emulated_cuda.py tests/emulation/cuda.h tests/emulation/device.cpp
	PYTHONPATH=tests $(BIN)/python -m support.emulated_cuda
	@touch $@

# Files of tests run side by side, but for tests that need the machine for themselves.
WORKERS ?= auto
SIDE_BY_SIDE := $(BIN)/pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist loadfile

test: $(BUILT) $(PROTOC) $(EMULATED) test-oip test-ray  ## the whole test suite
	$(SIDE_BY_SIDE) -m "not alone"
	$(BIN)/pytest -m alone

test-oip: $(BUILT) $(TRITONCLIENT)/.installed  ## the server through NVIDIA's own client
	$(WITH_TRITONCLIENT) -m pytest tests/oip

test-ray: $(BUILT) $(RAY)/.installed  ## the example of Ray Serve
	$(WITH_RAY) -m pytest -p no:warnings tests/ray_serve

test-quick: $(BUILT) $(PROTOC) $(EMULATED)  ## what judges a change in Python, in two minutes
	$(SIDE_BY_SIDE) -m "not alone and not slow" --most-cases 16

NEWEST_TORCH := build/newest-torch
WITH_NEWEST_TORCH := PYTHONPATH=$(NEWEST_TORCH) $(BIN)

# In a folder of its own that comes first on the path; TORCH names another one, or a wheel.
test-newest-torch: $(BUILT)  ## the engine with the newest torch, whatever it is pinned to
	$(BIN)/pip install --quiet --upgrade --target $(NEWEST_TORCH) $(or $(TORCH),torch)
	$(WITH_NEWEST_TORCH)/python -c 'import torch; print("torch", torch.__version__)'
	$(WITH_NEWEST_TORCH)/pytest tests/engine tests/client/test_torch.py

# Versions come from .ci/constraints.txt, hashes from the index; the CPU's torch from that of PyTorch, or
# from where TORCH_WHEELS says.
LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --python-version 3.11 \
	--python-platform linux --constraint .ci/constraints.txt --custom-compile-command "make lock"
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu/torch

lock: $(INSTALLED)  ## write anew what the image is made of: versions and hashes
	$(LOCK) --find-links $(TORCH_WHEELS) --output-file deploy/requirements.lock deploy/requirements.txt
	$(LOCK) --output-file deploy/requirements-cuda.lock deploy/requirements.txt deploy/requirements-cuda.txt
	$(LOCK) --output-file deploy/requirements-build.lock deploy/requirements-build.txt

SBOM := build/sbom.json

sbom: $(INSTALLED)  ## what is in the image IMAGE, as CycloneDX; needs a Docker engine
	@mkdir -p build
	$(BIN)/syft scan --quiet --output cyclonedx-json=$(SBOM) docker:$(or $(IMAGE),stn-server:cpu)
	@echo $(SBOM)

test-containers: $(WHEELHOUSE)  ## build the image and run it; needs a Docker engine, or root
	$(BIN)/pytest deploy/tests --ignore deploy/tests/cluster

test-cluster: $(BUILT)  ## the overlays at a real API server: etcd, kube-apiserver and kube-controller-manager on the PATH; CRDS=folder
	CRDS=$(CRDS) $(BIN)/pytest deploy/tests/cluster

wheels: $(ENGINE)  ## wheels and sdists of the four projects, in dist/
	$(BUILD) --sdist --outdir dist stn_engine
	for project in proto server client; do $(BUILD) --outdir dist $$project || exit; done

publish: wheels  ## check dist/ and upload this version to an index; PUBLISH=--check; PUBLISH="--repository testpypi"
	$(BIN)/python .ci/publish.py --dist dist $(PUBLISH)

wheelhouse: $(WHEELHOUSE)  ## all that `docker build` needs without a network

# Those of a machine with a GPU: its own Python with torch, cuda-core and pytest, and nothing installed.
SOURCES := $(subst $() ,:,$(abspath $(PROJECTS:%=%/src) tests))
ON_GPU := STN_TEST_GPU=1 PYTHONPATH=$(SOURCES):$$PYTHONPATH $(PYTHON)

gpu-check:  ## all that a GPU can tell, in eight minutes; CHECK="--only smoke --budget-s 60"
	$(ON_GPU) -m gpu_check $(CHECK)

gpu-check-dry: $(BUILT) $(EMULATED)  ## the same way on the emulated device, in short
	PYTHONPATH=tests $(BIN)/python -m gpu_check --dry-run $(CHECK)

test-gpu:  ## what needs a GPU, and the conformance battery on it
	$(ON_GPU) -m pytest -W default -p no:cacheprovider tests/gpu
	$(ON_GPU) -m pytest -W default -p no:cacheprovider -k cuda \
		tests/engine/test_backend_conformance.py tests/engine/test_gradients.py tests/engine/test_objective.py

# In a folder with its version, so that another version is another target.
BUF_VERSION := 1.75.0
BUF := build/buf-$(BUF_VERSION)/node_modules/.bin/buf

$(BUF):
	npm install --silent --no-save --ignore-scripts --prefix build/buf-$(BUF_VERSION) \
		@bufbuild/buf@$(BUF_VERSION)

check: $(BUILT) $(BUF)  ## lint, format, types, import contracts, wire contract; needs npm
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy proto/src stn_engine/src server/src client/src client/examples
	$(BIN)/lint-imports --no-logo
	$(BUF) lint
	$(BUF) breaking --against tests/golden/contract.txtpb

fuzz-native: $(INSTALLED)  ## the native module under sanitizers; FUZZ="--seconds 600 --seed 1"
	$(BIN)/cmake -S stn_engine -B build/native-fuzz -G Ninja -DSTN_SANITIZE=ON \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DPython_EXECUTABLE=$(abspath $(BIN))/python >/dev/null
	$(BIN)/cmake --build build/native-fuzz
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=build/native-fuzz \
		$(BIN)/python tests/fuzz/fuzz_native.py $(FUZZ)

STRESS := GRPC_VERBOSITY=NONE PYTHONPATH=tests $(BIN)/python

fuzz-server: $(BUILT)  ## a million odd messages to a server; FUZZ="--inputs 20000 --seed 1"
	$(STRESS) tests/fuzz/fuzz_server.py $(FUZZ)

overload: $(BUILT)  ## three times the capacity for a minute
	$(STRESS) -m stress.overload --seconds 60

chaos: $(BUILT)  ## 100,000 calls with cancellations, killed callers and injected faults
	$(STRESS) -m stress.chaos --requests 100000

soak: $(BUILT)  ## half an hour of mixed load; memory must not rise
	$(STRESS) -m stress.soak --seconds 1800

memory: $(BUILT)  ## 64 callers of 61 MiB where 256 MiB may be inside, and as many that stall
	$(STRESS) -m stress.memory

format: $(INSTALLED)  ## format and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

proto: $(PROTOC)  ## regenerate the committed protobuf code
	$(VENV)/protoc/bin/python .ci/generate_proto.py

native-numbers: $(INSTALLED)  ## regenerate the numbers that C++ shares with Python
	$(BIN)/python .ci/generate_native.py

docs: $(BUILT)  ## regenerate the tables in the READMEs and the pictures of the conventions
	$(BIN)/python .ci/generate_docs.py
	$(BIN)/python .ci/draw_conventions.py

dashboard: $(BUILT)  ## draw the dashboard from its own queries; needs prometheus
	PYTHONPATH=tests $(BIN)/python .ci/draw_dashboard.py

bench-server: $(BUILT)  ## the service against raw-bytes gRPC echo; BENCH="--only 28x28 --rounds 3"
	PYTHONPATH=tests $(BIN)/python -m bench.bench_server $(or $(BENCH),--output tests/bench/results/server.json)

bench-local: $(BUILT)  ## clients on the server's host: local transport, gRPC and torch's RPC; BENCH="--only 28x28"
	PYTHONPATH=tests $(BIN)/python -m bench.bench_local $(or $(BENCH),--output tests/bench/results/local.json)

bench-client: $(BUILT)  ## what the SDK and `stn` add to a call, and beside OpenCV; BENCH="--only map"
	PYTHONPATH=tests $(BIN)/python -m bench.bench_client $(or $(BENCH),--output tests/bench/results/client.json)

bench-many: $(BUILT)  ## small calls that go together against one a message; BENCH="--only gather"
	PYTHONPATH=tests $(BIN)/python -m bench.bench_many $(or $(BENCH),--output tests/bench/results/many.json)

bench-registration: $(BUILT)  ## images that stay on the server, and registration on them, beside OpenCV
	PYTHONPATH=tests $(BIN)/python -m bench.bench_registration $(or $(BENCH),--output tests/bench/results/registration.json)
bench-triton: $(BUILT)  ## beside a Triton that runs already: TRITON=HOST:PORT; BENCH="--only 28x28"
	PYTHONPATH=tests $(BIN)/python -m bench.bench_triton --triton $(TRITON) \
		$(or $(BENCH),--output tests/bench/results/triton.json)

bench-oip: $(BUILT)  ## the Open Inference Protocol beside stn.v1, on the same server; BENCH="--only 28x28"
	PYTHONPATH=tests $(BIN)/python -m bench.bench_oip $(or $(BENCH),--output tests/bench/results/oip.json)

bench-replicas: $(BUILT)  ## throughput of one to eight replicas on devices of fixed cost
	PYTHONPATH=tests $(BIN)/python -m bench.bench_replicas \
		--output tests/bench/results/replicas.json

bench-ray: $(BUILT) $(RAY)/.installed  ## the service alone and through Ray Serve, and the engine in it; TARGET
	$(WITH_RAY) client/examples/ray_serve.py --target $(or $(TARGET),127.0.0.1:50051)

bench-engine: $(BUILT)  ## the engine against torch, OpenCV and Kornia, side by side
	PYTHONPATH=tests $(BIN)/python -m bench.bench_engine \
		--output tests/bench/results/engine_cpu.json

bench-gpu:  ## the engine on a GPU against torch and the copy bandwidth; BENCH="--only ragged"
	$(ON_GPU) -m bench.bench_cuda $(BENCH)

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist wheelhouse stn_engine/build stn_engine/src/stn_engine/_cpu.*.so

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
