"""The world `programs`: a safe evaluator, problems that are what they say, solutions that are right, slips that go on."""

from __future__ import annotations

import random
import time

import pytest

from vantage import tiny
from vantage.errors import UserError
from vantage.tasks import get_task
from vantage.tasks.expressions import MAX_VALUE, ExpressionError, parse
from vantage.tasks.programs import (
    SPLITS,
    Polynomial,
    Programs,
    derivation,
    is_held_out,
    meets,
    parse_prompt,
    programs_reward,
    prompt_of,
)  # fmt: skip

SPECS = ["programs", "programs:larger", "programs:curves"]


def rewards(task: Programs, problems, texts) -> list[float]:
    columns = {name: [p.columns[name] for p in problems] for name in ("examples", "hidden", "answer")}
    return task.reward_funcs[0](completions=texts, prompts=[p.prompt for p in problems], **columns)


@pytest.mark.parametrize(
    ("text", "x", "value"),
    [
        ("7", 5, 7), ("x", 5, 5), ("2*x+3", 4, 11), ("x*x-1", 3, 8), ("(x+1)*5-2", 4, 23), ("-x", 2, -2), ("--x", 2, 2),
        ("3-2-1", 0, 0), ("2+3*4", 0, 14), ("(2+3)*4", 0, 20), ("2*-x", 3, -6), ("((x))", 9, 9), ("007", 0, 7),
        ("x-(x-1)", 50, 1),
    ],
)  # fmt: skip
def test_expressions_mean_what_arithmetic_says(text, x, value):
    assert parse(text)(x) == value


HOSTILE = [
    "", " ", "x ", "y", "2x", "x x", "2**x", "9**9**9", "x/0", "x//2", "x%2", "(x", "x)", "()", "+x", "x+", "1234567", "x.real",
    "__import__('os').system('true')", "lambda:0", "x if x else 0", "1e3", "0x10", "1_000", "٣*x", "²", "x\n", "\x00", "None",
    "(" * 100_000, "(" * 20 + "x" + ")" * 20, "-" * 60 + "x", "x*" * 50_000 + "x", "[x for x in range(9)]", "a" * 10**6,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_expression_is_refused_at_once(text):
    start = time.perf_counter()
    with pytest.raises(ExpressionError):
        parse(text)(1)
    assert not meets(text, [(1, 1)])
    assert time.perf_counter() - start < 0.5


def test_values_are_bounded():
    assert parse("999999*999")(0) == 998999001 < MAX_VALUE
    with pytest.raises(ExpressionError, match="a value beyond"):
        parse("x*x*x*x*x*x*x")(10**3)
    with pytest.raises(ExpressionError, match="a value beyond"):
        parse("x")(10**10)


@pytest.mark.parametrize(
    ("polynomial", "text"),
    [((0, 5, 3), "5*x+3"), ((0, 1, -2), "x-2"), ((0, 4, 0), "4*x"), ((1, 0, 7), "x*x+7"), ((1, 3, 1), "x*x+3*x+1"),
     ((0, 0, 7), "7"), ((0, 0, 0), "0"), ((1, 1, 0), "x*x+x")],
)  # fmt: skip
def test_a_polynomial_is_written_as_an_expression_that_computes_it(polynomial, text):
    function = Polynomial(*polynomial)
    assert str(function) == text
    assert [parse(text)(x) for x in range(20)] == [function(x) for x in range(20)]


def test_derivations_by_hand():
    assert derivation([(4, 23), (5, 28), (2, 13)]) == [
        "28-23=5", "5*4=20", "23-20=3", "5*2=10", "10+3=13", ">5*x+3",
    ]  # fmt: skip
    assert derivation([(5, 13), (6, 16), (9, 25)]) == [
        "16-13=3", "3*5=15", "15-13=2", "3*9=27", "27-2=25", ">3*x-2",
    ]  # fmt: skip
    # A line through the first two examples misses the third: what is left after x² is constant.
    assert derivation([(2, 9), (3, 14), (5, 30)])[-4:] == ["25-1=24", "2*2=4", "9-4=5", ">x*x+5"]
    assert derivation([(2, 13), (3, 20), (5, 40)], curves=True)[-1] == ">x*x+2*x+5"


@pytest.mark.parametrize("spec", SPECS)
def test_solutions_are_right_and_short_enough(spec):
    task = get_task(spec)
    problems = [task.train[i] for i in range(400)]
    texts = [task.solution(p) for p in problems]
    assert rewards(task, problems, texts) == [1.0] * 400
    assert max(map(len, texts)) < task.max_new_tokens
    assert set("".join(texts) + "".join(p.prompt for p in problems)) <= set(task.alphabet)
    assert set(task.alphabet) <= set(tiny.CHARACTERS)


def test_every_expression_of_the_function_is_right_and_others_are_not():
    task = get_task("programs")
    problem = next(
        p
        for p in (task.train[i] for i in range(50))
        if p.columns["answer"].count("x") == 1 and "*" in p.columns["answer"]
    )
    slope, _, rest = problem.columns["answer"].partition("*x")
    texts = [
        f">{slope}*x{rest}", f"thoughts\n>x*{slope}{rest}", f">(x+1)*{slope}{rest}-{slope}", f">1>{slope}*x{rest}",
        f">{slope}*x{rest}+1", f"{slope}*x{rest}", f">{slope}*x{rest}\n", f">{slope}*x{rest}>", ">", "",
    ]  # fmt: skip
    assert rewards(task, [problem] * 10, texts) == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    conversation = [[{"role": "assistant", "content": texts[0]}]]
    assert rewards(task, [problem], conversation) == [1]


def test_meeting_the_shown_examples_alone_is_not_enough():
    shown = [[1, 3], [2, 5], [3, 7]]
    trick = "2*x+1+(x-1)*(x-2)*(x-3)"
    assert meets(trick, shown)
    found = programs_reward(
        completions=[f">{trick}", ">2*x+1"], examples=[shown] * 2, hidden=[[[10, 21], [13, 27]]] * 2
    )
    assert found == [0.0, 1.0]


@pytest.mark.parametrize("spec", SPECS)
def test_no_function_of_the_evaluation_is_trained_on(spec):
    task = get_task(spec)
    held = task.evaluation(500)
    trained = {task.train[i].columns["answer"] for i in range(3000)}
    assert not trained & {p.columns["answer"] for p in held}
    assert len({p.prompt for p in held}) == 500
    assert [p.prompt for p in held[:20]] == [p.prompt for p in get_task(spec).evaluation(20)]
    assert task.train[7] == get_task(spec).train[7]


def test_kinds_of_functions_come_in_equal_shares():
    task = get_task("programs")
    answers = [task.train[i].columns["answer"] for i in range(500)]
    assert sum(a.startswith("x*x") for a in answers) == 100
    assert sum("-" in a for a in answers) == 100
    assert sum(a.startswith("x+") for a in answers) == 100
    assert 0.1 < sum(is_held_out(Polynomial(0, a, b)) for a in range(40) for b in range(40)) / 1600 < 0.3


def test_slips_make_wrong_demonstrations_that_follow_from_the_slip():
    task = get_task("programs")
    problems = [task.train[i] for i in range(600)]
    draw = random.Random(0)
    texts = [task.demonstration(p, 0.12, draw) for p in problems]
    assert 0.4 < sum(rewards(task, problems, texts)) / 600 < 0.6
    assert [task.demonstration(p, 0.0, draw) for p in problems] == [task.solution(p) for p in problems]
    slipped = next(t for t, p in zip(texts, problems) if t.splitlines()[0] != task.solution(p).splitlines()[0])
    difference = slipped.splitlines()[0].partition("=")[2]
    assert slipped.splitlines()[1].startswith(f"{difference}*")


def test_prompts_are_read_back():
    examples = [(4, 23), (5, 28), (2, 13)]
    assert prompt_of(examples) == "4:23 5:28 2:13="
    assert parse_prompt("4:23 5:28 2:13=") == examples
    for wrong in ("4:23 5:28 2:13", "4:23 6:28 2:13=", "4:23 5:28=", "4:23 5:28 2:x=", "17+5=", "٤:2 5:3 6:4="):
        assert parse_prompt(wrong) is None
        assert get_task("programs").solution(type(get_task("programs").train[0])(wrong)) is None


def test_a_wrong_split_is_answered_with_what_there_is():
    with pytest.raises(UserError, match=r"programs has no split 'larget', did you mean 'larger'\?"):
        get_task("programs:larget")
    assert set(SPLITS) == {"", "larger", "curves"}
