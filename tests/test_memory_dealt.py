"""The memory of one of several processes that share the models: shares, what is put together, and when."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from tests.test_memory import SETTINGS, shape
from vantage import cli, doctor
from vantage.config import TrainConfig
from vantage.errors import UserError
from vantage.estimators.grpo import Grpo
from vantage.memory import Settings, changes, estimate
from vantage.memory import report as memory_report
from vantage.memory.dealt import PutTogether, share, whole_bytes
from vantage.memory.trace import peak_of
from vantage.sizing import microbatch_size

FOUR = dataclasses.replace(SETTINGS, processes=4, sharded=True)
EVEN = {"vocab_size": 48}
"""Every weight of such a model has a number of rows that four processes can share evenly."""


def test_a_share_is_whole_rows_and_the_same_for_all() -> None:
    assert share(torch.empty(8, 3), 4) == 6
    assert share(torch.empty(5, 3), 4) == 6  # rows 2, 2, 1, 0
    assert share(torch.empty(()), 4) == 1
    assert whole_bytes([torch.empty(5, 3), torch.empty(2, 2, dtype=torch.bfloat16), torch.empty(())], 4) == 96 + 16


def test_each_process_has_its_part_of_weights_gradients_moments_reference_and_critic() -> None:
    for change in ({}, {"reference": "copy"}, {"reference": "named", "precision": "bfloat16"}, {"critic": "values"},
                   {"critic": "language"}):  # fmt: skip
        alone = estimate(shape(**EVEN), dataclasses.replace(SETTINGS, **change))
        found = estimate(shape(**EVEN), dataclasses.replace(FOUR, **change))
        for part in ("weights", "gradients", "optimizer", "reference", "critic"):
            assert getattr(found, part) == getattr(alone, part) / 4, (part, change)
        assert (found.parameters, found.cache) == (alone.parameters, alone.cache)
        assert found.resident == alone.resident / 4


def test_without_sharding_every_process_has_all() -> None:
    several = dataclasses.replace(SETTINGS, processes=4)
    assert estimate(shape(), several) == estimate(shape(), SETTINGS)


def test_generation_has_the_whole_policy_beside_its_share() -> None:
    alone, found = estimate(shape(**EVEN), SETTINGS), estimate(shape(**EVEN), FOUR)
    assert found.together == 4 * alone.parameters == alone.weights
    assert found.rollout == alone.rollout
    assert found.phases["rollout"] == found.weights + found.optimizer + found.together + found.rollout
    # In bfloat16 the linear weights of blocks are put together in it, so that only the head is cast for the phase.
    half = dataclasses.replace(FOUR, precision="bfloat16")
    linear = 3 * (8 * 16 + 2 * 8 * 8 + 16 * 8 + 3 * 8 * 16)
    quick, before = estimate(shape(**EVEN), half), estimate(shape(**EVEN), dataclasses.replace(half, sharded=False))
    assert quick.together == found.together - 2 * linear
    assert quick.rollout == before.rollout - 2 * linear


def test_models_that_are_whole_for_values_and_reference_terms_are_a_phase_of_their_own() -> None:
    count = estimate(shape(**EVEN), FOUR).parameters
    assert "scoring" not in estimate(shape(**EVEN), FOUR).phases
    sampled = estimate(shape(**EVEN), dataclasses.replace(FOUR, reference="copy"))
    exact = estimate(shape(**EVEN), dataclasses.replace(FOUR, reference="copy", exact_kl=True))
    assert exact.scoring - sampled.scoring == 4 * count  # the policy is whole beside it
    values, spoken = (estimate(shape(**EVEN), dataclasses.replace(FOUR, critic=c)) for c in ("values", "language"))
    assert spoken.scoring > values.scoring + 4 * count - 100
    assert sampled.phases["scoring"] == sampled.resident + sampled.scoring > sampled.resident + 4 * count


def test_on_a_cpu_models_are_whole_before_they_are_dealt_out_and_the_main_process_saves_a_whole_one() -> None:
    settings = dataclasses.replace(FOUR, on_cpu=True, reference="copy", critic="values")
    found = estimate(shape(**EVEN), settings)
    count = found.parameters
    assert found.phases["loading"] == 3 * 4 * count
    assert found.saving == 8 * count / 4 + 4 * count
    assert found.optimizer_work == 4 * count / 4


class Layers(torch.nn.Module):
    """A wide head behind square blocks, on the meta device."""

    def __init__(self, blocks: int, width: int, head: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(blocks))
            self.head = torch.nn.Linear(width, head, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize(("blocks", "head"), [(6, 128), (3, 4096)])
def test_what_is_put_together_by_hand(blocks: int, head: int, on_cpu: bool) -> None:
    model = Layers(blocks, 256, head)
    block, root = 4 * 256 * 256, 4 * 256 * head
    x = torch.empty(1, 256, device="meta")
    known = [x, *model.parameters()]

    def train() -> None:
        with PutTogether(model, model.blocks, 2, on_cpu).active():
            model(x).sum().backward()
        assert all(p.grad is None for p in model.parameters())

    # Around a block: itself, the one before it, its gradient, the sum of the one behind it; the head and its gradient.
    # In the end the gradients of the head and their sum.
    wanted = max(2 * root + 4 * block, 2 * root)
    assert peak_of(train, known) == pytest.approx(wanted, rel=0.05)

    def read() -> None:
        with torch.no_grad(), PutTogether(model, model.blocks, 2, on_cpu).active():
            model(x)

    # Without gradients a block comes while the buffer of the one before it is there, or that of the head.
    assert peak_of(read, known) == pytest.approx(root + max(root, block) + (2 if on_cpu else 1) * block, rel=0.05)


def test_blocks_that_are_run_again_and_parameters_that_are_not_used_are_no_trouble() -> None:
    long = dataclasses.replace(FOUR, prompt_tokens=24, new_tokens=40, microbatch_tokens=256)
    kept = estimate(shape(hidden_act="silu"), long).activations
    assert estimate(shape(hidden_act="silu"), dataclasses.replace(long, checkpointing=True)).activations < 0.75 * kept
    model = Layers(3, 64, 8)
    model.blocks[1].spare = torch.nn.Parameter(torch.empty(64, 64, device="meta"))

    def train() -> None:
        with PutTogether(model, model.blocks, 2, False).active():
            model(torch.empty(1, 64, device="meta")).sum().backward()

    assert peak_of(train, model.parameters()) < 6 * 4 * 64 * 64 + 10_000


def test_more_processes_leave_room_for_larger_micro_batches() -> None:
    def size(processes: int) -> int:
        from vantage.memory import Estimator

        settings = dataclasses.replace(SETTINGS, processes=processes, sharded=True)
        model = shape(hidden_size=64, intermediate_size=128, head_dim=16)
        found = microbatch_size(Estimator(model), settings, free=3_000_000, most=10**9)
        return 0 if found is None else found.tokens

    assert 0 < size(2) < size(4) < size(8)


def test_generation_is_of_a_process_s_own_prompts() -> None:
    from vantage.config import resolve

    config = TrainConfig(algo=Grpo(), rollouts_per_step=40, tokens_per_microbatch=300)
    config = resolve(config, max_new_tokens=10, stop=(), reward_range=(0.0, 1.0))
    assert [Settings.of(config, 8, processes).generation_rows for processes in (1, 2, 5)] == [40, 24, 8]


def test_moments_of_8_bits_are_not_proposed_where_they_can_not_be_dealt_out() -> None:
    fields = frozenset({"optimizer", "gradient_checkpointing"})
    flags = [[change.flag for options in changes(s, fields) for change in options] for s in (SETTINGS, FOUR)]
    assert flags == [["--gradient-checkpointing", "--optimizer adamw-8bit"], ["--gradient-checkpointing"]]


def doctor_rows(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    cli.main(["doctor", "--model", "tiny", "--device", "cpu", "--json", *flags])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return found


def test_the_doctor_tells_what_each_process_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "diagnose", list)
    monkeypatch.setattr(memory_report, "free_bytes", lambda device: int(8e9))
    model, fits = doctor_rows(capsys, "--processes", "2", "--sharding", "fsdp2")
    assert "weights 1.6 MB, gradients 1.6 MB, optimizer 3.2 MB" in model["detail"]
    assert "the policy put together for generation 3.2 MB" in model["detail"]
    assert "in each of 2 processes" in fits["detail"]
    whole, _ = doctor_rows(capsys, "--processes", "2")
    assert "weights 3.2 MB" in whole["detail"]
    # Processes on a CPU share its memory.
    size, unit = fits["detail"].split(" at the peak")[0].split()
    need = float(size) * {"MB": 1e6, "GB": 1e9}[unit]
    for room, status in ((1.7, "problem"), (3.4, "ok")):  # in each 1.3 times the estimate
        monkeypatch.setattr(memory_report, "free_bytes", lambda device, room=room: int(room * need))
        assert doctor_rows(capsys, "--processes", "2", "--sharding", "fsdp2")[1]["status"] == status


@pytest.mark.parametrize(
    ("options", "processes", "words"),
    [
        ({"sharding": "fsdp2"}, 1, "give --processes N, 2 or more"),
        ({"sharding": "fsdp2", "optimizer": "adamw-8bit"}, 2, "can not be dealt out; give adamw"),
    ],
)
def test_what_can_not_be_dealt_out_is_a_mistake_in_one_line(
    options: dict[str, str], processes: int, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        memory_report.memory_rows(TrainConfig(**options), 10, processes)
