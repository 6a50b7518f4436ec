#!/bin/sh
# Grade-school word problems with Qwen3-0.6B on one GPU of 24 GB: look at problems, train, measure, report.
set -e
cd "$(dirname "$0")"
vantage tasks gsm8k --count 2
vantage train gsm8k.yaml --resume auto
vantage eval runs/gsm8k --against Qwen/Qwen3-0.6B --task gsm8k,math500 --k 4 --enable-thinking false --out runs/gsm8k-eval
vantage report runs/gsm8k --out runs/gsm8k-report
