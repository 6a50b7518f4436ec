#!/bin/sh
# verl's data and verl's reward file, both unchanged. DATA is the folder that verl's examples/data_preprocess/gsm8k.py wrote.
set -e
cd "$(dirname "$0")"
DATA="${DATA:-$HOME/data/gsm8k}"
vantage tasks "parquet:$DATA/train.parquet" --count 2 --reward verl:verl_reward.py
vantage train --model Qwen/Qwen3-0.6B --task "parquet:$DATA/train.parquet" --eval-task "parquet:$DATA/test.parquet" \
  --reward verl:verl_reward.py --algo grpo --rollouts-per-prompt 5 --prompts-per-step 256 --minibatches 4 \
  --max-new-tokens 1024 --learning-rate 1e-6 --kl-coef 0.001 --out runs/verl
