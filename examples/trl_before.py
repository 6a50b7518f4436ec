"""A script for TRL 1.16's GRPOTrainer. trl_after.py is the same, line by line, for Vantage."""

from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer


def correct(completions, answer, **kwargs):
    return [float(text.strip().rstrip(".").endswith(right)) for text, right in zip(completions, answer)]


def short(completions, **kwargs):
    return [-min(len(text) / 2000, 1.0) for text in completions]


dataset = load_dataset("json", data_files="problems.jsonl", split="train")
config = GRPOConfig(
    output_dir="runs/trl",
    max_steps=100,
    per_device_train_batch_size=16,
    gradient_accumulation_steps=4,
    num_generations=8,
    max_completion_length=512,
    temperature=1.0,
    learning_rate=1e-6,
    lr_scheduler_type="linear",
    warmup_steps=5,
    beta=0.001,
    epsilon=0.2,
    epsilon_high=0.28,
    loss_type="dapo",
    num_iterations=1,
    reward_weights=[1.0, 0.1],
    gradient_checkpointing=True,
    save_steps=50,
    seed=0,
)
trainer = GRPOTrainer(model="Qwen/Qwen3-0.6B", args=config, train_dataset=dataset, reward_funcs=[correct, short])
trainer.train()
trainer.save_model("runs/trl/final")
