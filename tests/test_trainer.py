"""A run from the outside: files, metrics, the Python interface, reward failures, noise, bad input."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.genac.made import QUICK
from tests.helpers import SMALL
from vantage import Poise, TrainConfig, Trainer, tiny
from vantage.cli import main
from vantage.estimators import REGISTRY, get_algorithm
from vantage.estimators.base import Algorithm, Estimate, Estimator, Queried, Setup
from vantage.rollout.engine import Request
from vantage.settings.configfile import load_yaml_config
from vantage.workload import PromptStream

REQUIRED = {
    "step", "time/step", "time/rollout", "time/reward", "time/forward_backward", "time/value", "time/value_update",
    "time/checkpoint", "tokens/generated", "tokens/value_extra", "tokens/trained", "throughput/tokens_per_second",
    "mem/peak_gb", "reward/mean", "reward/std", "reward/unscorable", "groups/zero_advantage", "completion/length_mean",
    "completion/truncated", "policy/entropy", "policy/clip_fraction", "policy/grad_norm", "policy/ratio_max",
    "loss/policy", "value/mean", "value/mae", "value/pearson", "value/explained_variance", "value/brier_skill",
    "value/variance_reduction",
}  # fmt: skip


def odd(completions, **kwargs):
    return [float(len(c) % 2) for c in completions]


def settings(model: Path, out: Path, **changes) -> TrainConfig:
    base = {
        "model": str(model), "out": str(out), "steps": 3, "rollouts_per_step": 8, "max_new_tokens": 10, "eval_every": 0,
        "eval_problems": 6, "samples_every": 1, "samples_count": 4, "checkpoint_every": 0, "learning_rate": 1e-2,
    }  # fmt: skip
    return TrainConfig(**(base | changes))


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.figures
def test_the_page_of_a_run_has_its_figures(small_model, tmp_path):
    out = tmp_path / "run"
    Trainer(settings(small_model, out), reward_funcs=odd).train()
    drawn = {path.stem for path in (out / "plots").glob("*.png")}
    assert {"learning_curve", "reward", "entropy"} <= drawn
    assert drawn == {path.stem for path in (out / "plots").glob("*.svg")}
    assert (out / "report.html").read_text().count("<svg") == len(drawn)


@pytest.mark.parametrize("algo", list(REGISTRY))
def test_a_run_leaves_everything_that_the_design_names(algo, small_model, tmp_path):
    options = QUICK if algo == "genac" else {}
    config = settings(small_model, tmp_path / "run", algo=get_algorithm(algo)(**options))
    summary = Trainer(config, reward_funcs=odd).train()
    out = tmp_path / "run"
    found = rows(out)
    assert [row["step"] for row in found] == [0, 1, 2, 3]
    assert set(found[0]) >= {"eval/accuracy", "eval/accuracy_low", "eval/accuracy_high"}
    for row in found[1:]:
        assert set(row) >= REQUIRED
    assert "eval/accuracy" in found[-1]
    assert "eval/accuracy" not in found[1]
    assert load_yaml_config(out / "config.yaml").algo.name == algo
    assert "versions:" in (out / "config.yaml").read_text()
    assert (out / "report.html").stat().st_size > 5000
    assert AutoModelForCausalLM.from_pretrained(out / "model").config.num_hidden_layers == 3
    assert AutoTokenizer.from_pretrained(out / "model").decode([17]) == tiny.tokenizer().decode([17])
    assert summary.before.mean == found[0]["eval/accuracy"]
    assert summary.after.mean == found[-1]["eval/accuracy"]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12
    for sample in samples:
        assert sample["outcome"] == len(sample["response"]) % 2
        assert sample["reward"] == sample["outcome"] or algo == "dapo"  # whose pay falls where the budget ends
        difference = sample["reward"] - sample["value"]
        if algo in ("poise", "rloo"):
            assert sample["advantage"] == pytest.approx(difference, abs=1e-6)
        elif algo in ("grpo", "dr_grpo"):  # scaled, and around another mean: the sign is the same
            assert sample["advantage"] * difference >= 0


def test_the_saved_configuration_runs_again_to_the_same_numbers(small_model, tmp_path):
    Trainer(settings(small_model, tmp_path / "a")).train()
    saved = str(tmp_path / "a" / "config.yaml")
    assert main(["train", saved, "--out", str(tmp_path / "b")]) == 0
    assert [r.get("loss/policy") for r in rows(tmp_path / "a")] == [r.get("loss/policy") for r in rows(tmp_path / "b")]
    assert main(["train", saved, "--seed", "1", "--out", str(tmp_path / "c")]) == 0
    assert rows(tmp_path / "a")[1]["completion/length_mean"] != rows(tmp_path / "c")[1]["completion/length_mean"]


def test_every_algorithm_reads_the_same_prompts_in_the_same_order():
    problems = list(range(10))
    stream = PromptStream(problems, seed=3)
    whole = stream.take(0, 25)
    assert sorted(whole[:10]) == sorted(whole[10:20]) == problems
    assert whole[:10] != whole[10:20]
    again = PromptStream(problems, seed=3)
    assert [x for i in range(0, 25, 5) for x in again.take(i, 5)] == whole
    assert PromptStream(problems, seed=4).take(0, 10) != whole[:10]


def test_from_python_with_a_dataset_and_a_trl_reward_function(small_model, tmp_path):
    seen = {}

    def exact(prompts, completions, answer, **kwargs):
        seen.update(prompts=prompts, answer=answer, step=kwargs["trainer_state"].global_step)
        return [float(c == a) for c, a in zip(completions, answer)]

    data = Dataset.from_list([{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(20)])
    config = settings(small_model, tmp_path / "run", algo=Poise(layer=1), steps=2, eval_problems=2)
    Trainer(config, train_data=data, reward_funcs=[exact]).train()
    assert len(rows(tmp_path / "run")) == 3
    assert len(seen["prompts"]) == len(seen["answer"])
    for prompt, answer in zip(seen["prompts"], seen["answer"]):
        assert answer == str(int(prompt.split("+")[0]) + 1)


def test_a_reward_function_that_fails_marks_samples_and_never_kills_the_run(small_model, tmp_path):
    def fragile(completions, **kwargs):
        if any("a" in c for c in completions):
            raise RuntimeError("verifier crashed")
        return [float("nan") if "b" in c else float(len(c) % 2) for c in completions]

    config = settings(small_model, tmp_path / "run", eval_problems=0, steps=2, rollouts_per_step=40)
    trainer = Trainer(config, reward_funcs=[fragile])
    trainer.train()
    last = rows(tmp_path / "run")[-1]
    assert 0 < last["reward/unscorable"] < 1
    assert 0 < last["poise/buffer_rows"] < 80
    step = trainer.train_step(3)
    batch = step.collected.batch
    assert (~batch.scorable_B).any()
    assert step.update.estimate.advantage_BT[~batch.scorable_B].abs().sum() == 0


def test_a_run_whose_rewards_all_fail_ends_well_and_moves_nothing(small_model, tmp_path):
    def broken(completions, **kwargs):
        raise ValueError("no verifier here")

    Trainer(settings(small_model, tmp_path / "run", eval_problems=0), reward_funcs=[broken]).train()
    assert [r["reward/unscorable"] for r in rows(tmp_path / "run")[1:]] == [1.0] * 3
    assert rows(tmp_path / "run")[-1]["reward/mean"] is None
    before = AutoModelForCausalLM.from_pretrained(small_model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("level", ["rollout", "group"])
def test_noise_flips_what_is_learned_from_and_not_what_is_reported(level, small_model, tmp_path):
    config = settings(
        small_model, tmp_path / "run", rollouts_per_step=400, rollouts_per_prompt=4, reward_noise=0.25,
        reward_noise_level=level, algo=Poise(), eval_problems=0,
    )  # fmt: skip
    trainer = Trainer(config, reward_funcs=odd)
    collected = trainer.collector(1, trainer.stream, 0)
    clean = torch.tensor([float(len(t) % 2) for t in collected.texts])
    flipped = (collected.batch.outcome_B != clean).reshape(100, 4)
    assert flipped.double().mean().item() == pytest.approx(0.25, abs=0.1)
    assert collected.metrics["reward/mean"] == pytest.approx(clean.mean().item())
    same = (flipped == flipped[:, :1]).all(1)
    assert bool(same.all()) == (level == "group")
    again = trainer.collector(1, trainer.stream, 0)
    assert torch.equal(again.batch.outcome_B, collected.batch.outcome_B)


def test_rollouts_that_are_no_whole_groups_are_rounded_down_and_said(small_model, tmp_path, capsys):
    config = settings(small_model, tmp_path / "run", rollouts_per_step=7, steps=1, eval_problems=0)
    Trainer(config, reward_funcs=odd).train()
    assert "7 rollouts are not whole groups of 2: 6 are used" in capsys.readouterr().err


def test_an_algorithm_from_outside_of_the_tree(small_model, tmp_path):
    source = tmp_path / "half.py"
    source.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from vantage.estimators.base import Algorithm, Estimate, Estimator\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Half(Algorithm):\n"
        '    name: ClassVar[str] = "half"\n'
        "    level: float = 0.5\n"
        '    """The baseline."""\n\n'
        "    def build(self, setup):\n"
        "        return HalfEstimator(self.level)\n\n\n"
        "class HalfEstimator(Estimator):\n"
        "    def __init__(self, level):\n"
        "        self.level = level\n\n"
        "    def advantages(self, batch, reads):\n"
        "        mask_BT = batch.response_mask_BT\n"
        "        return Estimate((batch.reward_B - self.level)[:, None] * mask_BT, self.level * mask_BT.double())\n"
    )
    argv = ["train", "--algo", f"{source}:Half", "--half.level", "0.25", "--model", str(small_model), "--steps", "1"]
    argv += [
        "--rollouts-per-step",
        "4",
        "--max-new-tokens",
        "5",
        "--eval-problems",
        "0",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(argv) == 0
    assert rows(tmp_path / "run")[-1]["value/mean"] == pytest.approx(0.25)


BAD = {
    "a folder that is no model": (["--model", "{tmp}/empty"], "--model"),
    "a model that is not there": (["--model", "{tmp}/nowhere"], "--model"),
    "a file as model": (["--model", "{tmp}/file.jsonl"], "--model"),
    "a layer that the model has not": (["--poise.layer", "9"], "--poise.layer is 9"),
    "a dataset that is not there": (["--task", "jsonl:{tmp}/none.jsonl"], "none.jsonl"),
    "an unreadable dataset": (["--task", "jsonl:{tmp}/broken.jsonl"], "line 2"),
    "an empty dataset": (["--task", "jsonl:{tmp}/empty.jsonl"], "empty"),
    "a dataset without prompts": (["--task", "jsonl:{tmp}/file.jsonl", "--prompt-column", "promt"], "'promt'"),
    "a dataset without reward": (["--task", "jsonl:{tmp}/file.jsonl"], "--reward"),
    "a reward file without the function": (["--reward", "{tmp}/rewards.py:nope"], "nope"),
    "a column that the reward needs": (["--reward", "{tmp}/rewards.py:needs"], "'gold'"),
    "a folder that holds something": (["--out", "{tmp}"], "--out"),
    "no such algorithm": (["--algo", "poize"], "did you mean 'poise'"),
    "a checkpoint that is none": (["--resume", "{tmp}/empty"], "not a finished checkpoint"),
    "a cuda device that is not there": (["--device", "cuda"], "--device is cuda"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_answered_in_one_line_and_nothing_is_written(name, small_model, tmp_path, capsys, monkeypatch):
    if name.startswith("a cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    flags, expected = BAD[name]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": \n')
    (tmp_path / "file.jsonl").write_text("".join(f'{{"prompt": "{i}+1=", "answer": "2"}}\n' for i in range(20)))
    (tmp_path / "rewards.py").write_text(
        "def needs(completions, gold, **kwargs):\n    return [0.0] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts)
    argv = ["train", "--model", str(small_model), "--steps", "1", *(f.format(tmp=tmp_path) for f in flags)]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("vantage: error: ")
    assert expected in error
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts) == before


@dataclass(frozen=True)
class Asks(Algorithm):
    name: ClassVar[str] = "asks"

    def build(self, setup):
        return AsksEstimator(setup.working())


class AsksEstimator(Estimator):
    """Continues the first half of every response once and takes the reward of what comes as the value."""

    def __init__(self, services):
        self.services, self.seen = services, []

    def query(self, collected):
        batch, services = collected.batch, self.services
        halves = [tuple(ids[: len(ids) // 2]) for ids in batch.response_ids]
        asked = [Request(p, (i,), h) for i, (p, h) in enumerate(zip(batch.prompt_ids, halves))]
        found = [r[0].response_ids for r in services.engine.generate(asked, services.sampling)]
        lengths = torch.tensor([float(len(ids)) for ids in found])
        half_BT = torch.zeros(batch.response_mask_BT.shape)
        for i, h in enumerate(halves):
            half_BT[i, : len(h)] = i + 1.0
        return Queried({"length": lengths, "half_MT": half_BT}, {"tokens/value_extra": float(lengths.sum())})

    def advantages(self, batch, reads):
        mask_BT = batch.response_mask_BT
        assert batch.queried["half_MT"].shape == mask_BT.shape
        value_BT = batch.queried["length"][:, None] * mask_BT
        return Estimate(batch.queried["half_MT"], value_BT)

    def learn(self, batch, reads, estimate):
        self.seen.append((batch.queried["length"], estimate.value_BT[:, 0]))
        return {}

    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "asked").write_text(str(len(self.seen)))


@pytest.mark.parametrize("budget", [30, 4096])
def test_what_an_estimator_asks_reaches_its_other_hooks_and_its_tokens_are_paid(budget, small_model, tmp_path):
    config = settings(small_model, tmp_path / "run", algo=Asks(), tokens_per_microbatch=budget, minibatches=2)
    trainer = Trainer(config, reward_funcs=odd)
    trainer.train()
    assert all(torch.equal(lengths, values) for lengths, values in trainer.estimator.seen)
    assert len(trainer.estimator.seen) == 3
    found = rows(tmp_path / "run")[1:]
    assert [row["tokens/value_extra"] for row in found] == [float(n.sum()) for n, _ in trainer.estimator.seen]
    spent = [row["tokens/generated"] + row["tokens/value_extra"] for row in found]
    assert found[-1]["tokens/total"] == sum(spent) > sum(row["tokens/generated"] for row in found)
    assert (tmp_path / "run" / "critic" / "asked").read_text() == "3"


def test_an_estimator_that_generates_says_that_it_needs_a_trainer():
    with pytest.raises(ValueError, match="built by a Trainer"):
        Setup(num_layers=2, hidden_size=4, rollouts_per_prompt=1, reward_range=(0.0, 1.0)).working()


def test_the_default_layer_is_the_papers_relative_depth():
    from vantage.estimators.base import Setup

    assert Poise().build(Setup(36, 64, 2, (0.0, 1.0))).layer == 20
    assert Poise().build(Setup(4, 64, 2, (0.0, 1.0))).layer == 2
    assert Poise().build(Setup(SMALL["num_hidden_layers"], 64, 2, (0.0, 1.0))).layer == 2
