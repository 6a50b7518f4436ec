"""What the vLLM engine promises, whatever runs behind it: fresh weights or an error, rollouts by key, life after death."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from tests.backends import CopyBackend, Faults
from tests.helpers import SMALL, random_batch, small_policy
from vantage import TrainConfig, Trainer, tiny
from vantage.cli import main
from vantage.errors import UserError
from vantage.estimators.grpo import Grpo
from vantage.estimators.vineppo import Vineppo
from vantage.interrupts import Abandoned
from vantage.models.holding import Lora, with_adapters
from vantage.policy import Policy
from vantage.rollout import factory
from vantage.rollout.engine import EngineLost, Request, Sampling, StaleWeights
from vantage.rollout.fingerprint import fingerprint
from vantage.rollout.handover import fingerprint_of, weights_of, written
from vantage.rollout.options import VllmOptions
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.rollout.vllm_engine import VllmEngine
from vantage.rollout.vllm_server import RemoteVllm
from vantage.rollout.vllm_worker import BeforeTruncation, VantageWorker

END = 1


def float_policy(seed: int = 0) -> Policy:
    return small_policy(seed, torch.float32)


def engine_for(policy: Policy, faults: Faults | None = None, **options) -> VllmEngine:
    return VllmEngine(policy, (END,), CopyBackend(policy, faults), VllmOptions(**options), torch.float32)


def moved(policy: Policy, size: float = 0.1, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def some_requests() -> list[Request]:
    prompts = random_batch(groups=4, group=1).prompt_ids
    found = [Request(p, tuple(range(10 * i, 10 * i + 2 * i + 2, 2))) for i, p in enumerate(prompts)]
    return [
        *found,
        Request(prompts[0], (6, 8), (5, 9, 7)),
        Request(prompts[1], (2,), (4, END)),
        Request(prompts[2], (), ()),
    ]


# --- fingerprints ---------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_that_of_the_numbers_and_not_of_their_layout():
    a, b = torch.randn(6, 4), torch.randn(3, 4)
    stacked, padded = torch.cat([b, a]), torch.nn.functional.pad(a, (0, 0, 0, 5))
    assert (
        fingerprint([a, b])
        == fingerprint([stacked])
        == fingerprint([b.t().contiguous(), a])
        == fingerprint([padded, b])
    )
    changed = a.clone()
    changed[2, 3] = torch.nextafter(changed[2, 3], torch.tensor(9.0))
    assert fingerprint([changed, b]) != fingerprint([a, b])
    swapped = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.5])
    assert fingerprint([swapped[0]]) != fingerprint([swapped[1]])


def test_fingerprints_do_not_depend_on_chunks(monkeypatch):
    values = torch.randn(1000)
    whole = fingerprint([values])
    monkeypatch.setattr("vantage.rollout.fingerprint.CHUNK", 7)
    assert fingerprint([values]) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_what_was_fingerprinted(dtype, tmp_path):
    policy = small_policy()
    with written(policy, dtype, str(tmp_path)) as folder:
        from safetensors.torch import load_file

        tensors = load_file(folder / "model.safetensors")
        assert {t.dtype for t in tensors.values()} == {dtype}
        assert fingerprint(tensors.values()) == fingerprint_of(policy, dtype)
    assert not list(tmp_path.iterdir())


def test_adapters_are_part_of_the_weights_and_stay_as_they_are():
    pytest.importorskip("peft")
    model, tokenizer = tiny.fresh(0, **SMALL)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    policy = Policy(with_adapters(model, Lora(2, 4.0, ("q_proj",)), 0), tokenizer)
    assert set(dict(weights_of(policy, torch.float32))) < set(plain)  # without the head, which is the embedding
    before = fingerprint_of(policy, torch.float32)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.5
    state = {name: value.clone() for name, value in policy.model.state_dict().items()}
    found = dict(weights_of(policy, torch.float32))
    assert fingerprint_of(policy, torch.float32) != before
    ids = torch.tensor([[3, 4, 5, 6]])
    wanted = policy.model(ids).logits
    fresh, _ = tiny.fresh(0, **SMALL)
    fresh.load_state_dict(found, strict=False)
    assert torch.allclose(fresh(ids).logits, wanted, atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in policy.model.state_dict().items())


# --- freshness ------------------------------------------------------------------------------------------------------------


def test_rollouts_are_the_transformers_engine_s_before_and_after_an_update():
    policy = float_policy()
    ours, theirs = engine_for(policy), TransformersEngine(policy, (END,))
    for _ in range(2):
        for sampling in (Sampling(9, temperature=0.0), Sampling(9, temperature=0.7, top_p=0.9)):
            halved = [Request(r.prompt_ids, tuple(k >> 1 for k in r.keys), r.prefix_ids) for r in some_requests()]
            found, wanted = ours.generate(some_requests(), sampling), theirs.generate(halved, sampling)
            assert [[r.response_ids for r in rs] for rs in found] == [[r.response_ids for r in rs] for rs in wanted]
            assert [[r.finish_reason for r in rs] for rs in found] == [[r.finish_reason for r in rs] for rs in wanted]
        moved(policy)
    assert ours.updates == 2


def test_weights_travel_only_when_they_have_changed():
    policy = float_policy()
    engine = engine_for(policy)
    for _ in range(3):
        engine.update_weights()
        engine.generate(some_requests()[:1], Sampling(4))
    assert engine.backend.calls.count("load") == 1
    next(policy.model.parameters()).data[0, 0] += 1e-6
    engine.generate(some_requests()[:1], Sampling(4))
    assert engine.backend.calls.count("load") == 2


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(keeps_weights=True, says_resident=False), "log-probs of known tokens differ by"),
        (Faults(misreads=True), "other weights arrived than were sent"),
    ],
)
def test_stale_weights_are_an_error_at_the_first_update(faults, words):
    engine = engine_for(float_policy(), faults)
    with pytest.raises(StaleWeights, match=words):
        engine.generate(some_requests(), Sampling(4))


@pytest.mark.parametrize(("size", "words"), [(0.1, "computes with others"), (1e-7, "computes with others")])
def test_stale_weights_are_an_error_at_a_later_update_however_small(size, words):
    policy = float_policy()
    engine = engine_for(policy)
    engine.update_weights()
    engine.backend.faults.keeps_weights = True
    moved(policy, size)
    with pytest.raises(StaleWeights, match=words):
        engine.update_weights()


def test_a_model_whose_weights_are_kept_otherwise_is_checked_by_log_probs_alone():
    policy = float_policy()
    engine = engine_for(policy, Faults(says_resident=False))
    engine.update_weights()
    assert engine.comparable is False
    assert engine.difference < 1e-5
    moved(policy)
    engine.update_weights()
    engine.backend.faults.keeps_weights = True
    moved(policy, seed=1)
    with pytest.raises(StaleWeights, match="log-probs"):
        engine.update_weights()


# --- requests -------------------------------------------------------------------------------------------------------------


def test_a_stop_string_that_the_prefix_began_ends_a_rollout():
    policy = float_policy()
    first = TransformersEngine(policy, (END,)).generate([Request([5, 6], (0,))], Sampling(6, temperature=0.0))[0][0]
    ids = first.response_ids
    stop = policy.tokenizer.decode(ids[1:3])
    request = Request([5, 6], (0,), tuple(ids[:2]))
    found = engine_for(policy).generate([request], Sampling(6, temperature=0.0, stop=(stop,)))[0][0]
    assert (found.response_ids, found.finish_reason) == (ids[2:3], "stop")
    assert len(found.logp) == 1


def test_a_token_without_a_finite_log_prob_is_an_error():
    with pytest.raises(EngineLost, match="no finite log-prob"):
        engine_for(float_policy(), Faults(off=-float("inf"))).generate(some_requests(), Sampling(4))


# --- death ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_an_engine_that_dies_once_is_started_again_in_one_line(at, capsys):
    policy = float_policy()
    wanted = engine_for(policy).generate(some_requests(), Sampling(5))
    engine = engine_for(policy, Faults(dies_at={at}))
    for _ in range(2):
        assert engine.generate(some_requests(), Sampling(5)) == wanted
    assert capsys.readouterr().err == "vantage: a copy: it fell over; it is started again\n"


def test_an_engine_that_dies_twice_is_lost():
    engine = engine_for(float_policy(), Faults(dies_at={0, 2}))
    with pytest.raises(EngineLost, match="it fell over, for the second time"):
        engine.update_weights()


# --- runs -----------------------------------------------------------------------------------------------------------------


def settings(model, out, **changes) -> TrainConfig:
    base = {
        "model": str(model), "out": str(out), "steps": 4, "rollouts_per_step": 8, "max_new_tokens": 10, "eval_every": 0,
        "eval_problems": 4, "samples_every": 0, "checkpoint_every": 2, "learning_rate": 1e-2, "algo": Grpo(), "engine": "vllm",
    }  # fmt: skip
    return TrainConfig(**(base | changes))


def odd(completions, **kwargs):
    return [float(len(c) % 2) for c in completions]


@pytest.fixture
def copies(monkeypatch):
    """Every vLLM in process is a copy; those that were made, and the faults of the next ones."""
    made: list[CopyBackend] = []

    def local(policy, options, dtype, most):
        made.append(CopyBackend(policy))
        return made[-1]

    monkeypatch.setattr("vantage.rollout.vllm_local.LocalVllm", local)
    return made


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("correction", ["none", "token"])
def test_a_run_reports_how_far_engine_and_policy_are_apart(correction, copies, small_model, tmp_path):
    trainer = Trainer(settings(small_model, tmp_path / "run", mismatch_correction=correction), reward_funcs=odd)
    copies[0].faults.off = 0.01
    trainer.train()
    for row in rows(tmp_path / "run")[1:]:
        assert row["policy/mismatch_kl"] == pytest.approx(0.5 * 0.01**2, rel=0.05)
        if correction == "token":
            assert row["policy/mismatch_weight_mean"] == pytest.approx(0.99, abs=1e-3)
        assert ("policy/mismatch_weight_mean" in row) == (correction != "none")
    assert copies[0].calls.count("load") == 5  # before the run, after each of four updates
    assert copies[0].calls[-1] == "close"


def test_the_transformers_engine_reports_nothing_of_the_kind_and_trains_as_before(small_model, tmp_path):
    runs = {}
    for name, changes in {"plain": {}, "corrected": {"mismatch_correction": "token", "mismatch_cap": 1.0}}.items():
        Trainer(settings(small_model, tmp_path / name, engine="transformers", **changes), reward_funcs=odd).train()
        runs[name] = rows(tmp_path / name)
    assert not [key for row in runs["plain"] for key in row if "mismatch" in key]
    assert all(row["policy/mismatch_kl"] < 1e-9 for row in runs["corrected"][1:])
    assert all(row["policy/mismatch_weight_mean"] == pytest.approx(1, abs=1e-5) for row in runs["corrected"][1:])


def test_a_run_goes_on_when_its_engine_dies(copies, small_model, tmp_path, capsys):
    trainer = Trainer(settings(small_model, tmp_path / "run"), reward_funcs=odd)
    copies[0].faults.dies_at = {9}
    trainer.train()
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.count("it fell over; it is started again") == 1


def test_a_run_whose_engine_is_lost_says_how_to_go_on_and_does(copies, small_model, tmp_path):
    out = tmp_path / "run"
    Trainer(settings(small_model, tmp_path / "whole"), reward_funcs=odd).train()
    trainer = Trainer(settings(small_model, out), reward_funcs=odd)
    copies[-1].faults.dies_at = set(range(11, 99))
    with pytest.raises(Abandoned, match=r"for the second time in step 3; the newest checkpoint is .*--resume auto"):
        trainer.train()
    Trainer(settings(small_model, out, resume="auto"), reward_funcs=odd).train()
    kept = [{k: v for k, v in row.items() if k.startswith(("reward/", "policy/", "loss/"))} for row in rows(out)]
    whole = [{k: v for k, v in row.items() if k in kept[i]} for i, row in enumerate(rows(tmp_path / "whole"))]
    assert kept == whole


def test_continuations_and_the_critic_go_through_the_same_kind_of_engine(copies, small_model, tmp_path):
    from tests.genac.made import QUICK
    from vantage.estimators.genac import Genac

    few = {"steps": 1, "checkpoint_every": 0}
    Trainer(settings(small_model, tmp_path / "vine", algo=Vineppo(), **few), reward_funcs=odd).train()
    assert rows(tmp_path / "vine")[1]["tokens/value_extra"] > 0
    assert copies[0].calls.count("complete") >= 3  # evaluation, rollouts, continuations
    del copies[:]
    Trainer(settings(small_model, tmp_path / "genac", algo=Genac(**QUICK), **few), reward_funcs=odd).train()
    policy, critic = copies
    assert policy.asks > 0
    assert critic.asks == rows(tmp_path / "genac")[1]["genac/completions"] > 0
    assert critic.calls[-1] == "close"


def test_a_server_that_was_started_again_in_between_is_given_the_weights_again():
    policy = float_policy()
    engine = engine_for(policy)
    engine.backend.elsewhere = True
    before = engine.generate(some_requests(), Sampling(6))
    engine.backend.close()  # nobody told the engine
    engine.backend.arrived = ""
    assert engine.generate(some_requests(), Sampling(6)) == before
    assert engine.backend.calls.count("load") == 2
    assert engine.generate(some_requests(), Sampling(6)) == before
    assert engine.backend.calls.count("load") == 2


# --- mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--vllm.url", "http://x:1"], "--vllm.url is http://x:1, but --engine is transformers; give vllm"),
        (["--engine", "vllm", "--vllm.gpu-memory-utilization", "1.5"], "must be in (0, 1]"),
        (["--engine", "vllm", "--vllm.sync-dir", "/no/such"], "--vllm.sync-dir /no/such: there is no such folder"),
        (["--mismatch-correction", "token", "--mismatch-cap", "0.5"], "--mismatch-cap is 0.5"),
        (["--engine", "vllm", "--vllm.url", "host:8000"], "--vllm.url is 'host:8000', it must be an address such as"),
    ],
)
def test_mistakes_are_one_line(flags, words, capsys, tmp_path):
    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_missing_vllm_is_one_line_with_the_command_that_installs_it(monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))
    assert main(["train", "--engine", "vllm", "--out", str(tmp_path / "run")]) == 2
    assert "needs the package vllm: pip install 'vantage-rl[vllm]'" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_lost_in_one_line(small_model):
    policy = float_policy()
    remote = RemoteVllm("http://127.0.0.1:9", timeout=0.1)
    engine = VllmEngine(policy, (END,), remote, VllmOptions(), torch.float32)
    with pytest.raises(EngineLost, match=r"vLLM at http://127.0.0.1:9: it does not answer .*, for the second time"):
        engine.update_weights()


def test_processes_with_a_vllm_of_their_own_can_not_spread_it(small_model):
    from vantage.distributed.world import World

    world = World()
    world.size = 2
    config = TrainConfig(engine="vllm", vllm_tensor_parallel_size=2)
    with pytest.raises(UserError, match=r"--vllm.tensor-parallel-size is 2: with several processes"):
        factory.make_engine(float_policy(), (END,), config, world)


# --- inside of the worker ---------------------------------------------------------------------------------------------------


def test_the_worker_tells_what_arrived_and_what_it_computes_with(tmp_path):
    policy = float_policy()
    target = float_policy(1)

    class Runner:
        def get_model(self):
            return target.model

    class Parallel:
        world_size = 1

    target.model.load_weights = lambda found: target.model.load_state_dict(dict(found), strict=False)
    worker = VantageWorker()
    worker.model_runner, worker.parallel_config, worker.device = Runner(), Parallel(), torch.device("cpu")
    assert worker.vantage_state()["arrived"] == ""
    with written(policy, torch.float32, str(tmp_path)) as folder:
        state = worker.vantage_load(str(folder))
    assert state == {"arrived": fingerprint_of(policy, torch.float32), "resident": state["arrived"], "updates": 1}
    Parallel.world_size = 2
    assert worker.vantage_state()["resident"] is None


def test_log_probs_are_those_before_top_p_even_if_sampling_writes_into_the_logits():
    class Inner(torch.nn.Module):
        def forward(self, logits, generators, k, p):
            logits.fill_(-torch.inf)
            return torch.zeros(2, dtype=torch.long), None

    logits = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    wanted = logits.log_softmax(-1)
    token, logp = BeforeTruncation(Inner())(logits, {}, None, None)
    assert torch.equal(logp, wanted)
    assert token.tolist() == [0, 0]
