"""The looks before and at the start of training: each finding where it is due, silence where all is well."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers import SMALL, small_policy
from tests.odd import odd_length
from vantage import Grpo, Problem, Rloo, Task, TrainConfig, Trainer, UserError, tiny
from vantage.preflight import (
    Finding,
    check_answers,
    check_prompts,
    check_template,
    context_length,
    first_rollouts,
    first_step,
    shown,
)  # fmt: skip
from vantage.tasks.sums import sums_reward
from vantage.verifiers.code import CodeVerifier
from vantage.workload import Workload

CONFIG = TrainConfig(max_new_tokens=20)
SUMS = Workload.of("sums")


def problems(*prompts: object, **columns: object) -> list[Problem]:
    return [Problem(p, columns) for p in prompts]


def of(findings: list[Finding]) -> str:
    return "\n".join(map(str, findings))


class Faulty(Task):
    name, version = "faulty", "1"
    reward_funcs = (sums_reward,)
    train = (Problem("1+1=", {"answer": "2"}), Problem("1+2=", {"answer": "4"}))

    def __init__(self, solution: str | None = ">2") -> None:
        self._solution = solution

    def solution(self, problem: Problem) -> str | None:
        return self._solution

    def complaint(self, problem: Problem) -> str | None:
        return None if problem.columns["answer"] == "2" else "1+2= is not 4"


# --- prompts --------------------------------------------------------------------------------------------------------


def test_one_prompt_is_shown_with_its_length_and_the_limits():
    (found,) = check_prompts(small_policy(), problems("17+5=", "1+1="), CONFIG)
    assert found.level == "note"
    assert str(found) == "first prompt: '17+5=' (5 tokens; up to 20 new ones, the model has 1024 positions)"


def test_a_prompt_that_does_not_fit_the_model_is_a_mistake_that_names_it():
    with pytest.raises(
        UserError, match="the prompt of problem 1 has 1030 tokens, but the model has only 1024 positions"
    ):
        check_prompts(small_policy(), problems("1+1=", "1" * 1030), CONFIG)


def test_a_response_that_would_not_fit_is_a_mistake_that_says_how_long_it_may_be():
    config = replace(CONFIG, max_new_tokens=1000)
    assert check_prompts(small_policy(), problems("1" * 24), config)
    message = r"--max-new-tokens is 1000: .* \(25 tokens, problem 1\) .* 1024 positions; give at most 999"
    with pytest.raises(UserError, match=message):
        check_prompts(small_policy(), problems("1", "1" * 25), config)


def test_a_model_that_names_no_context_is_not_checked():
    policy = SimpleNamespace(tokenizer=tiny.tokenizer(), text_config=SimpleNamespace(max_position_embeddings=None))
    assert context_length(policy) is None
    assert "positions" not in of(check_prompts(policy, problems("1" * 2000), CONFIG))
    assert context_length(small_policy()) == 1024


def test_long_texts_are_shown_without_their_middle():
    assert shown("a\nb") == "'a\\nb'"
    long = shown("x" * 500 + "end")
    assert len(long) < 140
    assert "[…]" in long
    assert long.endswith("end'")


# --- chat templates -------------------------------------------------------------------------------------------------


def test_what_happens_to_plain_prompts_is_said_where_it_matters():
    tokenizer = tiny.tokenizer()
    assert check_template(tokenizer, "tiny", problems("a"), "auto") == []
    (found,) = check_template(tokenizer, "org/Model-1B-Instruct", problems("a"), "auto")
    assert found.level == "warning"
    assert "has no chat template" in str(found)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    (found,) = check_template(tokenizer, "org/Model-1B-Instruct", problems("a"), "auto")
    assert (found.level, "--chat-template never" in str(found)) == ("note", True)
    (found,) = check_template(tokenizer, "m", problems("a"), "never")
    assert "is not used" in str(found)
    assert check_template(tokenizer, "m", problems([{"role": "user", "content": "a"}]), "auto") == []


@pytest.mark.parametrize("name", ["google/gemma-3-1b-it", "Qwen2.5-0.5B-instruct", "a/b-chat"])
def test_names_of_chat_models(name):
    assert check_template(tiny.tokenizer(), name, problems("a"), "auto")


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "./bits", "italian"])
def test_other_names(name):
    assert check_template(tiny.tokenizer(), name, problems("a"), "auto") == []


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["sums", "sums:three-digits", "programs", "programs:curves", "tools", "instructions"])
def test_embedded_worlds_have_no_fault(spec):
    work = Workload.of(spec)
    assert check_answers(work, [work.task.train[i] for i in range(50)]) == []


def test_a_task_s_complaint_is_passed_on():
    task = Faulty(None)
    found = of(check_answers(Workload.of(task), list(task.train)))
    assert found == "warning: 1 of the first 2 problems have a fault: 1+2= is not 4; correct or leave them out"


def test_a_verifier_s_complaint_about_the_columns_is_passed_on():
    class Judge:
        def __call__(self, completions, **columns):
            return [0.0] * len(completions)

        def complaint(self, columns):
            return CodeVerifier().complaint(columns)

    data = problems("a", tests=["assert f(1) == 1"]) + problems("b", tests="")
    task = Faulty(None)
    task.complaint = lambda problem: None
    found = of(check_answers(Workload.of(task, functions=[sums_reward, Judge()]), data))
    assert found.startswith("warning: 1 of the first 2 problems have a fault: no column with tests: needs inputs and")


def test_a_verifier_that_can_judge_no_problem_ends_the_run_before_it_begins():
    rows = [*problems("a", note="x"), *problems("b", note="y")]
    task = Faulty(None)
    task.complaint = lambda problem: None
    with pytest.raises(
        UserError, match=r"--reward: none of the first 2 problems of .* can be judged: there is no reference"
    ):
        check_answers(Workload.of(task, ["math"]), rows)
    with pytest.raises(UserError, match=r"none of the first 2 problems of .* can be judged: no column with tests"):
        check_answers(Workload.of(task, ["code"]), rows)
    assert "2 of the first 2 problems have a fault" in of(check_answers(Workload.of(task, ["math", "code"]), rows))
    mixed = [*problems("a", answer="1"), *problems("b", note="y")]
    assert "1 of the first 2 problems have a fault" in of(check_answers(Workload.of(task, ["math"]), mixed))


def test_a_solution_that_earns_nothing_means_a_reward_that_does_not_fit():
    task = Faulty(">2")
    found = of(check_answers(Workload.of(task), [task.train[0]]))
    assert found == ""
    found = of(check_answers(Workload.of(task), [replace(task.train[0], columns={"answer": "2", "x": 1})] * 2))
    assert found == ""
    wrong = Faulty("two")
    found = of(check_answers(Workload.of(wrong), [wrong.train[0]]))
    assert "the task's own solution of '1+1=' earns 0; the reward function does not fit the task" in found

    def broken(completions, **kwargs):
        raise ValueError("no verifier")

    found = of(check_answers(Workload.of(wrong, functions=[broken]), [wrong.train[0]]))
    assert "earns nothing that can be scored" in found
    assert "no verifier" in found


@pytest.mark.parametrize("empty", [None, "", []])
def test_empty_answers_are_counted(empty):
    data = [*problems("a", answer="1"), *problems("b", answer=empty), *problems("c", answer=empty)]
    work = Workload.of(Faulty(None))
    work.task.complaint = lambda problem: None
    assert "the column 'answer' is empty in 2 of the first 3 problems" in of(check_answers(work, data))


# --- the first rollouts ---------------------------------------------------------------------------------------------

CASES = {
    "all is well": (["a", "b"], [1.0, 0.0], 0.0, ""),
    "truncated a little": (["a", "b"], [1.0, 0.0], 0.5, ""),
    "all truncated": (["a", "b"], [1.0, 0.0], 1.0, "all 2 responses ran into --max-new-tokens 20; raise it"),
    "most truncated": (["a", "b", "c"], [1.0, 0.0, 0.0], 2 / 3, "67% of 3 responses ran into --max-new-tokens 20"),
    "none right": (["a", "b"], [0.0, 0.0], 0.0, "not one of 2 responses was rewarded (the first one is 'a')"),
    "all right": (["a", "b"], [1.0, 1.0], 0.0, "all 2 responses got the full reward"),
    "all the same": (["a", "b"], [0.5, 0.5], 0.0, "all 2 responses got the same reward 0.5"),
    "unscorable": (["a", "b"], [math.nan, math.nan], 0.0, "none of 2 responses could be scored (because)"),
    "mostly unscorable": (
        ["a"] * 5,
        [math.nan] * 3 + [0.0, 1.0],
        0.0,
        "only 2 of 5 responses could be scored (because)",
    ),
    "some unscorable": (["a"] * 4, [math.nan, 1.0, 0.0, 0.0], 0.0, ""),
    "empty": (["", " ", "c"], [1.0, 0.0, 0.0], 0.0, "2 of 3 responses are empty"),
    "nothing": ([], [], 0.0, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_first_rollouts(case):
    texts, outcome, truncated, expected = CASES[case]
    found = of(first_rollouts(texts, outcome, truncated, SUMS, CONFIG, ["because"]))
    assert found == "" if not expected else found.startswith(f"warning: {expected}")


def test_groups_that_teach_nothing():
    config = TrainConfig(algo=Grpo())
    assert first_step({"groups/zero_advantage": 0.9}, config) == []
    assert "more than 8 rollouts per prompt" in of(first_step({"groups/zero_advantage": 1.0}, config))
    assert of(first_step({"groups/filtered": 1.0}, config)).startswith(
        "warning: in the first step every prompt's rewards"
    )


# --- in a run -------------------------------------------------------------------------------------------------------


def run(model: Path, out: Path, **changes) -> None:
    settings = {
        "model": str(model), "out": str(out), "steps": 1, "rollouts_per_step": 8, "max_new_tokens": 6, "eval_problems": 0,
        "algo": Rloo(), "samples_every": 0,
    }  # fmt: skip
    functions = changes.pop("functions", [odd_length])
    Trainer(TrainConfig(**(settings | changes)), reward_funcs=functions).train()


def zero(completions, **kwargs):
    return [0.0] * len(completions)


def test_a_sound_run_shows_its_first_prompt_and_no_warning(small_model, tmp_path, capsys):
    run(tiny.ASSET, tmp_path / "run", max_new_tokens=80, functions=None, rollouts_per_step=64)
    said = capsys.readouterr().err
    assert said.count("first prompt: '") == 1
    assert "warning" not in said


@pytest.mark.parametrize("evaluated", [0, 20])
def test_a_run_without_rewards_is_warned_of_once(evaluated, small_model, tmp_path, capsys):
    run(small_model, tmp_path / "run", functions=[zero], eval_problems=evaluated)
    said = capsys.readouterr().err
    assert said.count("warning: not one of") == 1
    assert said.count("warning: in the first step every prompt's rewards were equal") == 1


def test_nothing_is_written_for_a_prompt_that_does_not_fit(tmp_path):
    model, tokenizer = tiny.fresh(0, **{**SMALL, "max_position_embeddings": 20})
    model.save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(UserError, match="--max-new-tokens is 6"):
        run(tmp_path / "short", tmp_path / "run")
    assert not (tmp_path / "run").exists()
