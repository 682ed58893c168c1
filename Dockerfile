# The server as an image: `docker build --target cpu .`, or `--target cuda`. See deploy/README.md.
#
# Wheels in wheelhouse/ go before any index, and an engine in dist/ before compiling one, so that
# `make wheelhouse` is all that a build without a network needs. Neither folder has to be there: their
# names are patterns, which may find nothing. Third-party packages, the engine and the server are layers
# of their own: what changes often is small and comes last. The same sources make the same layers: `tidy`
# gives all files one time, compiles what pip does not, and moves them below /layer, whose folders carry
# that time along.

# Both bases need the same Python at the same path, the first one a C++ compiler unless dist/ has
# the engine. What is in the image is pinned by its digest.
ARG BUILD_BASE=python:3.11.14-bookworm
ARG BASE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${BUILD_BASE} AS build
ENV PIP_CONSTRAINT=/wheelhouse/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_COMPILE=1 \
    PYTHONSAFEPATH=1
RUN python3 -m venv /opt/pip
COPY deploy/install /usr/local/bin/install-python
COPY deploy/tidy /usr/local/bin/tidy
COPY .ci/constraints.txt wheelhous[e] /wheelhouse/

FROM build AS packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/requirements.lock /src/
ENV PYTHON=/opt/stn/python/bin/python
RUN python3 -m venv /opt/stn/python \
    && PIP_EXTRA_INDEX_URL=${TORCH_INDEX} install-python --requirement=/src/requirements.lock \
    && tidy /opt/stn/python

FROM build AS engine
COPY deploy/requirements.txt dis[t]/stn_engine-*.whl /dist/
COPY stn_engine /src/stn_engine
RUN for engine in /dist/*.whl /src/stn_engine; do [ -e "$engine" ] && break; done \
    && install-python --no-deps --target=/opt/stn/engine "$engine" \
    && tidy /opt/stn/engine

FROM build AS server
COPY deploy/requirements-build.lock /src/
RUN install-python --requirement=/src/requirements-build.lock
COPY proto /src/proto
COPY server /src/server
RUN install-python --no-deps --no-build-isolation --target=/opt/stn/server /src/proto /src/server \
    && tidy /opt/stn/server

FROM ${BASE} AS runtime
ENV PATH=/opt/stn/python/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/stn/server:/opt/stn/engine \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    STN_DEFAULTS="--listen=0.0.0.0:50051 --metrics-listen=0.0.0.0:9464"
USER 65532:65532
WORKDIR /
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD ["python", "-m", "stn_server.probe"]
# The server does what process 1 has to: it handles signals, and clears away orphans. Those that come
# while Python itself starts are held back, as the kernel would drop them.
ENTRYPOINT ["env", "--block-signal=SIGTERM,SIGINT,SIGHUP", "python", "-m", "stn_server"]

FROM runtime AS cpu
COPY --from=packages /layer/ /
COPY --from=engine /layer/ /
COPY --from=server /layer/ /
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="stn-server" \
      org.opencontainers.image.description="Batching gRPC server for spatial transformers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The same with the CUDA build of torch, which is the one on PyPI and brings the user libraries, and
# with the kernels compiled ahead; a driver is all that the host adds.
FROM build AS packages-cuda
COPY deploy/requirements-cuda.lock /src/
ENV PYTHON=/opt/stn/python/bin/python
RUN python3 -m venv /opt/stn/python \
    && install-python --requirement=/src/requirements-cuda.lock \
    && tidy /opt/stn/python

FROM packages-cuda AS kernels
ARG ARCHITECTURES="sm_80 sm_90 sm_100"
COPY --from=engine /layer/ /
RUN PYTHONPATH=/opt/stn/engine STN_KERNEL_CACHE=/opt/stn/kernels \
    /opt/stn/python/bin/python -m stn_engine.warm $(printf -- '--arch %s ' ${ARCHITECTURES}) \
    && chmod -R a+rX /opt/stn/kernels \
    && tidy /opt/stn/kernels

FROM runtime AS cuda
ENV STN_KERNEL_CACHE=/opt/stn/kernels \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /layer/ /
COPY --from=engine /layer/ /
COPY --from=kernels /kernels/ /
COPY --from=server /layer/ /
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="stn-server" \
      org.opencontainers.image.description="Batching gRPC server for spatial transformers, on CUDA" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-NVIDIA-Proprietary AND LicenseRef-NVIDIA-SOFTWARE-LICENSE" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
