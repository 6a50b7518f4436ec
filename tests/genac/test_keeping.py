"""Critics that a run has taught are kept: for whom, under which name, and that the next run begins with them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from vantage import tiny
from vantage.cli import main
from vantage.estimators.genac import Genac
from vantage.genac.keeping import cache_folder, keep, kept, place_of
from vantage.policy import Policy
from vantage.rollout.engine import Sampling
from vantage.tasks import get_task


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VANTAGE_CACHE", str(tmp_path / "cache"))


SAMPLING = Sampling(96)
SMALL = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(*tiny.fresh(**SMALL))


def test_the_name_follows_policy_task_lessons_and_seed(policy):
    task, options = get_task("programs"), Genac()
    place = place_of(options, "tiny", policy, task, SAMPLING, 0)
    assert place.parent == cache_folder()
    assert place == place_of(Genac(gae_lambda=0.9, baseline="none"), "tiny:programs", policy, task, SAMPLING, 0)
    others = [
        place_of(options, "tiny", policy, task, Sampling(40), 0),
        place_of(Genac(max_segments=2), "tiny", policy, task, SAMPLING, 0),
        place_of(Genac(sft_steps=9), "tiny", policy, task, SAMPLING, 0),
        place_of(options, "tiny", policy, task, SAMPLING, 1),
        place_of(options, "tiny", policy, get_task("tools"), SAMPLING, 0),
        place_of(options, "tiny", policy, get_task("programs:curves"), SAMPLING, 0),
        place_of(options, "tiny", Policy(*tiny.fresh(1, **SMALL)), task, SAMPLING, 0),
    ]
    assert len({place, *others}) == 8


def test_only_what_an_embedded_policy_learns_by_itself_is_kept(policy):
    task = get_task("programs")
    for options in (Genac(critic="copy"), Genac(traces="x"), Genac(teacher="y"), Genac(template="z")):
        assert place_of(options, "tiny", policy, task, SAMPLING, 0) is None
    assert place_of(Genac(), "some/model", policy, task, SAMPLING, 0) is None
    assert kept(None) is None


def test_a_critic_appears_whole_or_not_at_all(tmp_path):
    place = cache_folder() / "a"

    def half(folder):
        (folder / "model").write_text("x")
        raise OSError("disk full")

    assert "disk full" in keep(place, half)
    assert kept(place) is None
    assert list(cache_folder().iterdir()) == []
    assert str(place) in keep(place, lambda folder: (folder / "critic.json").write_text("{}"))
    assert kept(place) == place


def test_the_next_run_begins_with_the_critic_that_the_first_one_taught(tmp_path, capsys):
    common = [
        "train", "--algo", "genac", "--task", "tools", "--steps", "1", "--rollouts-per-step", "8", "--max-new-tokens", "12",
        "--eval-problems", "0", "--genac.pretrain-steps", "1", "--genac.sft-steps", "1", "--genac.sft-examples", "8",
        "--genac.sft-batch", "4", "--genac.critic-tokens", "64", "--genac.success-problems", "4", "--genac.panel-share", "0",
    ]  # fmt: skip
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    first = capsys.readouterr().err
    assert "it learns from 8 traces" in first
    assert "other runs with these settings begin with it" in first
    assert main([*common, "--out", str(tmp_path / "two")]) == 0
    second = capsys.readouterr().err
    assert "the critic of an earlier run" in second
    assert "traces" not in second
    rows = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("one", "two")]
    own = ("time/", "mem/", "throughput", "tokens/value_extra", "tokens/total")
    same = [{k: v for k, v in row.items() if not k.startswith(own)} for row in rows]
    assert same[0] == same[1]
    assert rows[0]["tokens/value_extra"] > rows[1]["tokens/value_extra"]  # the rollouts that lessons were about


def test_the_options_that_are_named_are_options():
    from vantage.genac.keeping import TAUGHT_BY

    assert set(TAUGHT_BY) <= {field.name for field in dataclasses.fields(Genac)}
