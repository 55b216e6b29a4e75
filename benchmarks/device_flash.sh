#!/usr/bin/env bash
# flash-attn 4 for a machine with a Hopper or Blackwell GPU, PyTorch with CUDA 13 and Python 3.12 that nothing can be
# fetched from, and the comparison of dense attention there. Two parts of about 50 MiB, since the compiler is large.
#
#   benchmarks/device_flash.sh fetch                # here
#   benchmarks/device_flash.sh keep                 # there, with .cache/flash-wheels/part1 carried along
#   benchmarks/device_flash.sh run [command...]     # there, with .cache/flash-wheels/part2; default: bench_dense
set -euo pipefail
cd "$(dirname "$0")/.."

FOLDER=.cache/flash-wheels
KEPT=${KEPT:-/tmp/flash-wheels}
SITE=${SITE:-/tmp/site-flash}
VERSIONS=(
  flash-attn-4==4.0.0b36 quack-kernels==0.6.5 apache-tvm-ffi==0.1.15.post2 torch-c-dlpack-ext==0.1.5
  nvidia-cutlass-dsl==4.8.1 nvidia-cutlass-dsl-libs-base==4.8.1 nvidia-cutlass-dsl-libs-core==4.8.1
)
LIBRARIES=nvidia-cutlass-dsl-libs-cu13==4.8.1

fetch() {
  local platforms=() at
  for at in 2_28 2_24 2_17; do
    platforms+=(--platform "manylinux_${at}_x86_64")
  done
  rm -rf "$FOLDER" && mkdir -p "$FOLDER"/{part1,part2,whole}
  local download=(
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}"
  )
  "${download[@]}" -d "$FOLDER/part1" "${VERSIONS[@]}"
  "${download[@]}" -d "$FOLDER/whole" "$LIBRARIES"
  split --bytes=44M --numeric-suffixes=1 --suffix-length=1 "$FOLDER"/whole/*.whl "$FOLDER/libraries."
  mv "$FOLDER/libraries.1" "$FOLDER/part1/"
  mv "$FOLDER/libraries.2" "$FOLDER/part2/"
  basename "$FOLDER"/whole/*.whl >"$FOLDER/part2/libraries.name"
  rm -r "$FOLDER/whole"
  du -sm "$FOLDER"/*
}

keep() {
  mkdir -p "$KEPT" && cp "$FOLDER"/part1/* "$KEPT/"
}

run() {
  if [ ! -d "$SITE" ]; then
    cat "$KEPT/libraries.1" "$FOLDER/part2/libraries.2" >"$KEPT/$(cat "$FOLDER/part2/libraries.name")"
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$SITE" "$KEPT"/*.whl
  fi
  # A .pth file names the second folder, and is read for folders of site-packages alone.
  export PYTHONPATH=$SITE:$SITE/nvidia_cutlass_dsl/dsl_packages${PYTHONPATH:+:$PYTHONPATH}
  if [ $# -eq 0 ]; then
    set -- python3 -m benchmarks.bench_dense
  fi
  "$@"
}

"$@"
