"""What users of TRL and verl bring works unchanged: keywords, chat and text, async, None, loggers, TRL's own, verl's files."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.helpers import SMALL
from vantage import Grpo, Poise, Rloo, TrainConfig, Trainer, tiny
from vantage.cli import main
from vantage.errors import UserError
from vantage.rewards import RewardSet, from_spec, from_verl_reward
from vantage.rewards.limits import TooSlow, within

TEXT = ["a", "b"]
CHAT = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]


def scored(functions, completions=("x", "yy"), prompts=TEXT, weights=None, timeout=None, state=None, **columns):
    rewards = RewardSet(functions if isinstance(functions, list) else [functions], weights, timeout)
    ids = [[1] * len(c) for c in completions]
    return rewards(prompts=prompts, completions=completions, completion_ids=ids, columns=columns, trainer_state=state)


def settings(model: Path, out: Path, **changes) -> TrainConfig:
    base = {
        "model": str(model), "out": str(out), "steps": 1, "rollouts_per_step": 8, "rollouts_per_prompt": 2,
        "max_new_tokens": 8, "eval_every": 0, "eval_problems": 0, "samples_every": 1, "samples_count": 8, "checkpoint_every": 0,
    }  # fmt: skip
    return TrainConfig(**(base | changes))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- 1: plain text and chat -----------------------------------------------------------------------------------------


def test_1_text_data_gives_strings():
    def f(completions, **kwargs):
        assert completions == ["x", "yy"]
        assert kwargs["prompts"] == TEXT
        return [float(len(c)) for c in completions]

    assert scored(f).total == [1.0, 2.0]


def test_1_chat_data_gives_messages():
    def f(completions, **kwargs):
        assert kwargs["prompts"] == CHAT
        return [float(len(c[0]["content"])) if c[0]["role"] == "assistant" else -1.0 for c in completions]

    assert scored(f, prompts=CHAT).total == [1.0, 2.0]


# --- 2: columns -----------------------------------------------------------------------------------------------------


def test_2_columns_arrive_repeated_for_each_generation_and_aligned(small_model, tmp_path):
    seen = []

    def f(prompts, completions, answer, **kwargs):
        seen.extend(zip(prompts, answer))
        assert len(prompts) == len(completions) == len(kwargs["completion_ids"]) == 8
        return [0.0] * len(completions)

    data = Dataset.from_list([{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(4)])
    Trainer(settings(small_model, tmp_path / "run"), train_data=data, reward_funcs=f).train()
    assert len(seen) == 8
    assert all(str(int(prompt[:-3]) + 1) == answer for prompt, answer in seen)
    assert [seen[i] == seen[i + 1] for i in range(0, 8, 2)] == [True] * 4
    assert len(set(seen)) == 4


# --- 3: async -------------------------------------------------------------------------------------------------------


def test_3_async_functions_run_side_by_side():
    async def slow(completions, **kwargs):
        await asyncio.sleep(0.3)
        return [1.0] * len(completions)

    async def other(completions, **kwargs):
        await asyncio.sleep(0.3)
        return [2.0] * len(completions)

    start = time.perf_counter()
    assert scored([slow, other]).total == [3.0, 3.0]
    assert time.perf_counter() - start < 0.55


def test_3_an_object_with_an_async_call():
    class Judge:
        async def __call__(self, completions, **kwargs):
            await asyncio.sleep(0)
            return [float(len(c)) for c in completions]

    assert scored(Judge()).total == [1.0, 2.0]


# --- 4: None --------------------------------------------------------------------------------------------------------


def test_4_none_leaves_a_function_out_of_a_sample():
    def first(completions, **kwargs):
        return [1.0, None]

    def second(completions, **kwargs):
        return [10.0, 20.0]

    assert scored([first, second]).total == [11.0, 20.0]
    found = scored(first)
    assert found.total[0] == 1.0
    assert math.isnan(found.total[1])
    assert found.problems == []  # "does not apply" is no failure


def test_4_an_unscorable_rollout_has_no_advantage_and_is_in_no_baseline_and_no_buffer(small_model, tmp_path):
    def sometimes(completions, **kwargs):
        return [None if i % 4 == 0 else float(i % 2) for i in range(len(completions))]

    config = settings(small_model, tmp_path / "run", algo=Poise(), rollouts_per_prompt=4, rollouts_per_step=16)
    trainer = Trainer(config, reward_funcs=sometimes)
    step = trainer.train_step(1)
    advantage, value = step.update.estimate.advantage_BT[:, 0], step.update.estimate.value_BT[:, 0]
    assert (advantage[::4] == 0).all()
    # Siblings have 1, 0, 1: the mean of the two others, the unscorable one left out.
    assert value.reshape(4, 4)[:, 1:].tolist() == [[0.5, 1.0, 0.5]] * 4
    assert len(trainer.estimator.domains["sums"].buffer) == 12
    assert step.row["reward/unscorable"] == 0.25
    for algo in (Grpo(), Rloo()):
        other = Trainer(
            settings(small_model, tmp_path / algo.name, algo=algo, rollouts_per_prompt=4), reward_funcs=sometimes
        )
        assert (other.train_step(1).update.estimate.advantage_BT[::4, 0] == 0).all()


# --- 5: trainer_state and loggers -----------------------------------------------------------------------------------


def test_5_trainer_state_and_loggers(small_model, tmp_path):
    steps = []

    def f(completions, trainer_state, log_extra, log_metric, **kwargs):
        steps.append((trainer_state.global_step, trainer_state.max_steps))
        log_extra("length", [len(c) for c in completions])
        log_metric("longest", max(map(len, completions)))
        return [0.0] * len(completions)

    Trainer(settings(small_model, tmp_path / "run", steps=2), reward_funcs=f).train()
    assert steps == [(1, 2), (2, 2)]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert all(sample["extra"]["length"] == len(sample["response"]) for sample in samples)
    longest = [max(s["extra"]["length"] for s in samples if s["step"] == step) for step in (1, 2)]
    assert [row["custom/longest"] for row in rows(tmp_path / "run")[1:]] == longest


# --- 6: TRL's own ---------------------------------------------------------------------------------------------------


def test_6_trl_s_accuracy_reward_runs_unchanged():
    rewards = pytest.importorskip("trl.rewards")
    completions = ["So the result is \\boxed{\\frac{1}{3}}.", "\\boxed{2}"]
    found = scored(rewards.accuracy_reward, completions, CHAT, solution=["$\\frac{1}{3}$", "$3$"], timeout=60)
    assert found.total == [1.0, 0.0]


def test_6_trl_s_think_format_reward_runs_unchanged():
    rewards = pytest.importorskip("trl.rewards")
    completions = ["<think>\nwell\n</think>\nyes", "no thought"]
    assert scored(rewards.think_format_reward, completions, CHAT).total == [1.0, 0.0]


def test_6_trl_s_overlong_reward_runs_unchanged():
    rewards = pytest.importorskip("trl.rewards")
    found = scored(rewards.get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2), ["x", "yyy"])
    assert found.total == [0.0, -0.5]


# --- 7: verl --------------------------------------------------------------------------------------------------------

VERL_FILE = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "toy/sums"
    return float(ground_truth in solution_str) + 0.5 * extra_info["index"]


def with_extras(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return {"score": float(len(solution_str)), "pred": solution_str, "right": ground_truth == solution_str}


async def judged(data_source, solution_str, ground_truth, extra_info=None):
    if solution_str == "yy":
        raise ValueError("the judge is out")
    return 1
"""
VERL_COLUMNS = {
    "data_source": ["toy/sums"] * 2,
    "reward_model": [{"style": "rule", "ground_truth": "x"}, {"style": "rule", "ground_truth": "z"}],
    "extra_info": [{"split": "train", "index": 0}, {"split": "train", "index": 1}],
}


@pytest.fixture
def verl_file(tmp_path: Path) -> str:
    path = tmp_path / "verl_reward.py"
    path.write_text(VERL_FILE)
    return str(path)


@pytest.mark.parametrize("spec", ["verl:{}", "verl:{}:compute_score", "{}:compute_score"])
def test_7_a_verl_file_returns_a_number(verl_file, spec):
    assert scored(from_spec(spec.format(verl_file)), **VERL_COLUMNS).total == [1.0, 0.5]


def test_7_a_verl_function_returns_a_dict_whose_extras_are_logged(verl_file):
    found = scored(from_spec(f"verl:{verl_file}:with_extras"), **VERL_COLUMNS)
    assert found.total == [1.0, 2.0]
    assert found.extras == {"pred": ["x", "yy"], "right": [True, False]}
    assert found.metrics == {"right": 0.5}


def test_7_a_verl_function_that_raises_costs_its_own_sample_only(verl_file):
    found = scored(from_spec(f"{verl_file}:judged"), **VERL_COLUMNS)
    assert found.total[0] == 1.0
    assert math.isnan(found.total[1])
    assert "1 of 2 samples not scored" in found.problems[0]


def test_7_a_verl_function_gets_constants_and_a_flat_ground_truth():
    def compute_score(solution_str, ground_truth, bonus=0.0):
        return float(solution_str == ground_truth) + bonus

    function = from_verl_reward(compute_score, bonus=0.25)
    assert scored(function, ground_truth=["x", "x"]).total == [1.25, 0.25]


def test_7_a_missing_verl_function_is_one_line(verl_file):
    with pytest.raises(UserError, match="compute_scores"):
        from_spec(f"verl:{verl_file}:compute_scores")


def test_7_a_verl_parquet_row_and_file_through_the_command(verl_file, small_model, tmp_path):
    table = [
        {
            "data_source": "toy/sums", "prompt": [{"role": "user", "content": f"{i}+1="}], "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "1"}, "extra_info": {"split": "train", "index": i},
        }
        for i in range(4)
    ]  # fmt: skip
    Dataset.from_list(table).to_parquet(tmp_path / "rows.parquet")
    model, tokenizer = tiny.fresh(0, **SMALL)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    status = main(
        ["train", "--model", str(tmp_path / "chat"), "--task", f"parquet:{tmp_path / 'rows.parquet'}", "--reward",
         f"verl:{verl_file}", "--steps", "1", "--rollouts-per-step", "8", "--max-new-tokens", "6", "--eval-problems", "0",
         "--samples-every", "1", "--algo", "rloo", "--rollouts-per-prompt", "2", "--out", str(tmp_path / "run")]
    )  # fmt: skip
    assert status == 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        index = int(sample["prompt"][0]["content"][0])
        assert sample["reward"] == float("1" in sample["response"]) + 0.5 * index


# --- 8: functions that hang, raise, or return nonsense --------------------------------------------------------------


def looping(completions, **kwargs):
    while "yy" in completions:
        pass
    return [1.0] * len(completions)


def sleeping(completions, **kwargs):
    if "yy" in completions:
        time.sleep(1e6)
    return [1.0] * len(completions)


def stubborn(completions, **kwargs):
    while "yy" in completions:
        try:
            time.sleep(0.01)
        except Exception:
            continue
    return [1.0] * len(completions)


def backtracking(completions, **kwargs):
    import re

    if "yy" in completions:
        re.match(r"(a+)+b", "a" * 60)
    return [1.0] * len(completions)


async def waiting(completions, **kwargs):
    if "yy" in completions:
        await asyncio.sleep(1e6)
    return [1.0] * len(completions)


async def blocking(completions, **kwargs):
    if "yy" in completions:
        time.sleep(3)
    return [1.0] * len(completions)


@pytest.mark.parametrize("function", [looping, sleeping, stubborn, backtracking, waiting, blocking])
def test_8_a_function_that_hangs_costs_the_samples_on_which_it_hangs(function):
    start = time.perf_counter()
    found = scored(function, timeout=0.4)
    assert found.total[0] == 1.0
    assert math.isnan(found.total[1])
    assert any("took longer than" in line for line in found.problems)
    assert time.perf_counter() - start < 5
    assert scored(function, ["x", "z"], timeout=5).total == [1.0, 1.0]


def test_8_a_function_that_hangs_in_another_thread_is_ended_too():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(scored, looping, timeout=0.3).result(timeout=20)
    assert found.total[0] == 1.0
    assert math.isnan(found.total[1])


def test_8_other_async_functions_keep_their_answers_when_one_hangs():
    async def quick(completions, **kwargs):
        return [5.0] * len(completions)

    found = scored([quick, waiting], timeout=0.3)
    assert found.components["quick"] == [5.0, 5.0]
    assert found.components["waiting"][0] == 1.0
    assert math.isnan(found.total[1])


def test_8_no_interruption_arrives_after_the_call():
    ended = 0
    for _ in range(100):  # the limit falls on the end of the call, now before it and now after it
        try:
            within(0.002, lambda: time.sleep(0.0019))
            ended += 1
        except TooSlow:
            pass
        deadline = time.perf_counter() + 0.002
        while time.perf_counter() < deadline:
            pass  # nothing may be raised here
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_8_a_user_s_own_alarm_still_works_under_a_limit():
    def own_alarm(completions, **kwargs):
        def ring(*_):
            raise TimeoutError("mine")

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            time.sleep(5)
        except TimeoutError:
            return [0.5] * len(completions)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return [0.0] * len(completions)

    assert scored(own_alarm, timeout=3).total == [0.5, 0.5]


def test_8_the_run_goes_on_and_counts_what_could_not_be_scored(small_model, tmp_path, capsys):
    def hostile(completions, trainer_state, **kwargs):
        if trainer_state.global_step == 1:
            time.sleep(60)
        if trainer_state.global_step == 2:
            raise RuntimeError("no verifier today")
        return [math.nan if i % 2 else 1.0 for i in range(len(completions))]

    config = settings(small_model, tmp_path / "run", steps=3, reward_timeout=0.3, algo=Rloo())
    start = {k: v.clone() for k, v in Trainer(config, reward_funcs=hostile).policy.model.state_dict().items()}
    trainer = Trainer(config, reward_funcs=hostile)
    trainer.train()
    assert [row["reward/unscorable"] for row in rows(tmp_path / "run")[1:]] == [1.0, 1.0, 0.5]
    said = capsys.readouterr().err
    assert "took longer than 0.3 s" in said
    assert "no verifier today" in said
    assert all(torch.equal(start[k], v) for k, v in trainer.policy.model.state_dict().items())
