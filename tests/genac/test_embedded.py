"""The shipped critics: one for each embedded policy on its own world, taught by the command that its card names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from vantage import tiny
from vantage.genac.critic import read_card
from vantage.genac.scoring import score
from vantage.genac.settings import ScoreConfig
from vantage.genac.start import embedded_critic


@pytest.mark.parametrize("world", tiny.WORLDS)
def test_every_world_has_a_critic_that_says_how_it_was_made(world):
    model = tiny.policy_for("tiny", world)
    folder = embedded_critic(model, world)
    assert folder.name == f"{tiny.WORLDS[world].name}-critic"
    assert embedded_critic(model, f"{world}:some-split") == folder
    card = read_card(folder)
    assert (card["stage"], card["actor"], card["actor_parameters"]) == ("sft", model, 800_512)
    assert card["trained_by"] == f"vantage critic sft --task {world} --genac.critic copy --genac.sft-steps 4000"
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.parametrize("world", tiny.WORLDS)
def test_it_can_be_read_and_tells_states_that_end_well(world, capsys):
    """What its values are worth against the truth is measured by benchmarks/genac_school.py."""
    found = score(ScoreConfig(critic="embedded", task=world, problems=40, rollouts=2, seed=3))
    outcomes = found["against_outcomes"]
    assert found["completions_parsed"] >= 0.98
    assert outcomes["auc"] > 0.65
    assert outcomes["pearson"] > 0.3


@pytest.mark.parametrize("world", tiny.WORLDS)
def test_the_committed_figures_have_it_below_the_best_constant(world):
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "genac-school.json"
    truth = json.loads(results.read_text())["worlds"][world]["shipped"]["against_truth"]
    assert truth["intervals"]["mse_noise_corrected_less_that_of_the_constant"][1] < 0
