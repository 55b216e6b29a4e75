# A Ray pod, head or worker: KubeRay gives the command. From the repository's root:
#   docker build -f k8s/docker/replica.Dockerfile .
# PyTorch's wheel brings the CUDA libraries; the node's driver comes from NVIDIA's container toolkit. Without GPUs,
# --build-arg EXTRA_INDEX_URL=<the index of PyTorch's CPU wheels> makes a far smaller image.
FROM python:3.11.16-slim-trixie AS build
ARG EXTRA_INDEX_URL=
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
WORKDIR /src
COPY k8s/docker/requirements-replica.lock deps/locks/requirements.cpu.lock deps/locks/requirements.cuda.lock ./
RUN if [ -n "$EXTRA_INDEX_URL" ]; then \
      pip install --no-cache-dir --no-deps --require-hashes --extra-index-url "$EXTRA_INDEX_URL" -r requirements.cpu.lock; \
    else \
      pip install --no-cache-dir --no-deps --require-hashes -r requirements.cuda.lock; \
    fi \
    && pip install --no-cache-dir --no-deps --require-hashes -r requirements-replica.lock
COPY pyproject.toml ./
COPY services services
COPY swaa_runtime swaa_runtime
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11.16-slim-trixie
# KubeRay's readiness probe of a worker calls wget. Debian keeps one version of it, so it cannot be pinned.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /bin/bash swaa
COPY --from=build /venv /venv
# The root is read-only in the cluster; /tmp is the one place to write to, and where caches go.
ENV PATH=/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /tmp
