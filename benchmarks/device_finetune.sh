#!/usr/bin/env bash
# Distil, choose layers, train two adapters and compare them with the bare model, in one go on one CUDA device.
#
#     benchmarks/device_finetune.sh MODEL_FOLDER OUTPUT_FOLDER
#
# Needs torch, transformers, safetensors, peft, numpy. Times in seconds and sizes are variables, for shorter tries.
set -u
MODEL=$1 OUT=$2
PROCESSES=${PROCESSES:-8} PROMPTS=${PROMPTS:-1000} REFERENCES=${REFERENCES:-2000} LENGTHS=${LENGTHS:-1000 2000 4000 7000}
TRAIN_S=${TRAIN_S:-200} RATE=${RATE:-4e-4} NUM_LAYERS=${NUM_LAYERS:-10}
EVAL_S=${EVAL_S:-150} EVAL_SAMPLES=${EVAL_SAMPLES:-25} EVAL_LENGTHS=${EVAL_LENGTHS:-4000 7000}
WORK=${WORK:-$(mktemp -d)}
export OMP_NUM_THREADS=2 PYTHONUNBUFFERED=1
TUNE="python3 -m services.quality.tune" ON="--model $MODEL --device cuda"
BASE='{"window": 512, "sink_tokens": 10, "full_decode": true, "full_tail": 64}'
mkdir -p "$OUT" "$WORK"
say() { echo "[$SECONDS s] $*"; }

say "answers of the full model; layers by their likelihood"
for shard in $(seq 0 $((PROCESSES - 1))); do
  $TUNE distill $ON --lengths $LENGTHS --count "$PROMPTS" --reference --shard "$shard/$PROCESSES" --max-running 16 \
    --max-step-tokens 4096 --output "$WORK/distilled-$shard.jsonl" >"$WORK/distil-$shard.log" 2>&1 &
done
$TUNE calibrate $ON --recipe "$BASE" --kind lookback --num-layers "$NUM_LAYERS" --lengths 1000 4000 7000 --count 21 \
  --card-count 42 --methods leave-one-out greedy lazy-ratio --candidates 16 --processes 4 --name smollm2 \
  --output "$OUT/layers.json" >"$WORK/layers.log" 2>&1 &
$TUNE distill $ON --lengths $LENGTHS --count "$REFERENCES" --seed 1 --only-reference --processes 4 \
  --output "$WORK/references.jsonl" >"$WORK/references.log" 2>&1 &
wait
tail -n 1 "$WORK"/distil-*.log "$WORK/layers.log" "$WORK/references.log"
LOOKBACK=$(python3 -c 'import json,sys; print(json.dumps(json.load(open(sys.argv[1]))["recipes"][0]["recipe"]))' "$OUT/layers.json")
say "training; lookback recipe: $LOOKBACK"
train() { # name recipe
  $TUNE finetune $ON --recipe "$2" --data "$WORK"/distilled-*.jsonl "$WORK/references.jsonl" --output "$WORK/$1" \
    --learning-rate "$RATE" --epochs "${EPOCHS:-1}" --time-limit-s "$TRAIN_S" >"$WORK/$1.log" 2>&1
  mkdir -p "$OUT/$1" && cp "$WORK/$1"/adapter_* "$OUT/$1/"
}
train sliding-512 "$BASE" &
train lookback-512 "$LOOKBACK" &
wait
tail -n 1 "$WORK/sliding-512.log" "$WORK/lookback-512.log"
tail -n 1 "$WORK/sliding-512/log.jsonl" "$WORK/lookback-512/log.jsonl"
say "evaluation"
python3 - "$BASE" "$LOOKBACK" >"$WORK/recipes.json" <<'P'
import json, sys
base, lookback = map(json.loads, sys.argv[1:])
rows = {"full": {}, "sliding": base, "sliding-tuned": base | {"adapter": "sliding-512"}}
rows |= {"lookback": lookback, "lookback-tuned": lookback | {"adapter": "lookback-512"}}
print(json.dumps(rows))
P
for shard in $(seq 0 $((PROCESSES - 1))); do
  python3 -m services.quality run $ON --recipes "$WORK/recipes.json" --lengths $EVAL_LENGTHS --samples "$EVAL_SAMPLES" \
    --adapter "sliding-512=$OUT/sliding-512" "lookback-512=$OUT/lookback-512" --shard "$shard/$PROCESSES" \
    --file "shard-$shard" --output "$WORK/eval" --max-running 16 --max-step-tokens 4096 --no-report \
    --time-limit-s "$EVAL_S" >"$WORK/eval-$shard.log" 2>&1 &
done
wait
tail -n 1 "$WORK"/eval-*.log
python3 -m services.quality report --output "$WORK/eval"
cp "$WORK/eval/quality.json" "$OUT/" 2>/dev/null
tar -czf "$OUT/logs.tgz" -C "$WORK" --exclude '*.safetensors' --exclude '*distilled*' --exclude 'references.jsonl' .
say "done"
