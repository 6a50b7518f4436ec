"""TRL's trainer with our advantages: two real steps of a tiny model against the installed library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.helpers import SMALL
from vantage import tiny
from vantage.advantages import rloo_advantages
from vantage.errors import UserError
from vantage.estimators.poise import Poise
from vantage.integrations import common
from vantage.integrations.trl import VantageGRPOTrainer

PROMPTS = 4
GROUP = 4


def reward(completions: list[str], **kwargs: Any) -> list[float | None]:
    """Differs within groups; the very first completion of a batch can not be scored."""
    return [None if i == 0 else float(len(set(text)) % 3) / 2 for i, text in enumerate(completions)]


def trainer(folder: Path, algo: Any, **changes: Any) -> Any:
    model, tokenizer = tiny.fresh(0, **SMALL)
    tokenizer.padding_side = "left"
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": PROMPTS * GROUP, "num_generations": GROUP,
        "max_completion_length": 12, "max_steps": 2, "learning_rate": 1e-3, "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "bf16": False, "seed": 3,
    }  # fmt: skip
    data = Dataset.from_dict({"prompt": [f"{i}+{i}=" for i in range(8)]})
    return VantageGRPOTrainer(
        model=model, reward_funcs=reward, args=GRPOConfig(**(settings | changes)), train_dataset=data,
        processing_class=tokenizer, algo=algo,
    )  # fmt: skip


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What TRL itself made of each generated batch: its advantages, the rewards, and the mask."""
    found: list[dict[str, torch.Tensor]] = []
    theirs = GRPOTrainer._generate_and_score_completions

    def recording(self: Any, inputs: Any) -> Any:
        output = theirs(self, inputs)
        found.append(
            {
                "advantage_B": output["advantages"].clone(), "reward_B": self._rewards[:, 0].clone(),
                "mask_BT": output["completion_mask"].bool().clone(),
            }
        )  # fmt: skip
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", recording)
    return found


def train(made: Any) -> list[torch.Tensor]:
    """Train, and return the advantages that the loss was given, in the order in which they were generated."""
    given: list[torch.Tensor] = []
    ours = made._generate_and_score_completions

    def keeping(inputs: Any) -> Any:
        output = ours(inputs)
        given.append(output["advantages"].clone())
        return output

    made._generate_and_score_completions = keeping
    made.train()
    return given


def test_grpo_gives_the_advantages_that_trl_gives(tmp_path: Path, recorded: list[dict[str, torch.Tensor]]) -> None:
    made = trainer(tmp_path, "grpo")
    before = [p.clone() for p in made.model.parameters()]
    given = train(made)
    assert len(given) == len(recorded) == 2
    for ours, theirs in zip(given, recorded):
        assert ours.shape == (PROMPTS * GROUP,)
        assert float(theirs["advantage_B"].abs().max()) > 0.5
        torch.testing.assert_close(ours, theirs["advantage_B"], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(before, made.model.parameters()))
    logged = made.state.log_history[0]
    assert {"value/mae", "reward", "loss"} <= logged.keys()


def test_rloo_gives_our_numbers_and_replaces_trls_in_its_table(
    tmp_path: Path, recorded: list[dict[str, torch.Tensor]]
) -> None:
    made = trainer(tmp_path, "rloo", max_steps=1)
    (ours,) = train(made)
    reward_B = recorded[0]["reward_B"].double()
    group_B = torch.arange(PROMPTS * GROUP) // GROUP
    expected_B = rloo_advantages(reward_B.nan_to_num(), group_B, reward_B.isfinite())
    torch.testing.assert_close(ours.double(), expected_B, rtol=0, atol=1e-6)
    assert float(ours[0]) == 0.0  # unscorable
    by_hand = reward_B[4] - reward_B[5:8].mean()
    assert float(ours[4]) == pytest.approx(float(by_hand), abs=1e-6)
    assert not torch.allclose(ours, recorded[0]["advantage_B"])
    assert list(made._logs["advantages"]) == pytest.approx(ours.tolist())


@pytest.mark.parametrize("algo", ["dr_grpo", "reinforce"])
def test_the_other_reward_estimators_train(tmp_path: Path, recorded: list[dict[str, torch.Tensor]], algo: str) -> None:
    (ours,) = train(trainer(tmp_path, algo, max_steps=1))
    reward_B, length_B = recorded[0]["reward_B"].double(), recorded[0]["mask_BT"].sum(1)
    known_B = reward_B.isfinite()
    if algo == "dr_grpo":
        grouped = reward_B.view(PROMPTS, GROUP)
        expected_B = (grouped - grouped.nanmean(1, keepdim=True)).reshape(-1).nan_to_num()
    else:
        weight_B, clean_B = length_B * known_B, reward_B.nan_to_num()
        mean = (weight_B * clean_B).sum() / weight_B.sum()
        variance = (weight_B * (clean_B - mean) ** 2).sum() / weight_B.sum()
        expected_B = ((clean_B - mean) / variance.sqrt()) * known_B
    torch.testing.assert_close(ours.double(), expected_B, rtol=1e-5, atol=1e-5)


def test_poise_reads_the_policy_and_its_probe_is_in_the_checkpoint(tmp_path: Path) -> None:
    options = Poise(layer=2, bootstrap=1)
    made = trainer(tmp_path / "a", options, max_steps=3, save_strategy="steps", save_steps=2)
    given = train(made)
    assert made.generation == 3
    assert all(advantage.isfinite().all() for advantage in given)
    saved = sorted(p.name for p in (tmp_path / "a" / "checkpoint-2").glob("vantage-estimator.*"))
    assert saved == ["vantage-estimator.json", "vantage-estimator.safetensors"]
    assert "poise/buffer_rows" in made.state.log_history[0]
    again = trainer(tmp_path / "b", options, max_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert again.generation == 3
    ours, theirs = made.estimator.state_dict(), again.estimator.state_dict()
    assert ours.tensors.keys() == theirs.tensors.keys()
    # Two batches of 15 scorable rollouts; TRL draws the third one anew after a resume.
    assert len(ours.tensors["0.target"]) == len(theirs.tensors["0.target"]) == 45
    assert all(torch.equal(ours.tensors[k][:30], theirs.tensors[k][:30]) for k in ours.tensors)
    (tmp_path / "a" / "checkpoint-2" / "vantage-estimator.json").unlink()
    bare = trainer(tmp_path / "c", options)
    with pytest.raises(UserError, match="the estimator's state is missing"):
        bare.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))


def test_poise_features_are_those_of_our_own_forward_pass(tmp_path: Path) -> None:
    made = trainer(tmp_path, Poise(layer=2), max_steps=1)
    prompts, responses = [[4, 5, 6], [7, 8]], [[9, 10, 1], [11, 1]]
    batch = common.response_batch(1, torch.zeros(2), torch.zeros(2).long(), [3, 2], prompts, responses)
    reads = made._read(batch, {})
    made.model.eval()
    with torch.no_grad():
        forward = made._policy.forward(batch, layers=(2,))
    torch.testing.assert_close(reads["features"], made.estimator.read(forward)["features"])
    hidden = made.model(torch.tensor([[4, 5, 6]]), output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(reads["features"][0, : SMALL["hidden_size"]], hidden.mean(0).detach())


def test_what_trl_can_not_carry_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dapo inside TRL's GRPOTrainer: missing dynamic sampling"):
        trainer(tmp_path, "dapo")
    with pytest.raises(UserError, match="'sum_then_normalize'"):
        trainer(tmp_path, "rloo", multi_objective_aggregation="normalize_then_sum")
    with pytest.raises(UserError, match="there is no algorithm 'rlo', did you mean 'rloo'"):
        trainer(tmp_path, "rlo")


def test_the_arguments_that_make_trls_loss_ours() -> None:
    assert common.grpo_arguments("grpo") == {"epsilon": 0.2, "epsilon_high": 0.2, "loss_type": "grpo"}
    assert common.grpo_arguments("reinforce")["loss_type"] == "dapo"
    assert common.grpo_arguments(Poise()) == {"epsilon": 0.2, "epsilon_high": 0.28, "loss_type": "dr_grpo"}
    GRPOConfig("unused", report_to=[], use_cpu=True, bf16=False, **common.grpo_arguments("poise"))
