"""The world `instructions`: constraints that can be met, solutions that meet them, slips that break them."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from vantage import tiny
from vantage.errors import UserError
from vantage.tasks import Problem, get_task, task_names
from vantage.tasks.constraints import (
    SPLITS,
    WORDS,
    Constraints,
    Request,
    choose,
    columns_of,
    is_held_out,
    parse_prompt,
    response,
)  # fmt: skip
from vantage.verifiers.language import language_of

SPECS = ["instructions", "instructions:longer", "instructions:more-constraints"]


def rewards(task: Constraints, problems, texts) -> list[float | None]:
    columns = {name: [p.columns[name] for p in problems] for name in ("instruction_id_list", "kwargs")}
    return task.reward_funcs[0](completions=texts, prompts=[p.prompt for p in problems], **columns)


def problem_of(prompt: str) -> Problem:
    return Problem(prompt, columns_of(parse_prompt(prompt)))


@pytest.mark.parametrize(
    ("prompt", "request_", "right", "wrong"),
    [
        ("3 words, no e, end !:", Request(3, no="e", end="!"), ["fig tuna corn!", "a a a!"], ["fig egg corn!", "fig corn!"]),
        ("3 words, 2+ o, use fig:", Request(3, "", "o", 2, "fig"), ["moon fig a", "Fig oo a"], ["fog fig a", "moon moon a"]),
        ("4 words, caps, quoted:", Request(4, caps=True, layout="quoted"), ['"A B C D"'], ['"A B C d"', "A B C D", '"A B"']),
        ("3 words, end bye, 2 bullets:", Request(3, end="bye", layout="2"), ["* a b\n* bye", "- a\n- b bye"], ["* a b bye"]),
        ("2 words, end now, title:", Request(2, end="now", layout="title"), ["<<a>> now", "<<a>>now"], ["a now", "<<a now>>"]),
        (
            "6 words, no a, 1+ s, use corn, caps, end ?, 3 bullets:",
            Request(6, "a", "s", 1, "corn", True, "?", "3"),
            ["* CORN SUN\n* SKY EGG\n* PIE FIG?"],
            ["* CORN SUN\n* SKY EGG\n* PIE OAK?", "* CORN CUP\n* EGG EGG\n* PIE FIG?"],
        ),
    ],
)  # fmt: skip
def test_prompts_mean_what_they_say(prompt, request_, right, wrong):
    assert parse_prompt(prompt) == request_
    assert str(request_) == prompt
    task, problem = get_task("instructions"), problem_of(prompt)
    assert task.complaint(problem) is None
    assert rewards(task, [problem] * len(right), right) == [1.0] * len(right)
    assert rewards(task, [problem] * len(wrong), wrong) == [0.0] * len(wrong)
    assert rewards(task, [problem], [[{"role": "assistant", "content": right[0]}]]) == [1.0]


@pytest.mark.parametrize(
    "prompt",
    ["", ":", "3 words", "words, no e:", "3 words, end !, no e:", "3 words, no z:", "3 words, use car:", "1 words:", "17+5=",
     "3 words, 2:", "3 words, quoted bullets:", "3 words, no e, no a:", "3 words, 4 bullets:", "٣ words:"],
)  # fmt: skip
def test_other_text_is_no_prompt(prompt):
    assert parse_prompt(prompt) is None
    assert get_task("instructions").solution(Problem(prompt)) is None
    assert get_task("instructions").demonstration(Problem(prompt), 0.5, random.Random(0)) is None
    assert get_task("instructions").complaint(Problem(prompt)) is not None


@pytest.mark.parametrize("spec", SPECS)
def test_solutions_are_right_and_short_enough(spec):
    task = get_task(spec)
    problems = [*(task.train[i] for i in range(400)), *task.evaluation(100)]
    texts = [task.solution(p) for p in problems]
    assert rewards(task, problems, texts) == [1.0] * 500
    assert texts == [task.solution(p) for p in problems]
    assert [task.complaint(p) for p in problems] == [None] * 500
    assert max(map(len, texts)) < task.max_new_tokens
    assert set("".join(texts) + "".join(p.prompt for p in problems)) <= set(task.alphabet) <= set(tiny.CHARACTERS)
    assert task.name == spec
    assert spec in task_names()


def test_contradictions_are_found_whatever_the_draw():
    for asked in (
        Request(2, no="a", use="rat"), Request(2, no="e", end="bye"), Request(2, least="o", times=3, use="fig"),
        Request(3, no="e", least="e", times=1), Request(2, use="fig", end="now", least="s", times=1),
    ):  # fmt: skip
        assert [choose(asked, random.Random(i)) for i in range(20)] == [None] * 20
        assert response(asked, random.Random(0)) is None
        assert "no response to" in (get_task("instructions").complaint(problem_of(str(asked))) or "")
    tight = Request(3, no="a", least="o", times=3)
    assert all("".join(choose(tight, random.Random(i))).count("o") >= 3 for i in range(50))


@pytest.mark.parametrize("spec", SPECS)
def test_no_set_of_constraints_of_the_evaluation_is_trained_on(spec):
    task = get_task(spec)
    held = task.evaluation(500)
    assert all(is_held_out(parse_prompt(p.prompt)) for p in held)
    assert not any(is_held_out(parse_prompt(task.train[i].prompt)) for i in range(1500))
    assert len({p.prompt for p in held}) == 500
    assert [p.prompt for p in held[:20]] == [p.prompt for p in get_task(spec).evaluation(20)]
    assert task.train[7] == get_task(spec).train[7]


def test_the_generator_gives_the_same_problems_on_every_machine():
    task = get_task("instructions")
    assert task.train[1].prompt == "4 words, no o, 1+ a, use kiwi:"
    assert task.solution(task.train[1]) == "hill bun kiwi salt"


def test_numbers_of_constraints_come_in_equal_shares():
    task = get_task("instructions")
    counts = [task.train[i].prompt.count(",") for i in range(300)]
    assert [counts.count(n) for n in (2, 3, 4)] == [100, 100, 100]
    longer, more = get_task("instructions:longer"), get_task("instructions:more-constraints")
    assert {parse_prompt(longer.train[i].prompt).words for i in range(60)} == {7, 8, 9}
    assert {more.train[i].prompt.count(",") for i in range(60)} == {5, 6}
    assert (
        0.16 < sum(is_held_out(Request(n, use=word)) for n in range(2, 10) for word in WORDS) / (8 * len(WORDS)) < 0.24
    )


def test_demonstrations_differ_and_slips_break_them():
    task = get_task("instructions")
    problems = [task.train[i] for i in range(600)]
    draw = random.Random(0)
    exact = [task.demonstration(p, 0.0, draw) for p in problems]
    assert rewards(task, problems, exact) == [1.0] * 600
    assert sum(a != task.solution(p) for a, p in zip(exact, problems)) > 550
    shares = [
        sum(rewards(task, problems, [task.demonstration(p, s, draw) for p in problems])) / 600 for s in (0.14, 0.5)
    ]
    assert 0.42 < shares[0] < 0.6
    assert shares[1] < 0.15


def test_the_words_are_of_no_other_language():
    assert len(set(WORDS)) == len(WORDS)
    assert language_of(" ".join(WORDS)) is None
    assert all(word.isascii() and word.islower() and 2 < len(word) < 5 for word in WORDS)


def test_a_wrong_split_is_answered_with_what_there_is():
    with pytest.raises(UserError, match=r"instructions has no split 'long', did you mean 'longer'\?"):
        get_task("instructions:long")
    assert set(SPLITS) == {"", "longer", "more-constraints"}


def test_importing_the_world_stays_light():
    code = (
        "import sys; from vantage.tasks import get_task; t = get_task('instructions'); p = t.train[0]; "
        "t.reward_funcs[0]([t.solution(p)], **{name: [value] for name, value in p.columns.items()}); "
        "print({'torch', 'transformers', 'numpy', 'asyncio', 'jsonschema'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
