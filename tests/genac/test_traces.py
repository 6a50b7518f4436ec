"""Oracle traces: the worlds' own critiques, files, teachers, filters, balance, and what is learned of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.helpers import small_policy, together
from vantage.errors import UserError
from vantage.genac.actor import ActorFacts
from vantage.genac.critic import Opinion, critic_of
from vantage.genac.harvest import Seen
from vantage.genac.lessons import written
from vantage.genac.oracle import has_oracle, teacher_traces, world_trace, world_traces
from vantage.genac.parsing import Tag
from vantage.genac.prompt import template_for
from vantage.genac.sft import Schooling, drawn_pairs, school
from vantage.genac.traces import Trace, balanced, best_of, encoded, read_traces, usable, write_traces
from vantage.montecarlo import State
from vantage.policy import Policy
from vantage.rollout.engine import Rollout
from vantage.tasks import get_task
from vantage.tasks.base import Problem, Task
from vantage.tasks.critique import criticise, step_rate, success_rate

TAG = Tag("[", "]")
SUM = Problem("17+5+88+4=", {"answer": "114"})
TOKENIZER = small_policy().tokenizer


def test_the_scores_of_the_policys_own_states_are_what_continuations_say():
    state = Seen(State(SUM, (1, 2)), Trace(SUM.prompt, "17+5=23\n", 8, 80, "", position=0.25, outcome=0.5, truth=0.63))
    found = written(get_task("sums"), state, ActorFacts("a", 7, rate=0.41), TAG)
    assert found.completion == "17+5=22/23x[6]"  # the rule would say 0
    assert (found.truth, found.outcome, found.position, found.actor, found.rate) == (0.63, 0.5, 0.25, "a", 0.41)


def test_t13_a_step_rate_gives_values_in_closed_form():
    counts = (5, 3, 1)
    assert success_rate(0.9, counts) == pytest.approx((0.59049 + 0.729 + 0.9) / 3)
    assert step_rate(success_rate(0.9, counts), counts) == pytest.approx(0.9, abs=1e-5)
    assert step_rate(0.0, counts) < 1e-5
    assert step_rate(1.0, counts) > 1 - 1e-5


CRITIQUES = {
    "": ("3:", 0.729),
    "17+5=22\n": ("17+5=22/22.2:", 0.81),
    "17+5=22\n22+8": ("17+5=22/22.2:", 0.81),
    "17+5=22\n22+88=110\n110+4=114\n": ("17+5=22/22.22+88=110/110.110+4=114/114.0:", 1.0),
    "17+5=22\n22+88=110\n110+4=114\n>114": ("17+5=22/22.22+88=110/110.110+4=114/114.0:", 1.0),
    "17+5=23\n": ("17+5=22/23x", 0.0),
    "17+5=22\n22+88=100\n100+4=104\n": ("17+5=22/22.22+88=110/100x", 0.0),  # the first error is the last word
    "17+5=23\n23+88=110\n": ("17+5=22/23x", 0.0),
    "17+5=22\n23+88=11": ("17+5=22/22.2:", 0.81),
    "17+5=22\n23+88=12": ("17+5=22/22.22+88=110/12x", 0.0),
    "17+5=22\n22+9": ("17+5=22/22.2:", 0.81),  # no result yet
    "17+5=22\n\n": ("17+5=22/22.22+88=110/x", 0.0),
    "17+5=22\n22+88=110\n110+4=114\n>115": ("17+5=22/22.22+88=110/110.110+4=114/114.>114/115x", 0.0),
    "17+5=22\n22+88=110\n110+4=114\n>114\n\n": ("17+5=22/22.22+88=110/110.110+4=114/114.>114/114./x", 0.0),
}


@pytest.mark.parametrize("partial", CRITIQUES)
def test_every_running_sum_is_checked_up_to_the_first_error(partial):
    found = criticise(lambda results: get_task("sums").go_on(SUM, results), partial, 0.9)
    assert found.text == CRITIQUES[partial][0]
    assert found.value == pytest.approx(CRITIQUES[partial][1])


@pytest.mark.parametrize("name", ["sums", "programs"])
def test_embedded_worlds_have_critiques_and_a_better_solver_gets_higher_scores(name):
    task = get_task(name)
    assert has_oracle(task)
    problem = task.train[2]
    low, high = (task.critique(problem, "", rate).value for rate in (0.2, 0.8))
    assert low < high
    whole = task.solution(problem)
    first = whole[: whole.index("\n") + 1]
    assert task.critique(problem, first, 0.5).value > task.critique(problem, "", 0.5).value
    assert task.critique(problem, first.replace("\n", "0\n"), 0.5).value == 0.0


def test_a_task_without_critiques_says_so():
    class Plain(Task):
        name, version, train = "plain", "1", (Problem("1"),)

    assert not has_oracle(Plain())
    with pytest.raises(UserError, match="no critiques of its own; give"):
        world_trace(Plain(), Problem("1"), "", ActorFacts("a", 1), TAG, used=0, limit=9)


def test_a_trace_is_written_from_the_worlds_value_or_from_a_given_one():
    facts = ActorFacts("a", 1, rate=0.41)
    own = world_trace(get_task("sums"), SUM, "17+5=22\n", facts, TAG, used=8, limit=80)
    assert own.completion == "17+5=22/22.2:[5]"
    given = world_trace(get_task("sums"), SUM, "17+5=22\n", facts, TAG, used=8, limit=80, value=0.76)
    assert given.completion == "17+5=22/22.2:[8]"
    assert TAG.value(given.completion) == 0.8


def test_world_traces_are_reproducible_usable_and_of_all_kinds():
    task, actor = get_task("sums"), ActorFacts("tiny", 800_000)
    made = world_traces(task, 100, 3, TAG, TOKENIZER, 80, actor)
    assert made == world_traces(task, 100, 3, TAG, TOKENIZER, 80, actor)
    assert made[:40] == world_traces(task, 20, 3, TAG, TOKENIZER, 80, actor)
    kept, reasons = usable(made, TAG, TOKENIZER, 128)
    assert len(kept) == len(made)
    assert not reasons
    for trace in made[:50]:
        assert trace.used == len(trace.prefix)
        assert trace.view.problem + trace.prefix == (trace.problem + trace.prefix)
        assert task.critique(Problem(trace.problem), trace.prefix, trace.rate).text in trace.completion
    kinds = Counter((t.outcome, t.part) for t in balanced(made, 100))
    assert len(kinds) == 6
    assert min(kinds.values()) >= 10


def trace(completion="[5]", **more) -> Trace:
    return Trace(**{"problem": "1+1=", "prefix": "", "used": 0, "limit": 80, "completion": completion, **more})


def test_filters_drop_what_can_not_be_parsed_is_too_long_or_far_from_the_truth():
    rows = [
        trace(),
        trace("5"),
        trace("[5][5]"),
        trace("[5] it is"),
        trace("1" * 20 + "[5]"),
        trace(truth=0.75),
        trace(truth=0.7),
    ]
    kept, reasons = usable(rows, TAG, TOKENIZER, 10, 0.2)
    assert kept == [rows[0], rows[6]]
    assert dict(reasons) == {
        "without exactly one score at the end": 3,
        "longer than 10 tokens": 1,
        "further than 0.2 from what continuations say": 1,
    }
    assert len(usable(rows, TAG, TOKENIZER, 10)[0]) == 3


def test_balance_takes_kinds_in_turns_and_all_where_there_are_few():
    rows = [trace(outcome=1.0, position=0.0, used=i) for i in range(9)] + [trace(outcome=0.0, position=0.9)]
    found = balanced(rows, 4)
    assert [t.outcome for t in found] == [1.0, 0.0, 1.0, 1.0]
    assert [t.used for t in found] == [0, 0, 1, 2]
    assert len(balanced(rows, 99)) == 10
    assert [trace(position=p).part for p in (0.0, 0.374, 0.375, 0.62, 0.625, 1.0)] == [
        "early", "early", "middle", "middle", "late", "late",
    ]  # fmt: skip


def test_traces_come_back_from_a_file(tmp_path):
    rows = [trace(rate=0.3, outcome=1.0, truth=0.5), trace("ü[7]", actor="x", actor_parameters=5, position=0.5)]
    write_traces(tmp_path / "t.jsonl", rows)
    assert read_traces(tmp_path / "t.jsonl") == rows


BROKEN = {
    "": "holds no trace",
    "{": "line 1: this is no JSON object",
    "[1]": "line 1: a JSON object is missing",
    '{"problem": "1", "prefix": "", "used": 0, "limit": 9}': "line 1: completion is missing",
    '{"problem": 1, "prefix": "", "used": 0, "limit": 9, "completion": "[5]"}': "problem is 1, it must be text",
    '{"problem": "1", "prefix": "", "used": "no", "limit": 9, "completion": "[5]"}': "used is 'no', it must be a number",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_of_traces_is_refused_with_its_line(text, tmp_path):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(UserError) as caught:
        read_traces(tmp_path / "t.jsonl")
    assert BROKEN[text] in str(caught.value)


def test_prompts_and_completions_are_encoded_and_the_closing_tag_is_last():
    template = template_for(TOKENIZER)
    ((prompt, completion),) = encoded([trace("22.[5] \n", rate=0.4)], template, TOKENIZER)
    assert TOKENIZER.decode(prompt) == "40%\n80;1+1=\n?"
    assert TOKENIZER.decode(completion) == "22.[5]"


def test_of_a_teachers_samples_the_one_nearest_to_the_truth_is_kept():
    assert best_of([0.9, None, 0.4, 0.6], 0.5) == 2
    assert best_of([None, None], 0.5) is None

    class Teacher:
        tag = TAG
        policy = Policy.__new__(Policy)

        def ask(self, views, keys, actor):
            self.seen = [(view.problem, actor.rate, len(k)) for view, k in zip(views, keys)]
            said = {"a": ["[9]", "[4]", "x", "[6]"], "b": ["x", "[7]", "[1]", "x"], "c": ["x"] * 4}
            return [
                Opinion(
                    [5], [Rollout(ids(t), [], "stop") for t in said[v.problem]], [TAG.value(t) for t in said[v.problem]]
                )
                for v in views
            ]

    def ids(text):
        return TOKENIZER(text, add_special_tokens=False)["input_ids"]

    teacher = Teacher()
    teacher.policy.tokenizer = TOKENIZER
    states = [Trace(p, "", 0, 9, "", rate=0.3, truth=t) for p, t in (("a", 0.5), ("b", None), ("c", 0.5))]
    found, tokens = teacher_traces(teacher, states, seed=0)
    assert [(t.problem, t.completion, t.truth) for t in found] == [("a", "[4]", 0.5), ("b", "[7]", None)]
    assert teacher.seen == [("a", 0.3, 4), ("b", 0.3, 4), ("c", 0.3, 4)]
    assert tokens == 10 + 8 + 4


PAIRS = [([5, 6, 7 + i], [8 + i, 9]) for i in range(7)]


def test_the_draw_goes_through_all_pairs_once_an_epoch():
    drawn = [pair for step in range(7) for pair in drawn_pairs(PAIRS, 3, 0, step)]
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == sorted(drawn[14:]) == sorted(PAIRS)
    assert drawn[:7] != drawn[7:14]


def test_schooling_teaches_completions_only_and_does_not_depend_on_processes():
    start = small_policy()
    import copy

    def schooled(world=None):
        policy = Policy(copy.deepcopy(start.model), TOKENIZER)
        losses = []
        school(policy, PAIRS, Schooling(8, 7, 1e-2), world=world, say=losses.append)
        return torch.cat([p.detach().reshape(-1) for p in policy.model.parameters()]), losses

    alone, said = schooled()
    assert "supervised step 8/8" in said[0]
    for found, _ in together(2, schooled):
        assert torch.allclose(found, alone, atol=1e-6)


def test_a_small_critic_learns_the_form_of_its_traces_to_a_parse_rate_of_098():
    torch.manual_seed(0)
    policy = small_policy(dtype=torch.float32)
    template = template_for(TOKENIZER)
    traces = [trace(f"[{i % 11}]", rate=i % 11 / 10) for i in range(110)]
    school(policy, encoded(traces, template, TOKENIZER), Schooling(160, 11, 1e-2))
    critic = critic_of(policy, template, 8)
    found = critic.ask([traces[0].view] * 1, [range(200)], ActorFacts("a", 1, rate=0.3))
    assert sum(v is not None for v in found[0].values) / 200 >= 0.98
    high, low = (critic.ask([traces[0].view], [range(50)], ActorFacts("a", 1, rate=r))[0].value for r in (0.9, 0.1))
    assert high > low + 0.3  # the prediction follows the rate that is shown
