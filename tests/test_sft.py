"""The supervised warm start learns, is reproducible, and refuses what it can not do."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.helpers import small_policy
from vantage import SftConfig
from vantage.errors import UserError
from vantage.sft import draw, likelihood_step, run_sft, supervised_set
from vantage.tasks import from_dataset
from vantage.tasks.sums import Sums


def config(out, **changes) -> SftConfig:
    settings = {"out": str(out), "steps": 6, "batch_size": 8, "examples": 16, "eval_problems": 10, "device": "cpu"}
    return SftConfig(**(settings | changes))


def test_the_likelihood_is_the_mean_over_response_tokens_and_its_gradient_learns():
    policy = small_policy()
    examples = supervised_set(policy, Sums(), config("unused"), 1)
    assert all(response[-1] == 1 for _, response in examples)
    first = likelihood_step(policy, draw(examples, 8, 0, 0))
    assert first == pytest.approx(4.6, abs=0.5)  # uniform over 99 tokens
    for parameter in policy.model.parameters():
        if parameter.grad is not None:
            parameter.data -= 0.5 * parameter.grad
    assert likelihood_step(policy, draw(examples, 8, 0, 0)) < first - 0.1


def test_every_example_is_seen_once_an_epoch():
    examples = [([i], [i]) for i in range(10)]
    seen = [p[0] for step in range(5) for p in draw(examples, 4, seed=1, step=step).prompt_ids]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))


def test_the_same_seed_makes_the_same_model(tmp_path, capsys):
    for name in ("a", "b"):
        run_sft(config(tmp_path / name))
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "b"))
    assert all((first[k] == second[k]).all() for k in first)
    card = json.loads((tmp_path / "a" / "sft.json").read_text())
    assert card["accuracy"] == 0.0
    assert "held-out problems" in capsys.readouterr().out


def test_a_folder_in_use_and_a_task_without_solutions_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        run_sft(config(tmp_path))
    task = from_dataset([{"prompt": f"{i}+1=", "answer": "2"} for i in range(20)])
    with pytest.raises(UserError, match="knows no solutions"):
        supervised_set(small_policy(), task, config(tmp_path / "new"), 1)
