"""The sampled audit on a policy of a few thousand parameters: both ways to a gradient, resumption, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers import small_policy
from vantage import UserError, cli
from vantage.audit import gradients as audit_gradients
from vantage.audit import plan
from vantage.audit.gradients import Scores, measure
from vantage.audit.projection import Projection, layer_of, shares
from vantage.audit.setting import Setting
from vantage.audit.statistics import products
from vantage.estimators.dapo import Dapo
from vantage.estimators.rloo import Rloo

SIZES = {"rollouts_per_step": 16, "blocks": 4, "fill_steps": 1, "max_new_tokens": 10, "device": "cpu"}


def test_scores_and_backward_passes_give_the_same_gradients(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan(str(small_model), {"dapo": Dapo(), "rloo": Rloo()}, rollouts_per_prompt=4, **SIZES)
    setting = Setting(asked)
    monkeypatch.setattr(setting.trainer(Rloo(), 2).work.rewards, "__call__", None, raising=False)
    block = setting.block(0)
    draw = torch.Generator().manual_seed(0)
    outcome_B = torch.randint(0, 2, (block.batch.size,), generator=draw).double()
    object.__setattr__(block.batch, "outcome_B", outcome_B)  # a random policy solves nothing by itself
    projection = Projection(setting.policy.model, 0)
    scores = Scores(setting.policy, projection)
    for algo in (Rloo(), Dapo()):
        update = setting.update(algo, 4)
        quick, spent = measure(update, 4, [block, block], setting, scores, projection)
        with monkeypatch.context() as patch:
            patch.setattr(audit_gradients, "pays_responses", lambda *_: False)
            slow, _ = measure(update, 4, [block, block], setting, scores, projection)
        assert abs(quick.mean_KD).max() > 1e-4
        assert quick.mean_KD == pytest.approx(slow.mean_KD, abs=1e-6)
        assert spent.rollouts == 2 * block.batch.size
        assert (quick.prompts, quick.members) == (1, 4)
    assert min(spent.kept) < 1  # DAPO's filter threw groups away


def test_a_projection_keeps_products_in_the_mean_and_small_layers_whole() -> None:
    model = small_policy(0).model
    draw = torch.Generator().manual_seed(1)
    sides = []
    for projection in (Projection(model, 0), Projection(model, 3000, seed=1)):
        draw.manual_seed(1)
        rows = []
        for _ in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
            rows.append(projection())
        sides.append((projection, torch.stack(rows).double()))
    (whole, exact), (small, kept) = sides
    assert whole.size == whole.total == sum(p.numel() for p in model.parameters())
    assert small.size <= 3000
    assert list(small.spans) == list(whole.spans) == ["embeddings", "block 0", "block 1", "block 2", "rest"]
    squares = (kept**2).sum(1) / (exact**2).sum(1)
    assert squares.tolist() == pytest.approx([1] * 4, abs=0.12)
    start, end = small.spans["rest"]
    assert torch.equal(kept[:, start:end], exact[:, slice(*whole.spans["rest"])])
    for parameter in model.parameters():
        parameter.grad = None
    assert not bool(small().any())


def test_layers_have_names_and_fair_shares() -> None:
    names = (
        "model.embed_tokens.weight",
        "model.layers.3.mlp.up_proj.weight",
        "transformer.h.0.ln_1.weight",
        "lm_head.weight",
    )
    assert [layer_of(name) for name in (*names, "model.norm.weight")] == [
        "embeddings",
        "block 3",
        "block 0",
        "head",
        "rest",
    ]
    assert shares({"a": 1000, "b": 10, "c": 500}, 210) == {"a": 100, "b": 10, "c": 100}


def test_what_was_measured_is_taken_and_gives_the_same_report(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    line = ["audit", str(small_model), "--algos", "rloo,reinforce", "--quick", "--rollouts-per-step", "16", "--blocks", "4",
            "--fill-steps", "1", "--max-new-tokens", "10", "--device", "cpu", "--out", str(out)]  # fmt: skip
    assert cli.main(line) == 0
    first = capsys.readouterr()
    assert "audit: reinforce: measured in" in first.err
    assert f"report   {out / 'report.html'}" in first.out
    before = json.loads((out / "audit.json").read_text())
    assert before["blocks"] == 4
    assert before["rollouts"] == 4 * 2 * 16
    assert list(before["algorithms"]) == ["rloo", "reinforce"]
    assert all("outlook" in entry for entry in before["algorithms"].values())
    (broken,) = (out / "measured").glob("reinforce-*.safetensors")
    broken.write_bytes(b"torn")
    assert cli.main(line) == 0
    assert "audit: rloo: measured already" in capsys.readouterr().err
    after = json.loads((out / "audit.json").read_text())
    for found in (before, after):
        del found["seconds"], found["git_commit"]
        for entry in found["algorithms"].values():
            entry.pop("seconds")
    assert before == after


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "MODEL|RUN is missing"),
        (["tiny", "--algos", "pois"], "--algos: there is no algorithm 'pois', did you mean 'poise'?"),
        (["tiny", "--algos", "rloo,rloo"], "--algos lists rloo twice"),
        (
            ["tiny", "--blocks", "3"],
            "--blocks is 3; intervals are taken from the spread over blocks, which takes 4 or more",
        ),
        (["tiny", "--tolerance", "0"], "--tolerance is 0.0, it must be between 0 and 1"),
        (["tiny", "--dimensions", "-1"], "--dimensions is -1"),
        (["tiny", "--steps", "3"], "there is no flag '--steps'"),
        (["tiny", "--rollouts-per-step", "100"], "give a multiple of 8"),
        (["enumerable", "--algos", "genac"], "--algos: genac needs text, an engine or a critic"),
        (["enumerable", "--rollouts-per-prompt", "9"], "--rollouts-per-prompt is 9; more than 4 are too many"),
        (["enumerable", "--task", "programs"], "--task is programs; the enumerable world has a task of its own"),
        (["tiny", "--task", "sum"], "sum"),
    ],
)
def test_a_mistake_is_one_line(line: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "a"
    assert cli.main(["audit", *line, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vantage: error: ")
    assert said in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    assert cli.main(["audit", "enumerable", "--algos", "rloo", "--out", str(tmp_path)]) == 2
    assert "this folder holds other files and no audit" in capsys.readouterr().err


def test_a_run_lends_its_task_and_sampling(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "task: programs\nmax_new_tokens: 17\ntemperature: 0.7\nseed: 3\nstop: ['x']\n"
    )
    found = plan(str(tmp_path), ["rloo"]).settings
    assert found == {"task": "programs", "max_new_tokens": 17, "temperature": 0.7, "stop": ("x",)}
    assert plan(str(tmp_path), ["rloo"], task="sums").settings["task"] == "sums"
    with pytest.raises(UserError, match="--steps is set by the audit"):
        plan("tiny", ["rloo"], steps=3)


def test_products_of_projected_gradients_add_up_over_layers() -> None:
    model = nn.ModuleDict({"embed": nn.Linear(3, 2), "head": nn.Linear(2, 2)})
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    projection = Projection(model, 0)
    row = projection().numpy()[None].repeat(4, 0)
    found = products(row, row, list(projection.spans.values()))
    assert found[:, 0].tolist() == [6 * 1 + 2 * 4, 4 * 9 + 2 * 16]
