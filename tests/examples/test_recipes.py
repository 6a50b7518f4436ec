"""Every line of `examples/` is run, on small stand-ins for its model and its data."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml

from tests.chat import questions, read_jsonl, write_jsonl
from vantage.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B")
SMALLER = {
    "train": {
        "--device": "cpu", "--steps": "1", "--max-new-tokens": "12", "--eval-problems": "2", "--prompts-per-step": "4",
        "--minibatches": "1", "--generation-batch": "64",
    },
    "eval": {"--device": "cpu", "--problems": "2", "--k": "2", "--max-new-tokens": "12"},
    "tasks": {}, "report": {},
}  # fmt: skip
"""Flags that are given besides, or instead, so that a command takes a second."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the examples, where they are run; their datasets as small files of the same columns."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("VANTAGE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    rows = questions(20)
    data = tmp_path / "data"
    for split in ("train", "test"):
        write_jsonl(data / "gsm8k" / f"{split}.jsonl", [{"question": q, "answer": f"So.\n#### {a}"} for q, a in rows])
    write_jsonl(data / "math500" / "test.jsonl", [{"problem": q, "answer": a} for q, a in rows])
    write_jsonl(data / "dapo-math" / "train.jsonl", [{"prompt": q, "solution": a} for q, a in rows])
    for name, split in (("aime24", "train"), ("aime25", "test"), ("aime26", "train")):
        write_jsonl(data / name / f"{split}.jsonl", [{"problem": q, "answer": a} for q, a in rows])
    verl = [
        {"data_source": "openai/gsm8k", "prompt": [{"role": "user", "content": q}], "ability": "math",
         "reward_model": {"style": "rule", "ground_truth": a}, "extra_info": {"split": "train", "index": i}}
        for i, (q, a) in enumerate(rows)
    ]  # fmt: skip
    for split in ("train", "test"):
        (data / "verl").mkdir(exist_ok=True)
        datasets.Dataset.from_list(verl).to_parquet(data / "verl" / f"{split}.parquet")
    monkeypatch.setenv("DATA", str(data / "verl"))
    return copy


def commands_of(script: Path, tmp_path: Path) -> list[list[str]]:
    """What a shell script calls, in order: the shell runs all of it, `vantage` and `accelerate` note their arguments."""
    shims, record = tmp_path / "shims", tmp_path / "record"
    shims.mkdir(exist_ok=True)
    for name in ("vantage", "accelerate"):
        note = f"open({str(record)!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')"
        body = f"#!{sys.executable}\nimport json, sys\n{note}\n"
        (shims / name).write_text(body)
        (shims / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", str(script)], check=True, env=environment, cwd=tmp_path)
    return [json.loads(line) for line in record.read_text().splitlines()]


def run(command: list[str], model: Path, **more: str) -> None:
    """A command of a script in this process, on the stand-in model and with smaller numbers."""
    program, *words = command
    if program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        arguments = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
        assert arguments.module
        assert arguments.training_script == "vantage"
        words = arguments.training_script_args
    words = [str(model) if word in MODELS else word for word in words]
    for flag, value in {**SMALLER[words[0]], **more}.items():
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    if words[0] == "train" and "--model" not in words:
        words += ["--model", str(model)]
    assert main(words) == 0, words


def test_gsm8k_on_one_gpu(folder: Path, chat_model: Path, tmp_path: Path) -> None:
    commands = commands_of(folder / "gsm8k.sh", tmp_path)
    assert [command[1] for command in commands] == ["tasks", "train", "eval", "report"]
    for command in commands:
        run(command, chat_model)
    config = yaml.safe_load((folder / "runs/gsm8k/config.yaml").read_text())
    assert (config["task"], config["enable_thinking"], config["gradient_checkpointing"]) == ("gsm8k", False, True)
    result = json.loads((folder / "runs/gsm8k-eval/evaluation.json").read_text())
    assert [b["task"] for b in result["benchmarks"]] == ["gsm8k", "math500"]
    assert result["against"]["difference"]["macro"] is not None
    assert (folder / "runs/gsm8k-report/report.html").is_file()


def test_dapo_math_on_eight_gpus(folder: Path, chat_model: Path, tmp_path: Path) -> None:
    train, evaluate = commands_of(folder / "dapo_math.sh", tmp_path)
    assert train[:5] == ["accelerate", "launch", "--multi_gpu", "--num_processes", "8"]
    run(train, chat_model, **{"--filter-rounds": "2", "--overlong-buffer": "4"})
    run(evaluate, chat_model)
    row = read_jsonl(folder / "runs/dapo-math/metrics.jsonl")[-1]
    assert {"eval/aime24/accuracy", "eval/aime25/accuracy", "eval/accuracy"} <= row.keys()
    assert (folder / "runs/dapo-math/adapter/adapter_config.json").is_file()


def test_verl_data_and_reward_unchanged(folder: Path, chat_model: Path, tmp_path: Path) -> None:
    tasks, train = commands_of(folder / "verl.sh", tmp_path)
    run(tasks, chat_model)
    run(train, chat_model, **{"--samples-every": "1", "--samples-count": "20"})
    samples = read_jsonl(folder / "runs/verl/samples.jsonl")
    for sample in samples:
        right = sample["response"].endswith(str(answer_of(sample["prompt"][-1]["content"])))
        assert sample["reward"] == pytest.approx(1.0 if right else 0.1 if "Answer: " in sample["response"] else 0.0)
    assert any(sample["extra"]["answered"] for sample in samples)
    executed = executed_lines(folder / "verl_reward.py", {}, call=lambda space: [
        space["compute_score"]("d", "none", "3"), space["compute_score"]("d", "#### 1,003.", 1003),
    ])  # fmt: skip
    assert executed == [{"score": 0.0, "answered": 0.0}, {"score": 1.0, "answered": 1.0}]


def answer_of(question: str) -> int:
    """`What is 3 + 2? (45)`."""
    words = question.split()
    return int(words[2]) + int(words[4].rstrip("?"))


def executed_lines(script: Path, changes: dict[str, str], call=None):
    """Run a script with some words of it replaced, and fail unless every statement was run; gives what `call` gives."""
    text = script.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, (old, script)
        text = text.replace(old, new)
    tree, seen = ast.parse(text), set[int]()
    lines = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt) and not is_docstring(node)}
    space = {"__name__": "__main__", "__file__": str(script), "ran__": seen.add}
    exec(compile(ast.fix_missing_locations(Marked().visit(tree)), str(script), "exec"), space)
    found = call(space) if call else space
    assert lines <= seen, sorted(lines - seen)
    return found


class Marked(ast.NodeTransformer):
    """Every statement tells `ran__` its line before it runs; with `sys.settrace` Python 3.11 was seen to run on for ever."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            if isinstance(block := getattr(node, name, None), list):
                setattr(node, name, [line for statement in block for line in self.told(statement)])
        return node

    def told(self, statement: ast.stmt) -> list[ast.stmt]:
        if is_docstring(statement):
            return [statement]
        return [*ast.parse(f"ran__({statement.lineno})").body, statement]


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_own_reward_on_own_data_in_fifteen_lines(folder: Path, chat_model: Path) -> None:
    script = folder / "own_reward.py"
    lines = [line for line in script.read_text().splitlines() if line.strip() and not line.startswith('"""')]
    assert len(lines) <= 15
    space = executed_lines(
        script,
        {'"Qwen/Qwen3-0.6B"': repr(str(chat_model)), "max_new_tokens=256": "max_new_tokens=12, steps=1, prompts_per_step=8, "
         "eval_problems=4, samples_every=1, device='cpu'"},
    )  # fmt: skip
    for sample in read_jsonl(folder / "runs/own/samples.jsonl"):
        assert [sample["reward"]] == space["last_number"]([sample["response"]], [product_of(sample["prompt"])])


def product_of(prompt: str) -> int:
    """`What is 3 × 4? Answer with a number.`"""
    words = prompt.split()
    return int(words[2]) * int(words[4].rstrip("?"))


SMALL_TRL = {
    "max_steps=100": "max_steps=1, report_to='none', use_cpu=True, disable_tqdm=True",
    "per_device_train_batch_size=16": "per_device_train_batch_size=8",
    "gradient_accumulation_steps=4": "gradient_accumulation_steps=1",
    "max_completion_length=512": "max_completion_length=12",
}


def test_a_trl_script_and_the_same_line_by_line(folder: Path, chat_model: Path) -> None:
    pytest.importorskip("trl")
    model = {'"Qwen/Qwen3-0.6B"': repr(str(chat_model))}
    before = executed_lines(folder / "trl_before.py", {**model, **SMALL_TRL})
    after = executed_lines(
        folder / "trl_after.py",
        {**model, "steps=100": "steps=1, device='cpu', samples_every=1", "rollouts_per_step=64": "rollouts_per_step=8",
         "max_new_tokens=512": "max_new_tokens=12"},
    )  # fmt: skip
    for name in ("correct", "short"):  # to the letter
        assert source(folder / "trl_before.py", name) == source(folder / "trl_after.py", name)
    theirs, ours = before["config"], after["config"]
    assert theirs.num_generations == ours.rollouts_per_prompt
    assert theirs.beta == ours.kl_coef
    assert (theirs.epsilon, theirs.epsilon_high) == (ours.clip_low, ours.clip_high)
    assert theirs.reward_weights == list(ours.reward_weights)
    for name in ("temperature", "learning_rate", "warmup_steps", "seed", "gradient_checkpointing"):
        assert getattr(theirs, name) == getattr(ours, name), name
    for sample in read_jsonl(folder / "runs/vantage/samples.jsonl"):
        assert -0.1 <= sample["reward"] <= 1.0
    assert (folder / "runs/trl/final/model.safetensors").is_file()
    assert (folder / "runs/vantage/model/model.safetensors").is_file()


def source(script: Path, name: str) -> str:
    text = script.read_text()
    start = text.index(f"def {name}(")
    return text[start : text.index("\n\n\n", start)]


def test_no_recipe_is_left_out_here() -> None:
    ran = {"gsm8k.sh", "gsm8k.yaml", "dapo_math.sh", "dapo_math.yaml", "own_reward.py", "verl.sh", "verl_reward.py",
           "trl_before.py", "trl_after.py", "problems.jsonl", "README.md"}  # fmt: skip
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == ran
