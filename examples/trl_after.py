"""trl_before.py for Vantage, line by line. The reward functions and the dataset are the same to the letter."""

from datasets import load_dataset

from vantage import Grpo, TrainConfig, Trainer  # GRPOConfig, GRPOTrainer


def correct(completions, answer, **kwargs):
    return [float(text.strip().rstrip(".").endswith(right)) for text, right in zip(completions, answer)]


def short(completions, **kwargs):
    return [-min(len(text) / 2000, 1.0) for text in completions]


dataset = load_dataset("json", data_files="problems.jsonl", split="train")
config = TrainConfig(
    model="Qwen/Qwen3-0.6B",  # GRPOTrainer(model=...)
    algo=Grpo(),  # GRPOTrainer; any other value estimate goes here
    out="runs/vantage",  # output_dir
    steps=100,  # max_steps
    rollouts_per_step=64,  # per_device_train_batch_size × gradient_accumulation_steps × processes
    rollouts_per_prompt=8,  # num_generations
    max_new_tokens=512,  # max_completion_length
    temperature=1.0,
    learning_rate=1e-6,
    lr_schedule="linear",  # lr_scheduler_type
    warmup_steps=5,
    kl_coef=0.001,  # beta, k3 with importance weights in both
    clip_low=0.2,  # epsilon
    clip_high=0.28,  # epsilon_high
    dual_clip=0.0,  # delta=None: no further cap
    aggregation="token-mean",  # loss_type="dapo"
    epochs=1,  # num_iterations
    reward_weights=(1.0, 0.1),
    reward_range=(-0.1, 1.0),  # of the weighted sum; value estimates are clipped to it
    gradient_checkpointing=True,
    checkpoint_every=50,  # save_steps
    eval_problems=0,  # no eval_dataset
    seed=0,
)
trainer = Trainer(config, train_data=dataset, reward_funcs=[correct, short])
trainer.train()  # saves the final model too, in runs/vantage/model
