#!/usr/bin/env bash
# Distil, choose layers, train two adapters and compare them with the bare model, in one go on one CUDA device.
#
#     benchmarks/device_finetune.sh MODEL_FOLDER OUTPUT_FOLDER
#
# Needs torch, transformers, safetensors, peft, numpy. Sizes and times (seconds) are variables, for shorter tries.
#   STAGES           of "data layers train eval"; each leaves its files in WORK for the next
#   LAYERS           without the stage "layers": a file that `swaa calibrate --quality` wrote, to take the layers from
#   TORCHINDUCTOR_CACHE_DIR   keep it between machines: compiling FlexAttention anew took 180 s once
# One process at a time uses the GPU: twelve engines side by side took 7 minutes for what batches do in one.
set -u
MODEL=$1 OUT=$2
STAGES=${STAGES:-data layers train eval} WORK=${WORK:-$(mktemp -d)} LAYERS=${LAYERS:-services/quality/data/layers_smollm2.json}
PROMPTS=${PROMPTS:-600} REFERENCES=${REFERENCES:-1800} LENGTHS=${LENGTHS:-1000 2000 4000 7000}
TRAIN_S=${TRAIN_S:-150} RATE=${RATE:-4e-4} EPOCHS=${EPOCHS:-1} NUM_LAYERS=${NUM_LAYERS:-10}
EVAL_S=${EVAL_S:-120} EVAL_SAMPLES=${EVAL_SAMPLES:-25} EVAL_LENGTHS=${EVAL_LENGTHS:-4000 7000}
BASE='{"window": 512, "sink_tokens": 10, "full_decode": true, "full_tail": 64}'
ON="--model $MODEL --device cuda"
export OMP_NUM_THREADS=4 PYTHONUNBUFFERED=1
mkdir -p "$OUT" "$WORK"

say() { echo "[$SECONDS s] $*"; }
tune() { # log, command, options
  local log=$1
  shift
  python3 -m services.quality.tune "$@" >"$WORK/$log.log" 2>&1 || tail -n 3 "$WORK/$log.log"
  tail -n 1 "$WORK/$log.log"
}
wants() { [[ " $STAGES " == *" $1 "* ]]; }

if wants data; then
  say "answers of the full model to $PROMPTS prompts; reference answers to $REFERENCES others"
  # shellcheck disable=SC2086  # lists of options
  tune references distill $ON --lengths $LENGTHS --count "$REFERENCES" --seed 1 --only-reference --processes 8 \
    --output "$WORK/references.jsonl" &
  # shellcheck disable=SC2086
  tune distilled distill $ON --lengths $LENGTHS --count "$PROMPTS" --reference --runner batched --processes 8 \
    --output "$WORK/distilled.jsonl"
  wait
  touch "$WORK/distilled.jsonl"
fi
if wants layers; then
  say "layers by the likelihood of right answers"
  LAYERS=$OUT/layers.json
  # shellcheck disable=SC2086
  tune layers calibrate $ON --recipe "$BASE" --kind lookback --num-layers "$NUM_LAYERS" --lengths 1000 4000 7000 \
    --count 21 --card-count 42 --candidates 16 --processes 8 --name smollm2 --output "$LAYERS"
fi
LOOKBACK=$(python3 -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1]))["recipes"][0]["recipe"]))' "$LAYERS")
train() { # name, recipe
  # shellcheck disable=SC2086
  tune "$1" finetune $ON --recipe "$2" --data "$WORK/distilled.jsonl" "$WORK/references.jsonl" --output "$WORK/$1" \
    --learning-rate "$RATE" --epochs "$EPOCHS" --time-limit-s "$TRAIN_S" --name smollm2
  mkdir -p "$OUT/$1" && cp "$WORK/$1"/adapter_* "$OUT/$1/"
}
if wants train; then
  say "training; lookback recipe: $LOOKBACK"
  train sliding-512 "$BASE"
  train lookback-512 "$LOOKBACK"
fi
if wants eval; then
  say "evaluation at $EVAL_LENGTHS tokens"
  python3 - "$BASE" "$LOOKBACK" >"$WORK/recipes.json" <<'P'
import json, sys
base, lookback = map(json.loads, sys.argv[1:])
rows = {"full": {}, "sliding": base, "sliding-tuned": base | {"adapter": "sliding-512"}}
rows |= {"lookback": lookback, "lookback-tuned": lookback | {"adapter": "lookback-512"}}
print(json.dumps(rows))
P
  # shellcheck disable=SC2086
  python3 -m services.quality run $ON --recipes "$WORK/recipes.json" --lengths $EVAL_LENGTHS --samples "$EVAL_SAMPLES" \
    --adapter "sliding-512=$OUT/sliding-512" "lookback-512=$OUT/lookback-512" --runner batched --output "$WORK/eval" \
    --time-limit-s "$EVAL_S" --name smollm2 2>"$WORK/eval.log" || tail -n 3 "$WORK/eval.log"
  cp "$WORK/eval/quality.json" "$OUT/"
fi
tar -czf "$OUT/logs.tgz" -C "$WORK" --exclude '*.safetensors' --exclude 'distilled.jsonl' --exclude 'references.jsonl' .
say "done"
