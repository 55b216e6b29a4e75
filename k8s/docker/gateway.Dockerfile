# The gateway: no PyTorch, no Ray. From the repository's root: docker build -f k8s/docker/gateway.Dockerfile .
FROM python:3.11.16-slim-trixie AS build
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
WORKDIR /src
COPY k8s/docker/requirements-gateway.lock ./
# --no-deps: what is not in the lock is not installed, so nothing brings PyTorch in by the back door.
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements-gateway.lock
COPY pyproject.toml ./
COPY services services
COPY swaa_runtime swaa_runtime
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11.16-slim-trixie
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin swaa
COPY --from=build /venv /venv
# The root is read-only in the cluster; /tmp is the one place to write to.
ENV PATH=/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 50051
ENTRYPOINT ["swaa"]
CMD ["gateway"]
