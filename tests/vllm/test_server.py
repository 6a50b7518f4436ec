"""A `vllm serve` in a process of its own: the same tokens and log-probs over HTTP, before and after an update."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.test_world import launched
from tests.vllm.comparing import moved, requests, right_log_probs, same_greedy, tiny_policy
from vantage import tiny
from vantage.errors import UserError
from vantage.models.loading import end_token_ids
from vantage.rollout.engine import EngineLost, Sampling, StaleWeights
from vantage.rollout.options import VllmOptions
from vantage.rollout.vllm_engine import VllmEngine
from vantage.rollout.vllm_server import RemoteVllm
from vantage.rollout.vllm_worker import EXTENSION

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address and process of what `vllm serve` starts; that command itself does not run in the CPU build (0.32)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny.folder("tiny")), "--port", str(port),
        "--host", "127.0.0.1", "--worker-extension-cls", EXTENSION, "--logprobs-mode", "processed_logprobs",
        "--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "PYTHONPATH": str(ROOT / "src"),
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    yield f"http://127.0.0.1:{port}", process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def engine(server, tmp_path_factory):
    policy = tiny_policy()
    options = VllmOptions(url=server[0], sync_dir=str(tmp_path_factory.mktemp("weights")))
    remote = RemoteVllm(server[0], timeout=600)
    return VllmEngine(policy, end_token_ids(policy), remote, options, torch.float32)


def test_the_same_greedy_tokens_and_log_probs_before_and_after_an_update(engine):
    for updates in (1, 2):
        moved(engine.policy)
        same_greedy(engine, engine.policy)
        same_greedy(engine, engine.policy, stop=("=22", "\n>"))
        assert (engine.updates, engine.comparable) == (updates, True)
        assert engine.difference < 1e-5


def test_log_probs_are_those_after_temperature_and_before_top_p_and_top_k(engine):
    right_log_probs(engine, engine.policy, Sampling(24, temperature=1.0))
    right_log_probs(engine, engine.policy, Sampling(24, temperature=1.4, top_p=0.8, top_k=20))


def test_rollouts_of_a_key_are_the_same_again(engine):
    first, second = (engine.generate(requests(engine.policy), Sampling(16)) for _ in range(2))
    assert [[r.response_ids for r in rs] for rs in first] == [[r.response_ids for r in rs] for rs in second]


def test_a_server_that_reads_another_folder_is_found_out(engine, tmp_path, monkeypatch):
    moved(engine.policy)
    load = engine.backend.load
    monkeypatch.setattr(engine.backend, "load", lambda folder: load(tmp_path))
    with pytest.raises((StaleWeights, UserError)):
        engine.update_weights()
    monkeypatch.undo()
    same_greedy(engine, engine.policy)


def test_a_request_that_is_refused_is_one_line(engine):
    from vantage.rollout.engine import Request

    with pytest.raises(UserError, match=r"--vllm.url .*refuses a request"):
        engine.generate([Request(list(range(2, 90)) * 20, (1,))], Sampling(4))


def test_two_processes_that_share_the_models_are_served_by_one_server(engine, server, tmp_path):
    same_greedy(engine, engine.policy)
    flags = {
        "device": "cpu", "sharding": "fsdp2", "engine": "vllm", "vllm.url": server[0], "out": tmp_path / "run", "algo": "grpo",
        "steps": 2, "rollouts-per-step": 64, "max-new-tokens": 64, "learning-rate": 1e-3, "eval-problems": 8, "eval-every": 0,
    }  # fmt: skip
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    processes = launched(["-m", "vantage", "train", *words])
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[0][1][-2000:] + said[1][1][-2000:]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][1:]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["policy/grad_norm"] > 0 for row in rows)
    assert all(row["policy/mismatch_kl"] < 1e-10 for row in rows)  # each step's rollouts are those of its weights
    same_greedy(engine, engine.policy)  # the server has another run's weights by now


def test_a_server_that_dies_for_good_is_lost_in_one_line(engine, server, capfd):
    os.killpg(server[1].pid, signal.SIGKILL)
    server[1].wait()
    engine.backend.timeout = 1.0
    with pytest.raises(EngineLost, match=r"vLLM at http://127.0.0.1:\d+: it does not answer .*, for the second time"):
        engine.generate(requests(engine.policy), Sampling(4))
    assert capfd.readouterr().err.count("it is started again") == 1
