"""Final answers of responses, and one spelling for those that differ in dress only."""

from __future__ import annotations

import time

import pytest

from vantage.answers import after_hashes, boxed, final_answer, spelling, tagged


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}.", "7"),
        (r"\boxed{1} or rather \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{1} \boxed {\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{3} and \boxed{4", "3"),  # a response that was cut off
        (r"\boxed{\boxed{5}}", "5"),
        (r"} \boxed{6} {", "6"),
        ("no box", None),
    ],
)
def test_the_last_complete_box_counts(text, answer):
    assert boxed(text) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think>\boxed{1}</think> It is \boxed{2}.", "2"),
        (r"<think>\boxed{1}</think> Done.", None),
        ("<answer>1</answer> no: <answer> 42 </answer>", "42"),
        ("**Final Answer:** 1,024.", "1024"),
        ("The answer is: $\\frac{1}{2}$\nI hope this helps.", "\\frac{1}{2}"),
        ("Answer: 1\nAnswer: 2", "2"),
        ("9 + 9 = 18\n#### 18", "18"),
        ("Answer: 3 but \\boxed{4}", "4"),
        ("I answer nothing: at all", None),
        ("\\boxed{}", None),
        ("", None),
    ],
)
def test_final_answers(response, answer):
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1,024", "1024"),
        ("$ 1024. $", "1024"),
        ("007", "7"),
        ("2.50", "2.5"),
        ("3.0", "3"),
        ("-0", "0"),
        (".5", "0.5"),
        ("+5", "5"),
        ("1{,}024", "1024"),
        (r"\text{A}", "A"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        ("−3", "-3"),
    ],
)
def test_spellings_that_mean_the_same(first, second):
    assert spelling(first) == spelling(second) == second


@pytest.mark.parametrize(
    ("first", "second"), [("12", "21"), ("1.5", "15"), ("-3", "3"), ("1,2", "12"), ("x", "X"), ("1/2", "12"), ("0", "")]
)
def test_values_that_differ_keep_differing(first, second):
    assert spelling(first) != spelling(second)


def test_pieces_that_are_missing():
    assert tagged("<answer>open") is tagged("</answer>") is after_hashes("# 5") is None


@pytest.mark.parametrize(
    "piece",
    [
        r"\boxed{",
        "<answer>",
        "\n",
        " ",
        "####",
        "answer",
        "{",
        "}",
        "answer" + " " * 50,
        "0",
        "1,",
        "\\",
        r"\text{",
        ",",
    ],
)
def test_a_megabyte_of_anything_is_read_in_time(piece):
    text = piece * (1_000_000 // len(piece))
    started = time.perf_counter()
    for response in (text, "Answer: " + text, r"\boxed{" + text + "}", f"<answer>{text}</answer>"):
        final_answer(response)
    assert time.perf_counter() - started < 10
