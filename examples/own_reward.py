"""Your own reward on your own data, in 15 lines: `python own_reward.py`."""

import re

from vantage import Poise, TrainConfig, Trainer

data = [{"prompt": f"What is {a} × {b}? Answer with a number.", "product": a * b} for a in range(20) for b in range(20)]


def last_number(completions, product, **columns):  # every column of the data is a list, with one entry a rollout
    found = [re.findall(r"-?\d+", text)[-1:] for text in completions]
    return [float(numbers == [str(right)]) for numbers, right in zip(found, product)]


config = TrainConfig(model="Qwen/Qwen3-0.6B", algo=Poise(), enable_thinking=False, max_new_tokens=256, out="runs/own")
Trainer(config, train_data=data, reward_funcs=[last_number]).train()
