"""vLLM in process: the policy's own tokens and log-probs before and after updates, stale weights found."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from tests.vllm.comparing import moved, requests, right_log_probs, same_greedy, tiny_policy
from vantage.models.loading import end_token_ids
from vantage.rollout.engine import Request, Sampling, StaleWeights
from vantage.rollout.handover import fingerprint_of
from vantage.rollout.options import VllmOptions
from vantage.rollout.vllm_engine import VllmEngine
from vantage.rollout.vllm_local import LocalVllm


@pytest.fixture(scope="module")
def engine():
    policy = tiny_policy()
    options = VllmOptions()
    made = VllmEngine(
        policy, end_token_ids(policy), LocalVllm(policy, options, torch.float32, 64), options, torch.float32
    )
    yield made
    made.close()


def test_the_same_greedy_tokens_and_log_probs_before_and_after_an_update(engine):
    for updates in (1, 2):
        same_greedy(engine, engine.policy)
        same_greedy(engine, engine.policy, stop=("=22", "\n>"))
        assert engine.updates == updates
        assert engine.comparable is True  # the workers' own weights have the fingerprint of the policy's
        assert engine.difference < 1e-5
        (state,) = engine.backend.state()
        assert state["resident"] == state["arrived"] == fingerprint_of(engine.policy, torch.float32)
        moved(engine.policy)


def test_log_probs_are_those_after_temperature_and_before_top_p_and_top_k(engine):
    right_log_probs(engine, engine.policy, Sampling(24, temperature=1.0))
    right_log_probs(engine, engine.policy, Sampling(24, temperature=1.4, top_p=0.8, top_k=20))


def test_a_rollout_depends_on_its_key_and_not_on_what_else_is_generated(engine):
    sampling = Sampling(24)
    many = engine.generate(requests(engine.policy), sampling)
    for request, wanted in zip(requests(engine.policy)[:3], many):
        (found,) = engine.generate([Request(request.prompt_ids, request.keys[1:])], sampling)
        assert found[0].response_ids == wanted[1].response_ids
    other = engine.generate([Request(requests(engine.policy)[0].prompt_ids, tuple(range(1000, 1064)))], sampling)[0]
    assert len({tuple(r.response_ids) for r in other}) > 8


def test_planted_stale_weights_are_an_error(engine, monkeypatch):
    engine.update_weights()
    moved(engine.policy, 1e-4)
    sent = fingerprint_of(engine.policy, torch.float32)
    silent = [{"arrived": sent, "resident": None, "updates": 0}]
    monkeypatch.setattr(engine.backend, "load", lambda folder: silent)
    monkeypatch.setattr(engine, "comparable", False)
    with pytest.raises(StaleWeights, match="log-probs of known tokens differ by"):
        engine.update_weights()
    told = [engine.backend.state()[0] | {"arrived": sent}]
    monkeypatch.setattr(engine.backend, "load", lambda folder: told)
    monkeypatch.setattr(engine, "comparable", True)
    with pytest.raises(StaleWeights, match="computes with others"):
        engine.update_weights()
    monkeypatch.undo()
    same_greedy(engine, engine.policy)


def test_more_prompt_tokens_than_vllm_takes_at_once_are_no_trouble(engine):
    draw = torch.Generator().manual_seed(3)
    prompts = torch.randint(3, 90, (120, 70), generator=draw).tolist()
    found = engine.generate([Request(prompt, (i,)) for i, prompt in enumerate(prompts)], Sampling(3))
    assert all(1 <= len(rollout.response_ids) <= 3 for (rollout,) in found)


def kill(engine) -> None:
    """End vLLM's core as a lack of memory would."""
    for process in engine.backend._llm.llm_engine.engine_core.resources.engine_manager.processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
