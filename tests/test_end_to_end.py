"""What users have, small: a chat-template model, a JSONL file, a named verifier; every algorithm on every embedded world."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.chat import questions, read_jsonl, write_jsonl
from tests.genac.made import QUICK
from vantage import TrainConfig, Trainer
from vantage.cli import main
from vantage.estimators import REGISTRY, get_algorithm
from vantage.prompting import Chat, encode_prompt
from vantage.verifiers.math import MathVerifier

WORLDS = ("programs", "tools", "instructions")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Questions with answers of one digit, some of them in other dress."""
    rows = [
        {"question": q, "gold": rf"\frac{{{int(a) * 2}}}{{2}}" if i % 2 else a}
        for i, (q, a) in enumerate(questions(60))
    ]
    return write_jsonl(tmp_path / "questions.jsonl", rows)


def arguments(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--model", str(model), "--task", f"jsonl:{data}", "--prompt-column", "question", "--answer-column", "gold",
        "--reward", "math", "--enable-thinking", "false", "--steps", "3", "--rollouts-per-step", "32", "--max-new-tokens", "12",
        "--learning-rate", "1e-3", "--eval-problems", "6", "--samples-every", "1", "--samples-count", "32", "--device", "cpu",
        "--out", str(out), *more,
    ]  # fmt: skip


@pytest.mark.parametrize("algo", ["poise", "grpo"])
def test_a_chat_model_on_a_jsonl_file_with_the_math_verifier(
    algo: str, chat_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(arguments(chat_model, data, out, "--algo", algo)) == 0
    rows = read_jsonl(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["reward/unscorable"] == 0 and math.isfinite(row["loss/policy"]) for row in rows[1:])
    assert any(row["policy/grad_norm"] > 0 for row in rows[1:])

    golds = {row["question"]: row["gold"] for row in read_jsonl(data)}
    samples = read_jsonl(out / "samples.jsonl")
    judge = MathVerifier(workers=1)
    asked = [
        sample["prompt"] if isinstance(sample["prompt"], str) else sample["prompt"][-1]["content"] for sample in samples
    ]
    scores = judge.score_many([sample["response"] for sample in samples], [{"answer": golds[q]} for q in asked])
    judge.close()
    assert [sample["reward"] for sample in samples] == scores
    assert {0.0, 1.0} == set(scores)  # it answers, and is right now and then

    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    rendered = tokenizer.decode(encode_prompt(tokenizer, asked[0], Chat(thinking=False)))
    assert rendered == f"<user>{asked[0]}\n<assistant><think></think>"
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (chat_model, out / "model")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)

    assert main(
        ["eval", str(out), "--task", f"jsonl:{data}", "--rows", "all", "--prompt-column", "question", "--answer-column", "gold",
         "--reward", "math", "--enable-thinking", "false", "--k", "4", "--problems", "8", "--max-new-tokens", "12",
         "--against", str(chat_model), "--device", "cpu", "--out", str(tmp_path / "eval")]
    ) == 0  # fmt: skip
    [found] = json.loads((tmp_path / "eval/evaluation.json").read_text())["benchmarks"]
    assert found["k"] == 4
    assert found["pass@k"]["1"] == pytest.approx(found["avg@k"])
    assert found["majority@k"]["1"] == pytest.approx(found["avg@k"])
    for row in read_jsonl(tmp_path / "eval/problems.jsonl"):
        votes = {response.partition("Answer: ")[2] or None for response in row["responses"]}
        assert set(row["votes"]) == votes


def test_sample_problems_show_a_right_and_a_wrong_answer(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tasks", f"jsonl:{data}", "--prompt-column", "question", "--answer-column", "gold", "--count", "1"]
    assert main([*words, "--reward", "math"]) == 0
    shown = capsys.readouterr().out
    assert r"\boxed{0}" in shown  # as the verifier wants it
    assert [
        line.split("│")[3].strip() for line in shown.splitlines() if "answer column" in line or "wrong" in line
    ] == ["1", "0"]
    assert main(words) == 0
    assert "a verifier such as math" in capsys.readouterr().out


def test_adapters_are_trained_merged_and_read_by_plain_transformers(
    chat_model: Path, data: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    out = tmp_path / "run"
    assert main(arguments(chat_model, data, out, "--algo", "grpo", "--lora.rank", "4", "--gradient-checkpointing")) == 0
    base = AutoModelForCausalLM.from_pretrained(chat_model)
    merged = AutoModelForCausalLM.from_pretrained(out / "model")
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chat_model), out / "adapter")
    ids = torch.tensor([AutoTokenizer.from_pretrained(out / "model")("<user>What is 3?")["input_ids"]])
    with torch.no_grad():
        one, other, start = (model(ids).logits for model in (merged, adapted, base))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert (one - start).abs().max() > 1e-4
    assert merged.state_dict().keys() == base.state_dict().keys()


def test_a_verifier_whose_process_dies_takes_no_run_with_it(chat_model: Path, data: Path, tmp_path: Path) -> None:
    """It dies on every answer with a 1, 2 or 3 in it; the run goes on, and these are unscorable."""
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        "from vantage.verifiers.base import reward_function\n"
        "from vantage.verifiers.workers import Isolated, WorkerLimits\n\n"
        "class Deadly:\n"
        "    name, version = 'deadly', '1'\n"
        "    def score(self, text, columns):\n"
        "        if set('123') & set(text): os.kill(os.getpid(), 9)\n"
        "        return float('4' in text)\n\n"
        "if 'VANTAGE_INSIDE' not in os.environ:\n"
        "    reward = reward_function(Isolated(__file__ + ':Deadly', count=1, limits=WorkerLimits(seconds=5)))\n"
    )
    out = tmp_path / "run"
    words = arguments(chat_model, data, out, "--algo", "rloo", "--rollouts-per-prompt", "2")
    words[words.index("math")] = f"{tmp_path / 'deadly.py'}:reward"
    words[words.index("--steps") + 1] = "1"
    words[words.index("--rollouts-per-step") + 1] = "8"
    words[words.index("--eval-problems") + 1] = "0"
    assert main(words) == 0
    samples = read_jsonl(out / "samples.jsonl")
    for sample in samples:
        died = bool(set("123") & set(sample["response"]))
        assert (sample["reward"] is None) == died
    assert read_jsonl(out / "metrics.jsonl")[-1]["reward/unscorable"] == pytest.approx(
        sum(sample["reward"] is None for sample in samples) / len(samples)
    )


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("algo", list(REGISTRY))
def test_every_algorithm_runs_on_every_world(algo: str, world: str, tmp_path: Path) -> None:
    """On `sums` each of them is known to learn (`test_learning`); here two steps with finite numbers and a moving policy."""
    options = QUICK | {"pretrain_steps": 0, "gates": "off"} if algo == "genac" else {}
    config = TrainConfig(
        algo=get_algorithm(algo)(**options), task=world, steps=2, rollouts_per_step=8, max_new_tokens=16, eval_problems=0,
        filter_rounds=2, device="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    trainer = Trainer(config)
    for number in (1, 2):
        row = trainer.train_step(number).row
        assert row["reward/unscorable"] == 0
        assert row["completion/length_mean"] > 0
        numbers = [value for key, value in row.items() if key.startswith(("loss/", "policy/"))]
        assert all(math.isfinite(value) for value in numbers if value is not None)
