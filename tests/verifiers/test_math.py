r"""The math verifier: a table of references and answers with their scores, and hostile text."""

from __future__ import annotations

import importlib.metadata
import json
import random
import re
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.verifiers.hostile import MB, TEXTS
from vantage.errors import UserError
from vantage.rewards.functions import RewardSet
from vantage.verifiers import math_judge
from vantage.verifiers.base import Verdict, reward_function
from vantage.verifiers.math import LONGEST_REFERENCE, MathVerifier, _settled
from vantage.verifiers.math_answers import find_answer, reference
from vantage.verifiers.math_numbers import number, undressed


@pytest.fixture(scope="module")
def math():
    verifier = MathVerifier(seconds=2.0, workers=2, memory_bytes=512 << 20)
    yield verifier
    verifier.close()


# The table. `fast` says that the answer is settled exactly, without math-verify.

TABLE: list[tuple[str, str, float, str]] = [
    # integers and decimals
    ("42", "42", 1, "fast"),
    ("42", "43", 0, "fast"),
    ("42", "-42", 0, "fast"),
    ("-7", "−7", 1, "fast"),
    ("42", "$42$.", 1, "fast"),
    ("42", "042", 1, "fast"),
    ("204", r"\mathbf{204}", 1, "fast"),
    ("1000", "1,000", 1, "fast"),
    ("1,000,000", "1000000", 1, "fast"),
    ("1000", r"1{,}000", 1, "fast"),
    ("1000", r"1\,000", 1, "fast"),
    ("12", "1 2", 0, "maths"),
    ("12", "1,2", 0, "maths"),
    ("3.50", "3.5", 1, "fast"),
    ("0.5", ".5", 1, "fast"),
    ("1/3", "0.333333", 1, "fast"),
    ("1/3", "0.3333", 0, "fast"),
    ("1000000", "1000000.4", 0, "fast"),
    ("6.67e-11", "0", 0, "fast"),
    (r"6.67 \times 10^{-11}", "6.67e-11", 1, "fast"),
    (r"6.67 \times 10^{-11}", r"2^2-4", 0, "maths"),
    (r"6.67 \times 10^{-11}", r"\frac{6.67}{10^{11}}", 1, "maths"),
    ("100000", "10^5", 1, "fast"),
    ("1024", "2^{10}", 1, "maths"),
    ("120", "5!", 1, "maths"),
    # fractions
    (r"\frac{1}{2}", "1/2", 1, "fast"),
    (r"\frac{1}{2}", r"\dfrac{2}{4}", 1, "fast"),
    (r"\frac{1}{2}", "0.5", 1, "fast"),
    (r"\frac12", r"\tfrac{1}{2}", 1, "fast"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", 1, "fast"),
    (r"\frac{1}{2}", r"\frac{2}{1}", 0, "fast"),
    (r"\frac{3}{2}", r"1\frac{1}{2}", 1, "fast"),
    ("1 1/2", "11/2", 0, "fast"),
    ("5", "5/0", 0, "maths"),
    # percent, money, units
    (r"50\%", "50", 1, "fast"),
    (r"50\%", "0.5", 1, "fast"),
    ("50", r"50\%", 1, "fast"),
    ("50", "0.5", 0, "fast"),
    ("0.5", "50 percent", 1, "fast"),
    ("5", r"\$5.00", 1, "fast"),
    ("5", "5 dollars", 1, "fast"),
    (r"\$5", "5 cents", 0, "fast"),
    ("10", r"10\text{ cm}", 1, "fast"),
    (r"10\text{ cm}", "10 centimeters", 1, "fast"),
    ("10 cm", "10 m", 0, "fast"),
    (r"10\text{ cm}^2", "10 square centimeters", 1, "fast"),
    ("90", r"90^\circ", 1, "fast"),
    ("18", "18 eggs", 1, "fast"),
    ("18", "19 eggs", 0, "maths"),
    ("5000000", "5 million", 1, "fast"),
    ("5", "5 million", 0, "fast"),
    # names of values
    ("5", "x = 5", 1, "fast"),
    ("x=5", "5", 1, "fast"),
    ("x=5", "y=5", 0, "maths"),
    ("5", "2+3=5", 1, "maths"),
    # bases
    ("1011_2", "1011_{2}", 1, "fast"),
    ("1011_2", "1011", 1, "fast"),
    ("1011_2", "1011_3", 0, "fast"),
    # several candidates are none
    ("5", "5 or 6", 0, "maths"),
    ("5", "5, 6", 0, "maths"),
    ("5", r"\{5, 6\}", 0, "maths"),
    ("5", r"\pm 5", 0, "maths"),
    ("5", "4 to 6", 0, "maths"),
    # roots, constants, expressions
    (r"2\sqrt{3}", r"\sqrt{12}", 1, "maths"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", 1, "maths"),
    (r"\sqrt3", r"\sqrt{3}", 1, "fast"),
    (r"\pi", "3.14159265", 1, "maths"),
    (r"\pi", "3.14", 0, "maths"),
    (r"x^2+2x+1", r"(x+1)^2", 1, "maths"),
    (r"x^2+2x+1", r"(x-1)^2", 0, "maths"),
    (r"\binom{5}{2}", "10", 1, "maths"),
    ("3+4i", "4i+3", 1, "maths"),
    (r"\infty", "∞", 1, "fast"),
    # sets, tuples, intervals, matrices, relations
    ("1, 2", "2, 1", 1, "maths"),
    ("1, 2", "1, 2, 3", 0, "maths"),
    ("(1, 2)", r"\left( 1, 2 \right)", 1, "fast"),
    ("(1, 2)", "(2, 1)", 0, "maths"),
    (r"(\frac{1}{2}, 3)", "(0.5, 3)", 1, "maths"),
    ("[1, 2)", "[1,2)", 1, "fast"),
    ("[1, 2)", "(1, 2]", 0, "maths"),
    ("[1, 2)", r"1 \le x < 2", 1, "maths"),
    ("[1, 2)", r"1 < x < 2", 0, "maths"),
    ("1 < x < 2", "(1, 2)", 1, "maths"),
    ("1, 2", "x = 1, x = 2", 1, "maths"),
    (r"(-\infty, 1) \cup (2, \infty)", r"(-\infty,1)\cup(2,+\infty)", 1, "maths"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", 1, "maths"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", 0, "maths"),
    ("y = 2x + 3", "y = 3 + 2x", 1, "maths"),
    ("x^2 + 1 = 0", "x^2 + 3 = 0", 0, "maths"),
    ("x^2 + 1 = 0", "2x^2 + 2 = 0", 1, "maths"),
    ("x < 3", "3 > x", 1, "maths"),
    # words and choices
    (r"\text{Evelyn}", "Evelyn", 1, "fast"),
    (r"\text{east}", r"\text{seat}", 0, "fast"),
    ("yes", r"\text{Yes}.", 1, "fast"),
    ("no solution", "No Solution", 1, "fast"),
    (r"\text{(B)}", "B", 1, "fast"),
    ("B", r"(\text{B})", 1, "fast"),
    ("B", "(C)", 0, "fast"),
    ("B", "B. 42", 1, "fast"),
    ("ab", "ba", 1, "maths"),
    # no answer
    ("5", "", 0, "fast"),
    ("5", r"\text{}", 0, "fast"),
    ("5", "none of these", 0, "maths"),
    ("5", r"\frac{", 0, "maths"),
]


def test_every_answer_of_the_table_has_its_score(math):
    texts = [f"<think>\\boxed{{1}}</think> so \\boxed{{{answer}}}" for _, answer, _, _ in TABLE]
    found = math.judge(texts, [{"answer": gold} for gold, _, _, _ in TABLE])
    wrong = [(row, verdict) for row, verdict in zip(TABLE, found, strict=True) if verdict != Verdict(row[2])]
    assert not wrong
    assert len(TABLE) >= 60


def test_the_exact_way_settles_what_the_table_says():
    wrong = [row for row in TABLE if _settled(row[0], row[1]) != (float(row[2]) if row[3] == "fast" else None)]
    assert not wrong


OURS_IS_BETTER = {
    ("1000", r"1\,000"), (r"6.67 \times 10^{-11}", "6.67e-11"), ("5", "5 dollars"), (r"\$5", "5 cents"),
    (r"10\text{ cm}", "10 centimeters"), ("10 cm", "10 m"), (r"10\text{ cm}^2", "10 square centimeters"),
    ("18", "18 eggs"), ("5000000", "5 million"), ("1011_2", "1011_3"), (r"\infty", "∞"), ("yes", r"\text{Yes}."),
    ("B", "B. 42"),
}  # fmt: skip
"""Rows that are settled exactly and where math-verify alone says something else."""


def test_the_exact_way_agrees_with_math_verify_but_where_that_is_known_to_err():
    judge = math_judge.MathJudge()
    rows = [(gold, answer, score) for gold, answer, score, how in TABLE if how == "fast" and undressed(answer)]
    differing = {(gold, answer) for gold, answer, score in rows if judge.score(answer, {"gold": gold}) != score}
    assert differing <= OURS_IS_BETTER
    assert len(rows) > 50


def test_the_exact_way_agrees_with_math_verify_on_random_numbers():
    judge, rng, equal = math_judge.MathJudge(), random.Random(0), 0
    for _ in range(150):
        value = Fraction(rng.randint(-12, 12), rng.choice([1, 2, 4, 5]))
        other = value if rng.random() < 0.5 else Fraction(rng.randint(-12, 12), rng.choice([1, 2, 4, 5]))
        gold, answer = _written(value, rng), _written(other, rng)
        assert _settled(gold, answer) == judge.score(answer, {"gold": gold}) == float(value == other), (gold, answer)
        equal += value == other
    assert 50 < equal < 120


def _written(value: Fraction, rng: random.Random) -> str:
    a, b = value.numerator, value.denominator
    sign = "-" if a < 0 else ""
    forms = [rf"\frac{{{a}}}{{{b}}}", rf"{sign}\dfrac{{{abs(a)}}}{{{b}}}", f"{a}/{b}", f"{float(value)}", f"${a}/{b}$"]
    return rng.choice(forms + [str(a)] * (b == 1))


def test_reference_goes_first(math):
    """math-verify is not symmetric: an answer is taken from the last side of an equation, a reference is not."""
    assert math.score(r"\boxed{2+3x = 11}", {"answer": "11"}) == 1.0
    assert math.score(r"\boxed{11}", {"answer": "2+3x = 11"}) == 0.0


# Where the answer is.


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> I can not say.", None),
        (r"<think>a</think> \boxed{1} <think> or \boxed{2}", None),
        (r"<think> \boxed{2} and then it was cut o", None),
        (r"\boxed{3} and \boxed{4", "3"),
        ("<answer> 5 </answer>", "5"),
        ("Answer: 7\nThat is all.", "7"),
        ("**Final Answer:** $\\frac{1}{2}$", "$\\frac{1}{2}$"),
        ("She has 6 * 3 = 18 eggs.\n#### 18", "18"),
        ("So the answer is $x+1$, as was to be shown.", "x+1"),
        ("Therefore, the final answer is therefore 3.5. Good.", "3.5"),
        ("so, the answer is: \\(\\frac{2}{3}\\).", r"\frac{2}{3}"),
        ("The answer is 1. No, the answer is 2.", "2"),
        (r"Answer: 3, \boxed{4}", "4"),
        ("It is 5", None),
        ("", None),
    ],
)
def test_one_answer_is_taken(text, answer):
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "sources", "answer"),
    [
        (r"\boxed{1} Answer: 2", ("line", "boxed"), "1"),
        ("Answer: 2 \\boxed{1}", ("line", "boxed"), "2 \\boxed{1}"),
        ("one 1, two 2.5 and $x$ end", ("last",), "x"),
        ("$x$ is 1,024.", ("last",), "1,024"),
        (r"so \(a\) or \[b\] or $$c$$", ("last",), "c"),
        (r"\( \( \(", ("last",), None),
        (" 42\n", ("whole",), "42"),
        ("long " * 100, ("whole",), None),
    ],
)
def test_sources_of_answers(text, sources, answer):
    assert find_answer(text, sources) == answer


def test_ends_of_thinking():
    assert find_answer(r"\boxed{1}", need_think_end=True) is None
    assert find_answer(r"a</think>\boxed{1}", need_think_end=True) == "1"
    assert find_answer(r"\boxed{1} [/hm] \boxed{2}", think_end="[/hm]") == "2"
    assert find_answer(r"<think> \boxed{1}", think_end="") == "1"


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"answer": "5"}, ["5"]),
        ({"answer": 5}, ["5"]),
        ({"answer": 5.0}, ["5"]),
        ({"answer": 0.25}, ["0.25"]),
        ({"answer": np.int64(5)}, ["5"]),
        ({"answer": "6 * 3 = 18\n#### 18"}, ["18"]),
        ({"solution": r"First ... so \boxed{\frac{1}{2}}."}, [r"\frac{1}{2}"]),
        ({"reward_model": {"ground_truth": "7", "style": "rule"}}, ["7"]),
        ({"ground_truth": '["34", "35"]'}, ["34", "35"]),
        ({"final_answer": ["1", "2"]}, ["1", "2"]),
        ({"final_answer": np.array(["1", "2"])}, ["1", "2"]),
        ({"answer": "", "solution": "8"}, ["8"]),
        ({"answer": "[1, 2]"}, ["[1, 2]"]),
        ({"answer": '["x'}, ['["x']),
        ({"answer": None}, []),
        ({"answer": True}, []),
        ({"answer": ["1", None]}, []),
        ({"answer": [["1"]]}, []),
        ({"answer": object()}, []),
        ({"question": "5"}, []),
        ({}, []),
    ],
)
def test_reference_answers_of_rows(columns, parts):
    assert reference(columns) == parts


def test_a_column_may_be_named(math):
    assert reference({"answer": "1", "mine": "2"}, "mine") == ["2"]
    assert reference({"answer": "1"}, "mine") == []
    assert MathVerifier(column="mine").score(r"\boxed{2}", {"answer": "1", "mine": "2"}) == 1.0


def test_a_list_is_parts_or_alternatives():
    row = {"answer": ["3", "5"]}
    parts, alternatives = MathVerifier(workers=1), MathVerifier(alternatives=True)
    assert parts.score_many([r"\boxed{5, 3}", r"\boxed{5}"], [row] * 2) == [1.0, 0.0]
    assert alternatives.score_many([r"\boxed{3}", r"\boxed{5}", r"\boxed{4}"], [row] * 3) == [1.0, 1.0, 0.0]
    parts.close()


# Numbers.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1,234.5", Fraction(-2469, 2)),
        ("−3", -3),
        ("2½", Fraction(5, 2)),
        (r"\left(-\dfrac{6}{4}\right)", Fraction(-3, 2)),
        (r"3.2\times10^{-2}", Fraction(4, 125)),
        ("1.5 billion dollars", 1_500_000_000),
        ("６", 6),
        ("1e300", 10**300),
    ],
)
def test_plain_numbers_have_exact_values(text, value):
    found = number(undressed(text))
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize(
    "text",
    ["", "x", "5x", "5m", "1/0", "1.2.3", "1,23", "3,5", "5 or 6", "5 squared", "5!", "5^2", "1e9999", "(1,234)", "--5",
     "5 half", "5 6", "٣", "5²", "0x10", "1_000", "inf", "nan", "5 not 6", "$", "%", "9" * 101],
)  # fmt: skip
def test_what_is_no_plain_number_is_left_to_others(text):
    assert number(undressed(text)) is None


# Hostile text; `test_hostile` has what becomes of it in the end.


@pytest.mark.parametrize("source", ["boxed", "tag", "line", "hashes", "phrase", "last", "whole"])
def test_a_megabyte_made_to_be_slow_is_read_in_time(source):
    texts = [*TEXTS.values(), r"\(" * (MB // 2), "$x" * (MB // 2), "1," * (MB // 2), "answer:\n" * (MB // 8)]
    start = time.process_time()
    for text in texts:
        find_answer(text, (source,))
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", [None, b"\xff", 5, ["\\boxed{5}"]])
def test_what_is_no_text_has_no_answer(math, text):
    assert math.score(text, {"answer": "5"}) == 0.0


def test_a_hostile_reference_is_not_the_responses_fault(math):
    found = math.judge([r"\boxed{5}"] * 2, [{"answer": r"9^{9^{9^{9}}}"}, {"answer": "x" * (LONGEST_REFERENCE + 1)}])
    assert found[0] == Verdict(None, "took longer than 2 s", fatal=True)
    assert found[1].score is None
    assert "reference answer has more than" in (found[1].note or "")


def test_a_reference_that_can_not_be_read_is_unscorable_unless_it_is_met_to_the_letter(math):
    row = {"answer": r"\frac{\frac{"}
    assert math.judge([r"Answer: 5", r"Answer: \frac{\frac{"], [row] * 2) == [
        Verdict(None, math_judge.UNREADABLE),
        Verdict(1.0),
    ]


def test_a_row_without_a_reference_is_complained_of(math):
    assert math.complaint({"answer": "5"}) is None
    assert math.complaint({"solution": r"so \boxed{5}"}) is None
    assert (math.complaint({"gold answer": "5"}) or "").startswith(
        "there is no reference answer in any of its columns answer,"
    )
    assert (MathVerifier(column="mine").complaint({"answer": "5"}) or "").startswith(
        "there is no reference answer in its column 'mine'"
    )


def test_a_row_without_a_reference_does_not_apply(math):
    assert math.judge([r"\boxed{5}"], [{"question": "?"}]) == [Verdict(None)]


# As a part of a run.


def test_as_a_reward_function_beside_others(math):
    rewards = RewardSet([reward_function(math), lambda completions, **_: [0.5] * len(completions)])(
        prompts=["p"] * 4,
        completions=[r"\boxed{1/2}", r"\boxed{2}", r"\boxed{9^{9^{9^{9}}}}", "x"],
        completion_ids=[[1]] * 4,
        columns={"answer": ["0.5", "0.5", "x+1", None]},
    )
    assert rewards.components["math"][:3] == [1.0, 0.0, 0.0]
    assert rewards.total == [1.5, 0.5, 0.5, 0.5]
    assert rewards.extras["math_note"][2] == "took longer than 2 s"
    assert rewards.metrics["math_notes"] == 0.25
    assert reward_function(math).verifier_version == f"math-{math.version}"


def test_conversations_are_judged_by_their_last_message(math):
    scored = reward_function(math)
    assert scored(completions=[[{"role": "assistant", "content": r"\boxed{7}"}]], answer=["7"]) == [1.0]


def test_it_works_in_threads_where_alarms_do_not(math):
    found = []
    thread = threading.Thread(target=lambda: found.append(math.score(r"\boxed{\sqrt{8}}", {"answer": r"2\sqrt{2}"})))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_the_same_comparison_is_made_once_and_kept_in_a_file(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    for expected in ((0, 1), (1, 0)):
        math = MathVerifier(workers=1, cache_file=str(path))
        texts = [f"Try {n}: \\boxed{{\\sqrt{{18}}}}" for n in range(3)]
        assert math.score_many(texts, [{"answer": r"3\sqrt{2}", "id": n} for n in range(3)]) == [1.0] * 3
        assert (len(math._isolated.workers.workers) == 0, len(math._isolated.workers.workers)) == (
            expected[0] == 1,
            expected[1],
        )
        math.close()


def test_plain_numbers_need_no_process():
    math = MathVerifier()
    rows = [{"answer": str(n)} for n in range(1000)]
    texts = [f"\\boxed{{{n + n % 2}.0}}" for n in range(1000)]
    assert math.score_many(texts, rows) == [float(n % 2 == 0) for n in range(1000)]
    assert math._isolated.workers.workers == []


def test_the_run_imports_neither_torch_nor_sympy():
    script = (
        "import sys; from vantage.verifiers.math import MathVerifier; m = MathVerifier(workers=1)\n"
        "print(m.score(r'\\boxed{2^{10}}', {'answer': '1024'}), 'sympy' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "1.0 False False\n", done.stderr


def test_without_math_verify_one_line_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError) as raised:
        MathVerifier()
    assert str(raised.value) == (
        "math verifier: it needs the package math-verify, install it with: pip install math-verify"
    )


def test_what_the_message_names_comes_with_the_package():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["name"] == "vantage-rl"
    assert any(requirement.startswith("math-verify") for requirement in project["dependencies"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ("boxd",)}, "did you mean 'boxed'"),
        ({"sources": ()}, "sources must name some of"),
        ({"sources": "boxed"}, "sources must name some of"),
        ({"seconds": 0}, "seconds must be above 0, got 0"),
        ({"memory_bytes": 0}, "memory_bytes must be above 0, got 0"),
        ({"workers": 0}, "count must be 1 or more, got 0"),
        ({"cache_file": "/dev/null/verdicts"}, "can not be used as its file"),
    ],
)
def test_wrong_options_are_said_at_once(options, message):
    with pytest.raises(UserError, match=message):
        MathVerifier(**options)


def test_version_names_what_it_rests_on(math):
    assert math.version == f"1+math-verify-{importlib.metadata.version('math-verify')}"
    assert json.dumps(math.version)


def test_the_page_on_it_works_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_verifiers.py").write_text(
        "class Mine:\n    name, version = 'mine', '1'\n"
        "    def __init__(self, strict): self.strict = strict\n"
        "    def score(self, text, columns): return float(text == columns['answer'])\n"
    )
    page = (Path(__file__).parents[2] / "docs" / "verifiers-math.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert names["reward"](completions=["a", "b"], answer=["a", "a"]) == [1.0, 0.0]
    assert names["math"].score(r"\boxed{\frac{1}{\sqrt{2}}}", {"answer": r"\frac{\sqrt{2}}{2}"}) == 1.0
    assert (tmp_path / "verdicts.sqlite").exists()
    names["math"].close()
    names["mine"].close()
