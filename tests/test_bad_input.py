"""A table of mistakes: each is answered with one line that names it, status 2, no traceback, and nothing is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.helpers import SMALL
from vantage import checkpoint, tiny
from vantage.cli import main
from vantage.montecarlo.cache import tokenizer_digest

NO_EVAL = ["--eval-problems", "0"]
QUICK = [
    "--steps", "2", "--rollouts-per-step", "4", "--max-new-tokens", "6", "--eval-problems", "4", "--algo", "rloo",
    "--rollouts-per-prompt", "2", "--checkpoint-every", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def ground(small_model, tmp_path_factory) -> Path:
    """Models, data, rewards, configurations and checkpoints, whole and broken."""
    root = tmp_path_factory.mktemp("ground")
    shutil.copytree(small_model, root / "model")
    texts = {
        "reward.py": "def right(completions, **kwargs):\n    return [float('1' in c) for c in completions]\n\n\nnumber = 3\n",
        "broken.py": "def right(completions, **kwargs)\n    return 1\n",
        "importing.py": "import there_is_no_such_module\n",
        "gold.py": "def right(completions, gold, **kwargs):\n    return [0.0] * len(completions)\n",
        "task.py": "class NoTask:\n    pass\n",
        "ok.jsonl": '{"prompt": "1+1=", "answer": "2"}\n' * 20,
        "uneven.jsonl": '{"prompt": "1+1=", "answer": "2"}\n{"question": "1+2="}\n',
        "types.jsonl": '{"prompt": "1+1=", "answer": "2"}\n{"prompt": 5, "answer": "2"}\n',
        "torn.jsonl": '{"prompt": "1+1="}\n{"prompt": "1+\n{"prompt": "1+1="}\n',
        "empty.jsonl": "",
        "list.jsonl": "[1, 2]\n",
        "noprompt.jsonl": '{"text": "1+1="}\n' * 20,
        "chat.jsonl": '{"prompt": [{"role": "user", "content": "hi"}], "answer": "2"}\n' * 20,
        "blank.jsonl": '{"prompt": "", "answer": "2"}\n' * 20,
        "long.jsonl": json.dumps({"prompt": "1" * 2000, "answer": "2"}) + "\n",
        "list.yaml": "- steps: 3\n- seed: 1\n",
        "unknown.yaml": "steps: 3\nlerning_rate: 0.1\n",
        "type.yaml": "steps: many\n",
        "torn.yaml": "steps: [3\n",
        "option.yaml": "algo: grpo\ngrpo:\n  scael: none\n",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    (root / "binary.yaml").write_bytes(bytes(range(256)))
    (root / "binary.jsonl").write_bytes(bytes(range(128, 256)) * 4)
    (root / "nomodel").mkdir()
    (root / "nomodel" / "notes.txt").write_text("nothing")
    shutil.copytree(small_model, root / "torn-model")
    (root / "torn-model" / "model.safetensors").write_bytes(b"not tensors")
    shutil.copytree(small_model, root / "no-config")
    (root / "no-config" / "config.json").write_text("{")
    other, tokenizer = tiny.fresh(0, **{**SMALL, "vocab_size": 120})
    other.save_pretrained(root / "other-vocabulary")
    tokenizer.save_pretrained(root / "other-vocabulary")
    tokenizer.add_tokens(["<another>"])
    shutil.copytree(root / "model", root / "other-tokenizer")
    tokenizer.save_pretrained(root / "other-tokenizer")
    tied = {"tokenizer": tokenizer_digest(tiny.tokenizer())[:16], "verifier version": "another", "prompt template": "0"}
    card = {"kind": "model", "width": 32, "reward_range": [0, 1], "probability": False, "tied": tied, "format": 1}
    (root / "critic").mkdir()
    (root / "critic" / "critic.json").write_text(json.dumps(card))
    assert main(["train", "--model", str(root / "model"), *QUICK, "--out", str(root / "run"), "--task", "sums"]) == 0
    for kind in (
        "torn-json",
        "torn-tensors",
        "no-optimizer",
        "no-estimator",
        "tokenizer",
        "template",
        "verifier",
        "shape",
    ):
        copy = root / "checkpoints" / kind
        shutil.copytree(root / "run" / "checkpoints" / "step-000002", copy)
        break_checkpoint(copy, kind)
    return root


def break_checkpoint(folder: Path, kind: str) -> None:
    trainer = json.loads((folder / "trainer.json").read_text())
    fingerprint = {"tokenizer": "tokenizer", "template": "prompt_template", "verifier": "verifier_version"}
    if kind in fingerprint:
        trainer["fingerprint"][fingerprint[kind]] = "another"
        (folder / "trainer.json").write_text(json.dumps(trainer))
    elif kind == "torn-json":
        (folder / "trainer.json").write_text('{"step": ')
    elif kind == "torn-tensors":
        (folder / "optimizer.safetensors").write_bytes(b"\x00" * 40)
    elif kind == "shape":
        model, _ = tiny.fresh(0, **{**SMALL, "hidden_size": 16})
        model.save_pretrained(folder / "model")
    else:
        (folder / f"{kind.removeprefix('no-')}.safetensors").unlink()


T = ["train", "--model", "{g}/model", *QUICK]
TOKEN = ["--algo", "poise_token"]
P = ["train", "--model", "{g}/model", *QUICK[:8], "--algo", "ppo"]
DATA = [*T, "--reward", "{g}/reward.py:right", "--task"]
RESUMED = [*T, "--out", "branch", "--resume"]
CASES: dict[str, tuple[list[str], str]] = {
    # flags
    "misspelt command": (["trian"], "did you mean 'train'?"),
    "misspelt flag": ([*T, "--stpes", "5"], "did you mean '--steps'?"),
    "flag of another algorithm": ([*T, "--poise.layer", "2"], "--poise.layer"),
    "λ beyond one": ([*T, *TOKEN, "--poise_token.gae-lambda", "1.5"], "--poise_token.gae-lambda is 1.5"),
    "λ of returns below zero": ([*T, *TOKEN, "--poise_token.td-lambda", "-0.1"], "--poise_token.td-lambda is -0.1"),
    "layer that the policy has not": ([*T, *TOKEN, "--poise_token.layers", "1", "99"], "--poise_token.layers has 99"),
    "a layer twice": ([*T, *TOKEN, "--poise_token.layers", "1", "1"], "--poise_token.layers is 1 1"),
    "no positions to fit on": ([*T, *TOKEN, "--poise_token.positions", "0"], "--poise_token.positions is 0"),
    "memory of less than a step": ([*T, *TOKEN, "--poise_token.memory", "0.5"], "--poise_token.memory is 0.5"),
    "token probe's penalty zero": ([*T, *TOKEN, "--poise_token.alpha", "0"], "--poise_token.alpha is 0"),
    "token probe's bootstrap below zero": ([*T, *TOKEN, "--poise_token.bootstrap", "-1"], "--poise_token.bootstrap is -1"),
    "value that is no number": ([*T, "--seed", "one"], "--seed"),
    "flag without a value": ([*T, "--seed"], "--seed"),
    "unknown algorithm": (["train", "--algo", "gropo"], "did you mean 'grpo'?"),
    "adapters of negative rank": ([*T, "--lora.rank", "-1"], "--lora.rank is -1"),
    "scale of adapters that are not there": ([*T, "--lora.alpha", "8"], "give --lora.rank"),
    "adapters on modules that are not there": ([*T, "--lora.rank", "2", "--lora.targets", "q_prj"], "--lora.targets q_prj"),
    "misspelt option of adapters": ([*T, "--lora.rnk", "2"], "did you mean '--lora.rank'?"),
    "unknown precision": ([*T, "--precision", "fp8"], "--precision"),
    "attention that is not there": ([*T, "--attention", "no_such"], "no_such"),
    "thinking where there is no template": ([*T, "--enable-thinking", "true"], "no chat template comes with"),
    "benchmark to train on": ([*T, "--task", "math500"], "this benchmark is for evaluation only; train on gsm8k, math,"),
    "unknown device": ([*T, "--device", "tpu"], "--device"),
    "device that is not there": ([*T, "--device", "cuda"], "torch sees no CUDA device"),
    "learning rate that is not a number": ([*T, "--learning-rate", "nan"], "--learning-rate is nan"),
    "infinite learning rate": ([*T, "--learning-rate", "inf"], "--learning-rate is inf"),
    "negative learning rate": ([*T, "--learning-rate", "-1"], "--learning-rate is -1"),
    "no steps": ([*T, "--steps", "0"], "--steps is 0"),
    "temperature zero": ([*T, "--temperature", "0"], "--temperature is 0"),
    "top-p beyond one": ([*T, "--top-p", "1.5"], "--top-p is 1.5"),
    "one rollout for a group": ([*T, "--rollouts-per-prompt", "1"], "--rollouts-per-prompt is 1"),
    "less than a group": ([*T, "--rollouts-per-step", "1"], "--rollouts-per-step is 1"),
    "more mini-batches than prompts": ([*T, "--minibatches", "9"], "--minibatches is 9"),
    "reward range upside down": ([*T, "--reward-range", "1", "0"], "--reward-range"),
    "weights that do not fit": ([*T, "--reward", "{g}/reward.py:right", "--reward-weights", "1", "2"], "--reward-weights"),
    "reference without a coefficient": ([*T, "--reference", "tiny"], "--kl-coef"),
    "reference of another vocabulary": ([*T, "--kl-coef", "1", "--reference", "{g}/other-vocabulary"], "--reference"),
    "refreshed reference without a reference": ([*T, "--reference-refresh", "3"], "--reference-refresh"),
    "reference refreshed backwards": ([*T, "--kl-coef", "1", "--reference-refresh", "-1"], "--reference-refresh is -1"),
    "VIMPO with one rollout": (["train", "--algo", "vimpo", "--rollouts-per-prompt", "1"], "--rollouts-per-prompt is 1"),
    "VIMPO with a discount": (["train", "--algo", "vimpo", "--vimpo.gamma", "0.99"], "--vimpo.gamma is 0.99"),
    "VIMPO with k1": (["train", "--algo", "vimpo", "--vimpo.kl", "k1"], "--vimpo.kl k1"),
    "VIMPO with a second KL": (["train", "--algo", "vimpo", "--kl-coef", "0.1"], "--kl-coef is 0.1"),
    "VIMPO without temperature": (["train", "--algo", "vimpo", "--vimpo.beta", "0"], "--vimpo.beta is 0"),
    "VIMPO with lambda beyond one": (["train", "--algo", "vimpo", "--vimpo.gae-lambda", "1.5"], "--vimpo.gae-lambda is 1.5"),
    "soft VIMPO with an actor": (
        ["train", "--algo", "vimpo", "--vimpo.value-type", "soft", "--vimpo.actor-coef", "0.1"], "--vimpo.actor-coef",
    ),
    "overlong buffer beyond the budget": ([*T, "--overlong-buffer", "6"], "--overlong-buffer is 6"),
    "filter without groups": (["train", "--algo", "reinforce", "--group-filter", "equal"], "--group-filter equal needs groups"),
    "budget of nothing": ([*T, "--budget-tokens", "0"], "--budget-tokens is 0"),
    "fused where it can not be": ([*T, "--forward", "fused", "--epochs", "2"], "--forward fused"),
    "no continuations": (["train", "--algo", "vineppo", "--vineppo.continuations", "0"], "--vineppo.continuations is 0"),
    "negative cap": (["train", "--algo", "vineppo", "--vineppo.cap", "-1"], "--vineppo.cap is -1"),
    "unknown splitting": (["train", "--algo", "vineppo", "--vineppo.kind", "newlines"], "--vineppo.kind"),
    "steps without a separator": (["train", "--algo", "vineppo", "--vineppo.separator", ""], "--vineppo.separator"),
    "steps of no tokens": (["train", "--algo", "vineppo", "--vineppo.tokens", "0"], "--vineppo.tokens"),
    "values of flipped and clean rewards": (
        ["train", "--algo", "vineppo", "--vineppo.reuse", "--reward-noise", "0.2"], "--reward-noise is 0.2",
    ),
    "smallest step above the largest": (
        [*T, "--algo", "vineppo", "--vineppo.min-segment-tokens", "600"], "--vineppo.max-segment-tokens: 512",
    ),
    "misspelt tracker": ([*T, "--report-to", "tensorbord"], "did you mean 'tensorboard'?"),
    "tracker class that is not there": ([*T, "--report-to", "{g}/task.py:Nothing"], "Nothing"),
    "tracker that is none": ([*T, "--report-to", "{g}/task.py:NoTask"], "is not a subclass of"),
    # a critic
    "lambda beyond one": ([*P, "--ppo.lam-actor", "1.5"], "--ppo.lam-actor is 1.5, it must be in [0, 1]"),
    "two lambdas of the policy": ([*P, "--ppo.lam-actor", "0.9", "--ppo.length-adaptive-alpha", "0.05"], "give one of them"),
    "unknown value loss": ([*P, "--ppo.loss", "huber"], "--ppo.loss"),
    "pretraining without end": ([*P, "--ppo.value-warmup-steps", "2"], "of --steps 2 none is left"),
    "critic that is not there": ([*P, "--ppo.critic", "./nowhere"], "--ppo.critic ./nowhere: there is no such folder"),
    "critic in a folder without a model": ([*P, "--ppo.critic", "{g}/nomodel"], "--ppo.critic"),
    "critic with torn weights": ([*P, "--ppo.critic", "{g}/torn-model"], "--ppo.critic"),
    "critic of another tokenizer": ([*P, "--ppo.critic", "{g}/other-tokenizer"], "its tokenizer is not the policy's"),
    "critic of another verifier": ([*P, "--ppo.critic", "{g}/critic"], "another verifier version"),
    "critic's layer that the policy has not": ([*P, "--ppo.critic", "head", "--ppo.head-layer", "9"], "--ppo.head-layer is 9"),
    "layer without a head": ([*P, "--ppo.head-layer", "1"], "--ppo.head-layer is for --ppo.critic head"),
    # models
    "model that is neither here nor on a Hub in reach": (
        ["train", "--model", "no/such"], "not in the cache, and the Hub can not be reached; give a folder",
    ),
    "misspelt folder of a model": (["train", "--model", "{g}/modle"], "did you mean"),
    "model that is not there": (["train", "--model", "./nowhere"], "there is no such folder"),
    "misspelt tiny": (["train", "--model", "tniy"], "did you mean 'tiny'?"),
    "unknown embedded world": (["train", "--model", "tiny:program"], "did you mean 'programs'?"),
    "folder without a model": (["train", "--model", "{g}/nomodel"], "holds no model"),
    "torn weights": (["train", "--model", "{g}/torn-model"], "can not be loaded"),
    "torn model configuration": (["train", "--model", "{g}/no-config"], "can not be loaded"),
    # tasks and data
    "unknown task": ([*T, "--task", "sms"], "did you mean 'sums'?"),
    "unknown split": ([*T, "--task", "programs:larget"], "did you mean 'larger'?"),
    "file that is not there": ([*DATA, "jsonl:{g}/none.jsonl"], "none.jsonl"),
    "empty file": ([*DATA, "{g}/empty.jsonl"], "empty.jsonl"),
    "rows of different shape": ([*DATA, "{g}/uneven.jsonl"], "uneven.jsonl"),
    "prompt that is a number": ([*DATA, "{g}/types.jsonl"], "types.jsonl"),
    "torn line": ([*DATA, "{g}/torn.jsonl"], "torn.jsonl"),
    "rows that are lists": ([*DATA, "{g}/list.jsonl"], "list.jsonl"),
    "not text": ([*DATA, "{g}/binary.jsonl"], "binary.jsonl"),
    "no prompt column": ([*DATA, "{g}/noprompt.jsonl"], "--prompt-column"),
    "conversations without a template": ([*DATA, "{g}/chat.jsonl"], "has no chat template"),
    "blank prompts": ([*DATA, "{g}/blank.jsonl"], "prompt"),
    "prompts longer than the context": ([*DATA, "{g}/long.jsonl", "--eval-problems", "0"], "has only 1024 positions"),
    "response longer than the context": ([*T, "--max-new-tokens", "5000"], "--max-new-tokens is 5000"),
    "parquet that is none": ([*DATA, "parquet:{g}/ok.jsonl"], "ok.jsonl"),
    "template without a place for the prompt": ([*DATA, "{g}/ok.jsonl", "--prompt-template", "Solve."], "{prompt}"),
    "answer column that is not there": ([*DATA, "{g}/ok.jsonl", "--answer-column", "gold.key"], "--answer-column"),
    "columns of a task that has none": ([*T, "--answer-column", "gold"], "--answer-column"),
    "template of a task with prompts of its own": ([*T, "--prompt-template", "{prompt}"], "writes its own prompts"),
    "misspelt task of an evaluation": ([*T, "--eval-task", "programs,sms"], "did you mean 'sums'?"),
    "the same task of an evaluation twice": ([*T, "--eval-task", "sums,sums"], "names 'sums' twice"),
    "task for evaluation only": ([*T, "--task", "math500"], "math500"),
    "misspelt dataset": ([*T, "--task", "gsm8"], "did you mean 'gsm8k'?"),
    "misspelt verifier": ([*DATA[:-3], "--reward", "instruction", "--task", "{g}/ok.jsonl"], "did you mean 'instructions'?"),
    "task file without a task": ([*T, "--task", "{g}/task.py:NoTask"], "is not a subclass of"),
    "task class that is not there": ([*T, "--task", "{g}/task.py:Nothing"], "Nothing"),
    # rewards
    "no reward for data": ([*T, "--task", "{g}/ok.jsonl"], "--reward"),
    "reward file that is not there": ([*T, "--reward", "{g}/none.py:right"], "none.py"),
    "reward file that does not parse": ([*T, "--reward", "{g}/broken.py:right"], "broken.py"),
    "reward file that does not import": ([*T, "--reward", "{g}/importing.py:right"], "there_is_no_such_module"),
    "reward function that is not there": ([*T, "--reward", "{g}/reward.py:rigth"], "did you mean 'right'?"),
    "reward that is no function": ([*T, "--reward", "{g}/reward.py:number"], "it must be a function"),
    "verifier that is not there": ([*T, "--reward", "maths"], "did you mean 'math'?"),
    "reward without a function name": ([*T, "--reward", "{g}/reward.py"], "FILE.py:FUNCTION"),
    "reward that needs a column": ([*T, "--reward", "{g}/gold.py:right"], "needs the column 'gold'"),
    "verl file without its function": ([*T, "--reward", "verl:{g}/reward.py"], "compute_score"),
    # configuration files
    "configuration that is not there": (["train", "{g}/none.yaml"], "none.yaml"),
    "YAML that is a list": (["train", "{g}/list.yaml"], "list.yaml"),
    "YAML that is not text": (["train", "{g}/binary.yaml"], "binary.yaml"),
    "YAML that is torn": (["train", "{g}/torn.yaml"], "torn.yaml"),
    "YAML with an unknown key": (["train", "{g}/unknown.yaml"], "did you mean 'learning_rate'?"),
    "YAML with a wrong type": (["train", "{g}/type.yaml"], "steps"),
    "YAML with an unknown option": (["train", "{g}/option.yaml"], "did you mean 'scale'?"),
    # run directories and checkpoints
    "out that holds a run": ([*T, "--out", "{g}/run"], "--resume auto"),
    "out that is a file": ([*T, "--out", "{g}/ok.jsonl"], "this is a file"),
    "out below a file": ([*T, "--out", "{g}/ok.jsonl/run"], "--out"),
    "out that can not be made": ([*T, "--out", "/proc/vantage/run"], "--out /proc/vantage/run"),
    "out that holds other files": ([*T, "--out", "{g}/nomodel"], "other files"),
    "resume with another setting": ([*T, "--out", "{g}/run", "--resume", "auto", "--seed", "9"], "--seed is 9"),
    "resume from nowhere": ([*RESUMED, "{g}/nowhere"], "not a finished checkpoint"),
    "resume from a folder that is no checkpoint": ([*RESUMED, "{g}/run"], "not a finished checkpoint"),
    "checkpoint with torn values": ([*RESUMED, "{g}/checkpoints/torn-json"], "damaged"),
    "checkpoint with torn tensors": ([*RESUMED, "{g}/checkpoints/torn-tensors"], "damaged"),
    "checkpoint without its optimizer": ([*RESUMED, "{g}/checkpoints/no-optimizer"], "the optimizer is missing"),
    "checkpoint without its estimator": ([*RESUMED, "{g}/checkpoints/no-estimator"], "the estimator's state is missing"),
    "checkpoint of another tokenizer": ([*RESUMED, "{g}/checkpoints/tokenizer"], "made with another tokenizer"),
    "checkpoint of another template": ([*RESUMED, "{g}/checkpoints/template"], "made with another prompt template"),
    "checkpoint of another verifier": ([*RESUMED, "{g}/checkpoints/verifier"], "made with another verifier version"),
    "checkpoint of another shape": ([*RESUMED, "{g}/checkpoints/shape"], "do not fit this model"),
    "checkpoint of another algorithm": (
        [*RESUMED, "{g}/run/checkpoints/step-000002", "--algo", "grpo"], "made with another algorithm",
    ),
    # GenAC and its critic
    "critic of no stage": (["critic", "pretain", "--out", "x"], "did you mean 'pretrain'"),
    "critic without an out": (["critic", "sft"], "--out is missing"),
    "critic of another algorithm": (["critic", "sft", "--algo", "grpo", "--out", "x"], "for genac alone"),
    "critic in a folder that is taken": (["critic", "sft", "--out", "{g}/model"], "not an empty folder"),
    "scores of no critic": (["critic", "score", "{g}/nowhere"], "--genac.critic"),
    "scores against one continuation": (["critic", "score", "{g}/model", "--continuations", "1"], "--continuations is 1"),
    "generative critic that is not there": (
        ["train", "--algo", "genac", "--model", "{g}/model", *NO_EVAL, "--genac.critic", "./nowhere"], "--genac.critic",
    ),
    "template without a prefix": (
        ["train", "--algo", "genac", "--model", "{g}/model", *NO_EVAL, "--genac.template", "{g}/gold.py"], "{problem}",
    ),
    "panel of most prompts": (["train", "--algo", "genac", "--genac.panel-share", "0.7"], "--genac.panel-share"),
    "critic with a negative budget": (["train", "--algo", "genac", "--genac.train-states", "-3"], "--genac.train-states"),
    "segments of nothing": (["train", "--algo", "genac", "--genac.segment-tokens", "0"], "--genac.segment-tokens"),
    # other commands
    "evaluation of nothing": (["eval", "./nowhere"], "there is no such folder"),
    "evaluation by an unknown preset": (["eval", "{g}/model", "--preset", "pois"], "--preset"),
    "more of pass@k than responses": (["eval", "{g}/model", "--k", "4", "--pass-k", "8"], "--pass-k is 8"),
    "memory of a model that is not there": (["doctor", "--model", "./nowhere"], "there is no such folder"),
    "memory under an unknown algorithm": (["doctor", "--model", "{g}/model", "--algo", "gropo"], "did you mean 'grpo'?"),
    "report of no run": (["report", "{g}/model"], "is no run"),
    "supervised start without an out": (["sft", "--task", "sums"], "--out"),
    "supervised start on data without solutions": (
        ["sft", "--task", "{g}/ok.jsonl", "--out", "sft", "--eval-problems", "0", "--examples", "4"], "no solutions",
    ),
    "comparison of nothing": (["compare", "--algos", ""], "--algos"),
    "comparison under two budgets": (["compare", "--algos", "grpo", "--steps", "3", "--budget-tokens", "9"], "--budget-tokens"),
}  # fmt: skip


def tree(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts
    }


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_nothing_is_written(case, ground, tmp_path, monkeypatch, capsys):
    arguments, expected = CASES[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = tree(ground)
    status = main([a.replace("{g}", str(ground)) for a in arguments])
    complaint = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vantage: ")]
    assert status == 2
    assert len(complaint) == 1
    assert complaint[0].startswith("vantage: error: ")
    assert expected in complaint[0]
    assert len(complaint[0]) < 500
    assert tree(ground) == before
    assert list(tmp_path.iterdir()) == []


def test_there_are_cases_enough():
    assert len(CASES) >= 80


# --- while a run is under way ---------------------------------------------------------------------------------------


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "optimizer.safetensors")


def test_a_full_disk_while_checkpointing_keeps_the_checkpoint_before(ground, tmp_path, monkeypatch, capsys):
    save, calls = checkpoint.save_state, []

    def sometimes(stem, state, *world):
        calls.append(stem)
        (full_disk if len(calls) == 5 else save)(stem, state, *world)  # in the middle of the second checkpoint

    monkeypatch.setattr(checkpoint, "save_state", sometimes)
    out = tmp_path / "run"
    arguments = ["train", "--model", str(ground / "model"), *QUICK, "--steps", "3", "--out", str(out)]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith("vantage: error: ")
    assert "No space left on device" in last
    assert "step-000001" in last
    assert "--resume auto" in last
    assert "Traceback" not in said
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-000001"]
    monkeypatch.setattr(checkpoint, "save_state", save)
    assert main([*arguments, "--resume", "auto"]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]


def test_a_full_disk_while_writing_metrics_ends_in_one_line(ground, tmp_path, monkeypatch, capsys):
    append = Path.open

    def opened(self, mode="r", *rest, **options):
        return full_disk() if self.name == "metrics.jsonl" and mode == "a" else append(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", opened)
    assert main(["train", "--model", str(ground / "model"), *QUICK, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said.strip().splitlines()[-1]
    assert "Traceback" not in said


def test_a_signal_while_a_full_disk_is_reported_changes_nothing_about_the_handlers():
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
