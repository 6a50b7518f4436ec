"""What oracles of the embedded worlds say of unfinished responses, by hand, and that demonstrations bear them out."""

from __future__ import annotations

import math

import pytest

from vantage import tiny
from vantage.genac.actor import ActorFacts
from vantage.genac.oracle import world_traces
from vantage.genac.parsing import Tag
from vantage.tasks import get_task
from vantage.tasks.base import Problem
from vantage.tasks.constraints import parse_prompt
from vantage.tasks.critique import step_rate
from vantage.tasks.critique_words import criticise_words

TAG = Tag("[", "]")


def said(task, prompt, partial, success=0.4):
    found = get_task(task).critique(Problem(prompt), partial, success)
    return found.text, found.value


TOOLS = "add 7 figs, 5 more eggs, ship to oslo:"
FIRST, SECOND = '{"add":{"n":7,"of":"fig"}}\n', '{"add":{"n":12,"of":"egg"}}\n'
CALLS = {
    "": ("3:", 3),
    FIRST: ("add/add.7/7.fig/fig.2:", 2),
    '{"add":{"of":"fig","n":7}}\n': ("add/add.7/7.fig/fig.2:", 2),  # the order of arguments does not matter
    FIRST + SECOND: ("add/add.7/7.fig/fig.add/add.12/12.egg/egg.1:", 1),
    FIRST + SECOND + '{"ship":{"to":"oslo"}}\n': (
        "add/add.7/7.fig/fig.add/add.12/12.egg/egg.ship/ship.oslo/oslo.0:",
        0,
    ),
    FIRST + '{"add":{"n":5,': ('add/add.7/7.fig/fig.{"add":{"n":12,"of":"egg"}}/{"add":{"n":5,x', None),
    FIRST + '{"add":{"n":12,': ("add/add.7/7.fig/fig.2:", 2),
    FIRST + '{"add":{"n":5,"of":"egg"}}\n': ("add/add.7/7.fig/fig.add/add.12/5x", None),
    "add 7 figs\n": ("add/x", None),
    '["add"]\n': ("add/x", None),
    '{"add":7}\n': ("add/x", None),
    FIRST + SECOND + '{"ship":{"to":"oslo"}}\n{"ship":{"to":"oslo"}}\n': (
        "add/add.7/7.fig/fig.add/add.12/12.egg/egg.ship/ship.oslo/oslo./shipx",
        None,
    ),
}


@pytest.mark.parametrize("partial", CALLS)
def test_calls_are_checked_part_by_part_and_the_first_wrong_one_is_fatal(partial):
    text, value = said("tools", TOOLS, partial)
    right, left = CALLS[partial]
    assert text == right
    counts = get_task("tools").step_counts
    assert value == (0.0 if left is None else pytest.approx(step_rate(0.4, counts) ** left))


WORDS = {
    "": (" 3oofig**! 9:", 9),  # three words, two letters, a word among these, two bullets, the mark
    "* FIG ": ("*1FIG=. 2oo*! 6:", 6),
    "* FIG TOO\n* ": ("*1FIG=.2TO+O+.* 1! 2:", 2),
    "* FIG TOO\n* CORN!": ("*1FIG=.2TO+O+.*3CO+RN!. 0 0:", 0),
    "* FIG EGG ": ("*1FIG=.2Ex", None),  # right behind the letter that must not be
    "* fig ": ("*1fx", None),
    "* TIN ANT\n* SUN": ("*1TIN.2ANT.*3SUN. 0oofig!x", None),  # no word is left for what is due
    "* TOO MOON\n* ": ("*1TO+O+.2MO+O+N.* 1fig! 3:", 3),
    "* TIN ANT\n* FIG ": ("*1TIN.2ANT.*3FIG=. 0oo!x", None),
    "* FIG TOO\n* ANT ": ("*1FIG=.2TO+O+.*3ANT. 0!x", None),  # behind a blank there will be a fourth word
    "* FIG TOO\n* TOO\n* ": ("*1FIG=.2TO+O+.*3TO+O+.* 0!x", None),
    "* FIG TOO MOON RAT": ("*1FIG=.2TO+O+.3MO+O+N.4Rx", None),
}


@pytest.mark.parametrize("partial", WORDS)
def test_words_are_counted_and_every_constraint_has_its_standing(partial):
    request = parse_prompt("3 words, no e, 2+ o, use fig, caps, end !, 2 bullets:")
    found = criticise_words(request, partial, 0.9)
    text, left = WORDS[partial]
    assert found.text == text
    assert found.value == (0.0 if left is None else pytest.approx(0.9**left))


LAYOUTS = {
    ("2 words, quoted:", ""): ' 2" 3:',
    ("2 words, quoted:", '"ant '): '1"ant. 1" 2:',
    ("2 words, quoted:", "ant "): "1ax",
    ("2 words, quoted:", '"ant bat"'): '1"ant.2bat". 0 0:',
    ("2 words, end !, quoted:", '"ant bat!"'): '1"ant.2bat!". 0 0:',
    ("2 words, title:", "ant "): "1ant. 1< 2:",
    ("2 words, title:", "<<ant>> "): "1<<ant>>. 1 1:",
    ("2 words, title:", "ant bat"): "1ant.2bat. 0<x",
    ("2 words, end bye:", "ant "): "1ant. 1bye 1:",  # a word at the end is one of the words
    ("2 words, end bye:", "ant bye"): "1ant.2bye. 0 0:",
    ("2 words, use fig, end bye:", "ant "): "1ant. 1figbyex",  # two words are due, and one is left
    ("2 words, end ?:", "ant bat?"): "1ant.2bat?. 0 0:",
    ("3 words, 3 bullets:", "* ant "): "*1ant. 2** 4:",
    ("3 words, 3 bullets:", "* ant bat "): "*1ant.2bat. 1**x",
}


@pytest.mark.parametrize("asked", LAYOUTS)
def test_layouts_and_ends_are_steps_of_their_own(asked):
    prompt, partial = asked
    assert said("instructions", prompt, partial)[0] == LAYOUTS[asked]


def test_a_program_is_lost_by_a_wrong_slope_and_not_by_a_slip_in_a_line_tried_in_vain():
    prompt = "4:23 5:28 2:13="  # 5*x+3
    whole = get_task("programs").solution(Problem(prompt)).split("\n")
    assert whole[:3] == ["28-23=5", "5*4=20", "23-20=3"]
    assert said("programs", prompt, "")[0] == "28-23=5.5:"
    assert said("programs", prompt, "28-23=5\n")[0] == "28-23=5.28-23=5/5.4:"
    assert said("programs", prompt, "28-23=6\n") == ("28-23=5.28-23=5/6x", 0.0)
    lost = "28-23=5\n5*4=30\n30-23=7\n5*2=10\n"  # the constant will be wrong
    assert said("programs", prompt, lost) == ("28-23=5.28-23=5/5.5*4=20/30x", 0.0)
    assert said("programs", prompt, "28-23=\n") == ("28-23=5.28-23=5/x", 0.0)
    done = "\n".join(whole) + "\n"
    assert said("programs", prompt, done)[1] == 1.0
    assert said("programs", prompt, done + "x\n")[1] == 0.0
    assert said("programs", prompt, done.replace("+3\n", "+4\n"))[1] == 0.0


def test_a_slip_in_vain_is_marked_and_the_lines_behind_it_build_on_it():
    curve = "1:4 2:7 6:39="  # x*x+3, after a line through the first two that does not meet the third
    text, value = said("programs", curve, "7-4=3\n3*1=6\n6-4=2\n3*6=18\n18-2=25\n1*1=1\n")
    assert text == "7-4=3~7-4=3/3.3*1=3/6~6-4=2/2.3*6=18/18.18-2=16/25~1*1=1/1.1:"
    counts = get_task("programs").step_counts
    assert value == pytest.approx(step_rate(0.4, counts))
    text, value = said("programs", curve, "7-4=3\n3*1=6\n6-4=2\n3*6=18\n18-2=25\n1*1=2\n")
    assert text.endswith("1*1=1/2x")
    assert value == 0


@pytest.mark.parametrize("world", ["sums", "programs", "tools", "instructions"])
def test_demonstrations_end_as_often_well_as_the_oracle_says(world):
    """300 unfinished demonstrations by solvers of all skills: the mean value is within 4 standard errors of the outcomes'."""
    task = get_task(world)
    traces = world_traces(task, 150, 5, TAG, tiny.tokenizer(), task.max_new_tokens, ActorFacts("a", 1))
    values = [TAG.value(t.completion) for t in traces]
    outcomes = [t.outcome for t in traces]
    spread = math.sqrt(sum(v * (1 - v) for v in values)) + 0.05 * math.sqrt(len(values))
    assert abs(sum(values) - sum(outcomes)) < 4 * spread
    lost = [r for v, r in zip(values, outcomes) if v == 0]
    good = [r for v, r in zip(values, outcomes) if v >= 0.8]
    assert len(lost) > 20
    assert len(good) > 20
    assert sum(lost) / len(lost) < 0.1
    assert sum(good) / len(good) > 0.7
    assert max(len(t.completion) for t in traces) <= 128  # what a critic of characters may say by default
