#!/bin/sh
# DAPO-Math-17K with Qwen3-4B on eight GPUs of 80 GB, then the three benchmarks of AIME with 32 responses each.
set -e
cd "$(dirname "$0")"
accelerate launch --multi_gpu --num_processes 8 -m vantage train dapo_math.yaml --resume auto
vantage eval runs/dapo-math --task aime24,aime25,aime26 --k 32 --temperature 0.6 --top-p 0.95 --max-new-tokens 8192 \
  --against Qwen/Qwen3-4B --enable-thinking false --out runs/dapo-math-eval
