"""What `vantage eval` measures, compares, prints and writes; several benchmarks together."""

from __future__ import annotations

import itertools
import json

import datasets
import numpy as np
import pytest

from tests.helpers import small_policy, together
from vantage.cli import main
from vantage.config import EvalConfig, TrainConfig
from vantage.errors import UserError
from vantage.evaluation.command import benchmarks_of, differences, per_problem
from vantage.evaluation.scoring import (
    Benchmark,
    Evaluation,
    eval_metrics,
    evaluate_all,
    mean_interval,
    short_name,
    training_benchmarks,
)
from vantage.evaluation.statistics import Z95, majority_at_k, pass_at_k
from vantage.models.loading import end_token_ids
from vantage.protocols import PRESETS, eval_tasks
from vantage.rewards import verifiers
from vantage.rollout.engine import Sampling
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.summary import evaluation_flags
from vantage.tasks.catalog import CATALOG
from vantage.trainer import Trainer
from vantage.workload import Workload

REWARD = """
def parity(completions, **kwargs):
    return [len(c) % 2 for c in completions]

def picky(completions, **kwargs):
    return [len(c) % 2 if len(c) > 3 else float("nan") for c in completions]
"""


def evaluation(scores, votes=(), lengths=None, truncated=None) -> Evaluation:
    score_PK = np.array(scores, dtype=float)
    length_PK = np.ones(score_PK.shape, dtype=int) if lengths is None else np.array(lengths)
    cut_PK = np.zeros(score_PK.shape, dtype=bool) if truncated is None else np.array(truncated)
    return Evaluation(score_PK, length_PK, cut_PK, [["r"] * score_PK.shape[1]] * len(score_PK), list(votes))


def read(folder):
    result = json.loads((folder / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
    return result, rows


@pytest.fixture
def reward(tmp_path) -> str:
    (tmp_path / "rewards.py").write_text(REWARD)
    return f"{tmp_path}/rewards.py:parity"


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        _, low, high = mean_interval((draw.random((60, 1)) < 0.3).astype(float))
        covered += low <= 0.3 <= high
    assert 0.91 < covered / 400 < 0.99


def test_unscorable_responses_count_as_wrong():
    found = evaluation([[1, np.nan], [np.nan, np.nan]])
    assert found.accuracy()[0] == 0.25
    assert found.correct_PK.tolist() == [[True, False], [False, False]]


def test_partial_scores_count_in_the_average_and_not_as_passes():
    found = evaluation([[0.5, 1.0]])
    assert found.accuracy()[0] == 0.75
    assert per_problem(found, [1])["pass@k"][1].tolist() == [0.5]


def test_each_problem_has_its_own_pass_and_majority():
    votes = [["7", "7", "8"], ["1", None, None]]
    values = per_problem(evaluation([[1, 1, 0], [0, 0, 0]], votes), [1, 2, 3])
    assert np.allclose([values["pass@k"][k] for k in (1, 2, 3)], [[2 / 3, 0], [1, 0], [1, 0]])
    assert values["pass^k"][2].tolist() == pytest.approx([1 / 3, 0])
    assert values["majority@k"][3].tolist() == [1, 0]
    assert values["majority@k"][2].tolist() == pytest.approx([(1 + 0.5 + 0.5) / 3, 0])


def test_without_answers_there_is_no_majority():
    assert "majority@k" not in per_problem(evaluation([[1, 0]]), [1])
    assert "majority@k" not in per_problem(evaluation([[1, 0]], [[None, None]]), [1])


def test_one_benchmark_has_the_keys_that_training_always_had():
    found = evaluation([[1], [0]], lengths=[[3], [5]], truncated=[[True], [False]])
    row = eval_metrics({"sums": found})
    assert set(row) == {
        "eval/accuracy",
        "eval/accuracy_low",
        "eval/accuracy_high",
        "eval/length_mean",
        "eval/truncated",
    }
    assert (row["eval/accuracy"], row["eval/length_mean"], row["eval/truncated"]) == (0.5, 4.0, 0.5)
    assert row == found.metrics()


def test_several_benchmarks_have_keys_of_their_own_and_a_macro_average():
    first, second = evaluation([[1, 1], [0, 0]]), evaluation([[1, 1], [1, 1], [1, 0], [1, 1]])
    row = eval_metrics({"aime24": first, "math500": second})
    assert (row["eval/aime24/accuracy"], row["eval/math500/accuracy"]) == (0.5, 0.875)
    assert row["eval/accuracy"] == pytest.approx((0.5 + 0.875) / 2)
    error = (np.var([1, 0], ddof=1) / 2 + np.var([1, 1, 0.5, 1], ddof=1) / 4) ** 0.5 / 2
    assert row["eval/accuracy_low"] == pytest.approx(row["eval/accuracy"] - Z95 * error)
    assert len(row) == 15


def test_differences_are_paired_by_problem():
    after = {"a": evaluation([[1, 1], [0, 1]]), "b": evaluation([[1], [1]])}
    before = {"a": evaluation([[0, 1], [0, 1]]), "b": evaluation([[0], [1]])}
    found = differences(after, before, "normal")
    half = Z95 * np.std([0.5, 0], ddof=1) / 2**0.5
    assert found["benchmarks"]["a"] == pytest.approx(
        {"mean": 0.25, "low": 0.25 - half, "high": 0.25 + half, "better": 1, "worse": 0, "equal": 1}
    )
    assert found["macro"]["mean"] == pytest.approx((0.25 + 0.5) / 2)
    assert differences({"a": after["a"]}, before, "normal")["macro"] is None


def test_names_of_benchmarks_are_short():
    specs = ("aime24", "sums:more-terms", "jsonl:/x/data.jsonl", "/x/other.parquet", "hub:owner/name", "hub:o/n:main@t")
    assert [short_name(spec) for spec in specs] == ["aime24", "sums:more-terms", "data", "other", "name", "n:main@t"]
    assert short_name("/x/mine.py:Task") == "mine:Task"


# --- several benchmarks ------------------------------------------------------------------------------------------------


def test_a_benchmark_comes_out_as_it_would_alone_and_on_any_number_of_processes():
    policy = small_policy()
    engine = TransformersEngine(policy, end_token_ids(policy), 64)
    benchmarks = [
        Benchmark.of(spec, problems=count, k=2, max_new_tokens=5) for spec, count in (("sums", 5), ("programs", 3))
    ]
    both = evaluate_all(policy, engine, benchmarks, seed=1)
    alone = evaluate_all(policy, engine, benchmarks[1:], seed=1)
    assert both["programs"].responses == alone["programs"].responses
    for found in together(2, lambda world: evaluate_all(policy, engine, benchmarks, seed=1, world=world)):
        for name in both:
            assert found[name].responses == both[name].responses
            assert found[name].votes == both[name].votes
            assert (found[name].length_PK == both[name].length_PK).all()
            assert (found[name].truncated_PK == both[name].truncated_PK).all()
    assert [len(row) for row in both["sums"].votes] == [2] * 5


def test_a_task_with_rewards_of_its_own_keeps_them_next_to_those_of_training(tmp_path, reward):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(10)))
    own = Benchmark.of("sums", problems=2, fallback_reward=[reward])
    assert own.rewards.names == ("sums_reward",)
    assert Benchmark.of(f"{tmp_path}/data.jsonl", problems=2, fallback_reward=[reward]).rewards.names == ("parity",)
    assert Benchmark.of("sums", problems=2, reward=[reward]).rewards.names == ("parity",)
    with pytest.raises(UserError, match="brings no reward function"):
        Benchmark.of(f"{tmp_path}/data.jsonl", problems=2)


def test_a_reward_that_needs_a_missing_column_is_refused_before_generation(tmp_path):
    (tmp_path / "r.py").write_text("def f(completions, solution):\n    return [0.0] * len(completions)\n")
    with pytest.raises(UserError, match="solution"):
        Benchmark.of("sums", problems=2, reward=[f"{tmp_path}/r.py:f"])


# --- in training -------------------------------------------------------------------------------------------------------

SAMPLING = Sampling(7, 0.9, 0.8, 5, ("x",))


def test_training_is_measured_on_its_own_held_out_problems(reward):
    work = Workload.of("sums", [reward])
    [b] = training_benchmarks(work, SAMPLING, (0.0, 2.0), 3)
    assert (b.name, len(b.problems), b.k, b.sampling, b.reward_range) == ("sums", 3, 1, SAMPLING, (0.0, 2.0))
    assert b.rewards is work.rewards
    assert b.problems == work.task.evaluation(3)
    assert training_benchmarks(work, SAMPLING, (0.0, 1.0), 0, "sums") == []


def test_training_may_be_measured_on_other_tasks(tmp_path, reward):
    rows = [{"question": f"q{i}", "answer": str(i)} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:10]))
    data = {"prompt_column": "question", "prompt_template": "{prompt}!", "system_prompt": "s"}
    work = Workload.of(f"{tmp_path}/train.jsonl", [reward], **data, hold_out=False)
    assert len(work.task.train) == 20
    several = f"{tmp_path}/test.jsonl,sums"
    test, sums = training_benchmarks(work, SAMPLING, (0.0, 1.0), 5, several, [reward], **data)
    assert (test.name, test.rewards.names, len(test.problems)) == ("test", ("parity",), 5)
    assert test.problems[4].prompt[1]["content"] == "q8!"  # every second one of all its rows
    own = f"{tmp_path}/train.jsonl"
    [train] = training_benchmarks(Workload.of(own, [reward], **data), SAMPLING, (0.0, 1.0), 5, own, [reward], **data)
    assert [p.prompt[1]["content"] for p in train.problems] == ["q18!", "q19!"]
    assert (sums.name, sums.rewards.names, len(sums.problems)) == ("sums", ("sums_reward",), 5)
    assert (sums.sampling.max_new_tokens, sums.sampling.temperature, sums.sampling.stop) == (7, 0.9, ())
    with pytest.raises(UserError, match="--eval-task: 'sums,' has an empty name"):
        training_benchmarks(work, SAMPLING, (0.0, 1.0), 5, "sums,")


def test_a_run_measures_itself_on_other_tasks_and_says_how_to_go_on(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{i}+1=", "gold": {"value": str(i + 1)}} for i in range(20)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.py").write_text(
        "def right(completions, prompts, answer, **kwargs):\n"
        "    assert all(p == f'Q {int(a) - 1}+1=' for p, a in zip(prompts, answer))\n"
        "    return [float(a in c) for c, a in zip(completions, answer)]\n"
    )
    config = TrainConfig(
        model=str(small_model), task="d.jsonl", reward=("r.py:right",), prompt_column="question",
        answer_column="gold.value", prompt_template="Q {prompt}", eval_task="d.jsonl,sums", steps=1,
        rollouts_per_step=8, max_new_tokens=6, eval_problems=4, out="run",
    )  # fmt: skip
    summary = Trainer(config).train()
    first, last = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert last["reward/unscorable"] == 0
    for row in (first, last):
        one, other = row["eval/d/accuracy"], row["eval/sums/accuracy"]
        assert row["eval/accuracy"] == pytest.approx((one + other) / 2)
    assert (summary.before.mean, summary.after.mean) == (first["eval/accuracy"], last["eval/accuracy"])
    flags = "--prompt-column question --answer-column gold.value --prompt-template 'Q {prompt}' --max-new-tokens 6 "
    assert summary.flags == flags
    assert f"--task d.jsonl,sums {flags}--k 8" in summary.text()


def test_a_benchmark_of_which_nothing_can_be_judged_is_refused_before_a_model_is_loaded(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "1+1=", "result": "2"}\n' * 20)
    with pytest.raises(UserError, match=r"first 2 problems of .*d.jsonl can be judged: there is no reference answer"):
        Benchmark.of(f"{tmp_path}/d.jsonl", problems=2, reward=["math"])
    assert len(Benchmark.of(f"{tmp_path}/d.jsonl", problems=2, reward=["math"], answer_column="result").problems) == 2


def test_a_misspelt_eval_task_is_said_of_its_own_flag(small_model, tmp_path):
    config = TrainConfig(model=str(small_model), eval_task="sums,sms", out=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"^--eval-task: there is no task 'sms', did you mean 'sums'"):
        Trainer(config)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, ""),
        ({"reward": ("r.py:f", "math")}, "--reward r.py:f --reward math "),
        ({"eval_task": "sums", "reward": ("math",)}, ""),
        ({"eval_task": "d.jsonl", "reward": ("math",)}, "--reward math --rows all "),
        ({"task": "d.jsonl", "eval_task": "d.jsonl", "reward": ("math",)}, "--reward math "),
        ({"task": "d.jsonl", "system_prompt": "Be brief."}, "--system-prompt 'Be brief.' "),
        ({"task": "gsm8k", "enable_thinking": False, "max_new_tokens": 1024}, "--enable-thinking false "),
        ({"task": "gsm8k", "chat_template": "never"}, "--chat-template never "),
        ({"task": "sums", "max_new_tokens": 80}, ""),
        ({"task": "d.jsonl", "max_new_tokens": 512}, ""),
        ({"task": "d.jsonl", "max_new_tokens": 2048}, "--max-new-tokens 2048 "),
        ({"task": "gsm8k", "eval_task": "gsm8k,math500", "max_new_tokens": 1024}, "--max-new-tokens 1024 "),
    ],
)
def test_the_next_evaluation_has_the_flags_that_it_needs(changes, flags):
    assert evaluation_flags(TrainConfig(**changes)) == flags


# --- protocols ---------------------------------------------------------------------------------------------------------


def test_presets_name_known_datasets_and_are_all_offered():
    for protocol in PRESETS.values():
        assert set(protocol.responses) <= set(CATALOG)
        assert protocol.note
    for name in PRESETS:
        assert eval_tasks(EvalConfig("m", preset=name)) == list(PRESETS[name].responses)
    assert eval_tasks(EvalConfig("m")) == ["sums"]
    assert eval_tasks(EvalConfig("m", task="sums,programs", preset="poise")) == ["sums", "programs"]


def test_a_preset_sets_what_flags_leave_open():
    [b] = benchmarks_of(EvalConfig("m", task="sums", preset="vimpo", problems=2))
    assert (b.k, b.sampling.temperature, b.sampling.top_p, b.sampling.max_new_tokens) == (1, 1.0, 0.7, 4096)
    [b] = benchmarks_of(
        EvalConfig("m", task="sums", preset="poise", problems=2, k=3, temperature=0.0, max_new_tokens=9)
    )
    assert (b.k, b.sampling.temperature, b.sampling.top_p, b.sampling.max_new_tokens) == (3, 0.0, 0.95, 9)
    [b] = benchmarks_of(EvalConfig("m", problems=2))
    assert (b.k, b.sampling.temperature, b.sampling.top_p, b.sampling.max_new_tokens) == (32, 0.6, 0.95, 80)


def test_responses_to_a_problem_are_those_of_its_benchmark(tmp_path, monkeypatch):
    monkeypatch.setenv("VANTAGE_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verifiers, "_MAKERS", {"math": Always})
    rows = {"math500": "problem", "aime24": "problem", "aime25": "problem", "olympiadbench": "question"}
    for name, prompt in rows.items():
        (tmp_path / name).mkdir()
        row = {prompt: "q", "answer": "1", "final_answer": ["1"]}
        (tmp_path / name / f"{CATALOG[name].evaluation}.jsonl").write_text(json.dumps(row) + "\n")
    found = benchmarks_of(EvalConfig("m", preset="vimpo"))
    assert {b.name: b.k for b in found} == {"math500": 1, "aime24": 32, "aime25": 32, "olympiadbench": 1}
    with pytest.raises(UserError, match="--pass-k is 4, more than the 1 responses to a problem of math500"):
        benchmarks_of(EvalConfig("m", preset="vimpo", pass_k=(1, 4)))


class Always:
    name, version = "always", "1"

    def score(self, text, columns):
        return 1.0


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_results_and_every_response(small_model, tmp_path, capsys):
    out = tmp_path / "e"
    flags = ["--problems", "5", "--k", "4", "--max-new-tokens", "6", "--out", str(out)]
    assert main(["eval", str(small_model), *flags]) == 0
    result, lines = read(out)
    [row] = result["benchmarks"]
    assert (row["task"], row["avg@k"], row["k"], result["macro"]) == ("sums", 0.0, 4, None)
    assert set(row["pass@k"]) == set(row["pass^k"]) == {"1", "2", "4"}
    assert row["sampling"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "max_new_tokens": 6}
    assert "torch" in result["versions"]
    assert [len(line["responses"]) for line in lines] == [4] * 5
    assert [line["index"] for line in lines] == list(range(5))
    assert "avg@4" in capsys.readouterr().out
    assert main(["eval", str(small_model), *flags]) == 2
    assert "--out" in capsys.readouterr().err


def test_what_is_written_can_be_counted_again(small_model, tmp_path, reward):
    out = tmp_path / "e"
    argv = ["eval", str(small_model), "--problems", "6", "--k", "3", "--max-new-tokens", "6", "--temperature", "1"]
    assert main([*argv, "--reward", reward, "--pass-k", "1", "2", "--out", str(out)]) == 0
    result, lines = read(out)
    [row] = result["benchmarks"]
    assert 0 < row["avg@k"] < 1
    assert row["avg@k"] == pytest.approx(np.mean([line["scores"] for line in lines]))
    pairs = [list(itertools.combinations(line["scores"], 2)) for line in lines]
    assert row["pass@k"]["2"] == pytest.approx(np.mean([np.mean([max(p) for p in one]) for one in pairs]))
    assert row["pass^k"]["2"] == pytest.approx(np.mean([np.mean([min(p) for p in one]) for one in pairs]))
    assert set(row["pass@k"]) == {"1", "2"}
    for line in lines:
        assert line["scores"] == [len(r) % 2 for r in line["responses"]]
        assert line["mean"] == pytest.approx(np.mean(line["scores"]))
        assert line["correct"] == sum(line["scores"])
    assert row["length_mean"] == pytest.approx(np.mean([line["lengths"] for line in lines]))
    assert row["truncated"] == pytest.approx(np.mean([line["truncated"] for line in lines]))


def test_the_embedded_policy_votes(tmp_path):
    out = tmp_path / "e"
    assert main(["eval", "tiny", "--problems", "12", "--k", "4", "--out", str(out)]) == 0
    result, lines = read(out)
    [row] = result["benchmarks"]
    assert 0.2 < row["avg@k"] < 1
    for line in lines:
        assert line["votes"] == [r.rpartition(">")[2] if ">" in r else None for r in line["responses"]]
    expected = np.mean([majority_at_k(line["votes"], line["scores"], 4) for line in lines])
    assert row["majority@k"]["4"] == pytest.approx(expected)
    assert row["majority@k"]["1"] == pytest.approx(row["avg@k"])
    assert row["pass@k"]["2"] == pytest.approx(np.mean([pass_at_k(line["correct"], 4, 2) for line in lines]))


def test_several_benchmarks_and_two_models_in_one_call(small_model, tmp_path, capsys, reward):
    out = tmp_path / "e"
    argv = ["eval", str(small_model), "--task", "sums,sums:more-terms", "--against", "init:tiny", "--problems", "4"]
    argv += ["--k", "2", "--max-new-tokens", "6", "--temperature", "1", "--reward", reward, "--out", str(out)]
    assert main(argv) == 0
    result, lines = read(out)
    assert [row["task"] for row in result["benchmarks"]] == ["sums", "sums:more-terms"]
    assert result["macro"]["avg@k"] == pytest.approx(np.mean([row["avg@k"] for row in result["benchmarks"]]))
    other = result["against"]
    assert other["model"] == "init:tiny"
    mean = {(line["model"], line["task"], line["index"]): line["mean"] for line in lines}
    assert len(mean) == len(lines) == 16
    prompts = {(line["task"], line["index"], str(line["prompt"])) for line in lines}
    assert len(prompts) == 8  # both models get the same problems
    for task in ("sums", "sums:more-terms"):
        change = other["difference"]["benchmarks"][task]
        each = [mean[str(small_model), task, i] - mean["init:tiny", task, i] for i in range(4)]
        assert change["mean"] == pytest.approx(np.mean(each))
        assert change["better"] == sum(d > 0 for d in each)
    assert other["difference"]["macro"]["mean"] == pytest.approx(result["macro"]["avg@k"] - other["macro"]["avg@k"])
    shown = capsys.readouterr()
    assert "macro average" in shown.out
    assert "minus init:tiny" in shown.out
    assert all(len(line) <= 80 for line in shown.out.splitlines() if str(small_model) not in line)
    assert "sums:more-terms, 4 problems × 2 responses" in shown.err


def test_a_model_against_itself_does_not_differ(small_model, tmp_path, reward):
    out = tmp_path / "e"
    argv = ["eval", str(small_model), "--against", str(small_model), "--problems", "4", "--k", "2"]
    assert main([*argv, "--max-new-tokens", "6", "--reward", reward, "--out", str(out)]) == 0
    change = read(out)[0]["against"]["difference"]["benchmarks"]["sums"]
    assert change == {"mean": 0.0, "low": 0.0, "high": 0.0, "better": 0, "worse": 0, "equal": 4}


def test_unscorable_responses_are_counted(small_model, tmp_path, reward):
    out = tmp_path / "e"
    argv = ["eval", str(small_model), "--problems", "8", "--k", "2", "--max-new-tokens", "6", "--temperature", "1"]
    picky = reward.replace("parity", "picky")
    assert main([*argv, "--reward", picky, "--interval", "bootstrap", "--out", str(out)]) == 0
    result, lines = read(out)
    missing = [score is None for line in lines for score in line["scores"]]
    assert result["benchmarks"][0]["unscorable"] == pytest.approx(np.mean(missing))
    assert any(missing)


def test_columns_are_for_the_data_among_several_tasks(tmp_path, reward):
    rows = [{"question": f"q{i}", "info": {"key": str(i)}} for i in range(10)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"prompt_column": "question", "answer_column": "info.key", "reward": (reward,), "problems": 3}
    data, sums = benchmarks_of(EvalConfig("m", task=f"jsonl:{tmp_path}/data.jsonl,sums", **flags))
    assert (data.name, sums.name) == ("data", "sums")
    assert (data.problems[0].prompt, data.problems[0].columns["answer"]) == ("q9", "9")
    assert len(data.problems) == 1  # the tenth that training on it would hold out
    [data] = benchmarks_of(EvalConfig("m", task=f"jsonl:{tmp_path}/data.jsonl", rows="all", **flags))
    assert [problem.prompt for problem in data.problems] == ["q0", "q3", "q6"]
    with pytest.raises(UserError, match=r"^--prompt-column: only data files"):
        benchmarks_of(EvalConfig("m", task="sums", **flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "sums,sms"], "there is no task 'sms', did you mean 'sums'?"),
        (["--task", "sums,,programs"], "has an empty name between its commas"),
        (["--pass-k", "0"], "--pass-k is 0, it must be greater than 0"),
        (["--k", "4", "--pass-k", "8"], "--pass-k is 8, more than the 4 responses to a problem of sums"),
        (["--top-p", "0"], "--top-p is 0.0, it must be in (0, 1]"),
        (["--preset", "posie"], "--preset is 'posie', it must be"),
        (["--system-prompt", "x"], "--system-prompt: the task 'sums' writes its own prompts"),
    ],
)
def test_mistakes_are_one_line(flags, message, capsys):
    assert main(["eval", "tiny", *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
