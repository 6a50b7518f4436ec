"""The world `tools`: requests that are what they say, solutions that are right, slips that go on."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from vantage import tiny
from vantage.errors import UserError
from vantage.tasks import Problem, get_task, task_names
from vantage.tasks.toolcalls import SPLITS, VERBS, ToolCalls, follow, is_held_out, written

SPECS = ["tools", "tools:larger", "tools:more-calls"]


def rewards(task: ToolCalls, problems, texts) -> list[float | None]:
    return task.reward_funcs[0](
        completions=texts, prompts=[p.prompt for p in problems], calls=[p.columns["calls"] for p in problems]
    )


def test_requests_by_hand():
    assert follow("add 7 figs:") == [("add", "fig", 7)]
    assert follow("add 7 figs, 5 more eggs, ship to oslo:") == [
        ("add", "fig", 7),
        ("add", "egg", 12),
        ("ship", "oslo", 0),
    ]
    assert follow("sell 9 nuts, keep twice as many pens, 4 fewer hats:") == [
        ("sell", "nut", 9), ("keep", "pen", 18), ("keep", "hat", 14),
    ]  # fmt: skip
    assert follow("keep 9 nuts, as many pens, 30 pies:") == [
        ("keep", "nut", 9),
        ("keep", "pen", 9),
        ("keep", "pie", 30),
    ]


@pytest.mark.parametrize(
    "prompt",
    ["", ":", "add 7 figs", "7 figs:", "add 3 more figs:", "add twice as many figs:", "add 7 cars:", "ship to oslo:",
     "add figs:", "ship to oslo, add 7 figs:", "add 7 figs, ship to mars:", "add 7 fig:", "17+5=", "add ٧ figs:"],
)  # fmt: skip
def test_other_text_is_no_request(prompt):
    assert follow(prompt) is None
    assert get_task("tools").solution(Problem(prompt)) is None
    assert get_task("tools").demonstration(Problem(prompt), 0.5, random.Random(0)) is None


@pytest.mark.parametrize("spec", SPECS)
def test_solutions_are_right_and_short_enough(spec):
    task = get_task(spec)
    problems = [*(task.train[i] for i in range(400)), *task.evaluation(100)]
    texts = [task.solution(p) for p in problems]
    assert rewards(task, problems, texts) == [1.0] * 500
    assert [task.complaint(p) for p in problems] == [None] * 500
    assert max(map(len, texts)) < task.max_new_tokens
    assert set("".join(texts) + "".join(p.prompt for p in problems)) <= set(task.alphabet) <= set(tiny.CHARACTERS)
    assert task.name == spec
    assert spec in task_names()


def test_what_is_rewarded():
    task = get_task("tools")
    problem = Problem("add 7 figs, ship to oslo:", {"calls": [
        {"name": "add", "arguments": {"n": 7, "of": "fig"}}, {"name": "ship", "arguments": {"to": "oslo"}},
    ]})  # fmt: skip
    right = task.solution(problem)
    assert right == '{"add":{"n":7,"of":"fig"}}\n{"ship":{"to":"oslo"}}'
    first, second = right.split("\n")
    texts = [
        right, '{"add":{"of":"fig","n":7}} {"ship":{"to":"oslo"}}', f"[{first},{second}]",
        json.dumps(problem.columns["calls"]), f"{second}\n{first}", first, f"{right}\n{second}", f"{right}\n{{",
        right.replace("7", '"7"'), right.replace("fig", "figs"), right.replace("7", "8"), right.replace("oslo", "rome"), "",
    ]  # fmt: skip
    assert rewards(task, [problem] * 13, texts) == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert rewards(task, [problem], [[{"role": "assistant", "content": right}]]) == [1]
    assert "has the calls" in (task.complaint(Problem(problem.prompt, {"calls": []})) or "")


@pytest.mark.parametrize("spec", SPECS)
def test_no_list_of_calls_of_the_evaluation_is_trained_on(spec):
    task = get_task(spec)
    held = task.evaluation(500)
    assert all(is_held_out(follow(p.prompt)) for p in held)
    assert not any(is_held_out(follow(task.train[i].prompt)) for i in range(1500))
    assert len({p.prompt for p in held}) == 500
    assert [p.prompt for p in held[:20]] == [p.prompt for p in get_task(spec).evaluation(20)]
    assert task.train[7] == get_task(spec).train[7]


def test_the_generator_gives_the_same_problems_on_every_machine():
    assert [get_task("tools").train[i].prompt for i in range(3)] == ["add 3 pens:", "drop 22 cups, ship to oslo:",
        "keep 54 nuts, twice as many cups:"]  # fmt: skip


def test_kinds_of_requests_come_in_equal_shares_and_one_in_five_is_held_out():
    task = get_task("tools")
    counts = [len(task.train[i].columns["calls"]) for i in range(500)]
    assert [counts.count(n) for n in (1, 2, 3)] == [100, 200, 200]
    held = sum(is_held_out([(verb, "fig", n)]) for verb in VERBS for n in range(2, 202))
    assert 0.16 < held / 800 < 0.24
    larger = get_task("tools:larger")
    assert max(c["arguments"].get("n", 0) for i in range(300) for c in larger.train[i].columns["calls"]) > 200
    assert {len(get_task("tools:more-calls").train[i].columns["calls"]) for i in range(50)} == {4}


def test_slips_make_wrong_demonstrations_that_follow_from_the_slip():
    task = get_task("tools")
    problems = [task.train[i] for i in range(600)]
    draw = random.Random(0)
    texts = [task.demonstration(p, 0.25, draw) for p in problems]
    assert 0.45 < sum(rewards(task, problems, texts)) / 600 < 0.65
    assert [task.demonstration(p, 0.0, draw) for p in problems] == [task.solution(p) for p in problems]
    assert sum(rewards(task, problems, [task.demonstration(p, 1.0, draw) for p in problems])) == 0
    seven = follow("add 7 figs, 5 more eggs:", lambda step: (step[0], step[1], 9) if step[2] == 7 else step)
    assert list(map(written, seven)) == ['{"add":{"n":9,"of":"fig"}}', '{"add":{"n":14,"of":"egg"}}']
    kept = follow("add 7 figs, 5 fewer eggs:", lambda step: (*step[:2], 1) if step[2] == 7 else step)
    assert kept[1] == ("add", "egg", 1)


def test_a_wrong_split_is_answered_with_what_there_is():
    with pytest.raises(UserError, match=r"tools has no split 'largr', did you mean 'larger'\?"):
        get_task("tools:largr")
    with pytest.raises(UserError, match=r"tools has no split 'zzz'; it has: larger, more-calls$"):
        get_task("tools:zzz")
    assert set(SPLITS) == {"", "larger", "more-calls"}


def test_importing_the_world_stays_light():
    code = (
        "import sys; from vantage.tasks import get_task; t = get_task('tools'); "
        "t.reward_funcs[0]([t.solution(t.train[0])], calls=[t.train[0].columns['calls']]); "
        "print({'torch', 'transformers', 'numpy', 'asyncio', 'jsonschema'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
