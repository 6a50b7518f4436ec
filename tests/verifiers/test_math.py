r"""The math verifier: a table of references and answers with their scores, and hostile text."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vantage.errors import UserError
from vantage.rewards.functions import RewardSet
from vantage.verifiers import math_judge
from vantage.verifiers.base import Verdict, reward_function
from vantage.verifiers.math import MathVerifier, _settled
from vantage.verifiers.math_answers import find_answer, reference
from vantage.verifiers.math_numbers import Number, number, undressed


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
