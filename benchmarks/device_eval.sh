#!/usr/bin/env bash
# The quality table on one borrowed GPU: python3 there has torch, transformers and numpy; nothing can be fetched.
#
#   benchmarks/device_eval.sh SECONDS PROCESSES [options of `swaa eval run`]
#
# Samples that a batch does not fill before the seconds are over are not measured: give it time enough, or run it again.
# PARTS (default .cache/device) holds what travels beside the code: model.gguf.* (the default model in pieces), gguf-*.whl, and
# results/*.jsonl of earlier calls, which are not measured again. Run it again and it goes on. Results: $OUT/samples.jsonl.gz,
# the tables and the plot. TIMING=N times N prefills of every recipe first, alone on the GPU; TEXTS=N measures perplexity.
# TABLE_LENGTHS: those of the table; a recipe that lacks one of them is left out.
set -euo pipefail
seconds=$1 processes=$2
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
parts=${PARTS:-.cache/device}
work=${WORK:-/tmp/swaa-eval}
out=${OUT:?a folder for results}
started=$(date +%s)

mkdir -p "$work/results"
model="$work/SmolLM2-135M-Instruct.Q4_1.gguf"
[ -s "$model" ] || { find "$parts" "$work" -name 'model.gguf.*' | awk -F/ '{print $NF, $0}' | sort -u -k1,1 | cut -d' ' -f2- | xargs cat > "$model.new" && mv "$model.new" "$model"; }
python3 -c 'import gguf' 2> /dev/null || [ -d "$work/site" ] ||
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$work/site" $(find "$parts" "$work" -name 'gguf-*.whl' | head -1)
export PYTHONPATH="$root:$work/site${PYTHONPATH:+:$PYTHONPATH}" SWAA_CACHE_DIR="$work/cache" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
cp -n "$parts"/results/*.jsonl "$work/results/" 2> /dev/null || true

evaluate() {
  python3 -m services.quality run --output "$work/results" --model "$model" --name smollm2 --device cuda --no-report \
    --max-running 2 --max-step-tokens 8192 "$@"
}
left() { echo $((seconds - $(date +%s) + started)); }

trap 'cat "$work"/results/*.jsonl | gzip > "$out/samples.jsonl.gz"' EXIT
if [ "${TIMING:-0}" -gt 0 ]; then
  evaluate "$@" --file "timing-$started" --samples 0 --timing-repeats "$TIMING"
fi
pids=()
for ((shard = 0; shard < processes; shard++)); do
  evaluate "$@" --runner batched --file "samples-$started-$shard" --shard "$shard/$processes" --time-limit-s "$(left)" \
    --perplexity-samples "${TEXTS:-0}" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
python3 -m services.quality report --output "$work/results" ${MEAN_TASKS:+--mean-tasks $MEAN_TASKS} \
  ${TABLE_LENGTHS:+--table-lengths $TABLE_LENGTHS} && cp "$work"/results/{quality.json,quality.md} "$out/"
cp "$work/results/pareto.png" "$out/" 2> /dev/null || true
