"""What the critic reads: the parts with and without In-Context Conditioning, users' templates, tokenizers, the success rate."""

from __future__ import annotations

import pytest

from tests.helpers import small_policy
from vantage import tiny
from vantage.errors import UserError
from vantage.genac.actor import ActorFacts
from vantage.genac.parsing import Tag
from vantage.genac.prompt import COMPACT, FULL, StateView, Template, characterwise, template_for
from vantage.genac.states import problem_text

VIEW = StateView("What is {prefix} + 1?", "Let {x} be", 3, 80)
ACTOR = ActorFacts("Qwen3-0.6B", 596_000_000, rate=0.294)


def test_t6_the_rate_shown_is_that_of_earlier_batches_and_the_first_batch_sets_it():
    actor, shown, after = ActorFacts("a", 1), [], []
    for mean in (0.2, 0.5, 0.3, 0.0, 1.0):
        shown.append(actor.rate)
        actor.observe(mean)
        after.append(actor.rate)
    assert after == pytest.approx([0.2, 0.23, 0.237, 0.2133, 0.29197], abs=1e-12)
    assert shown[0] is None
    assert shown[1:] == pytest.approx([0.2, 0.23, 0.237, 0.2133], abs=1e-12)


def test_a_batch_without_known_outcomes_leaves_the_rate_and_the_state_returns_whole():
    actor = ActorFacts("a", 1, rate=0.25)
    actor.observe(float("nan"))
    assert actor.rate == 0.25
    other = ActorFacts("a", 1)
    other.load(actor.state())
    assert other == actor


@pytest.mark.parametrize(
    ("count", "size"), [(812_000, "0.8M"), (412_000, "412K"), (596_000_000, "0.6B"), (8_190_000_000, "8.2B")]
)
def test_the_size_is_written_as_people_do(count, size):
    assert ActorFacts("a", count).size == size


def test_the_full_prompt_has_every_fact_once():
    text = Template(FULL).render(VIEW, ACTOR)
    for part in ("Qwen3-0.6B, 0.6B parameters", "correctly: 29%", "3 of 80 response tokens are used; 77 are left"):
        assert text.count(part) == 1
    assert [line[:2] for line in text.splitlines() if line[:1].isdigit() and line[1] == "."] == [
        "1.", "2.", "3.", "4.", "5.",
    ]  # fmt: skip
    assert "<partial>\nLet {x} be\n</partial>" in text
    assert "<score>N</score>" in text
    assert "icc" not in text


def test_braces_of_problem_and_response_are_no_placeholders():
    assert "What is {prefix} + 1?" in Template(FULL).render(VIEW, ACTOR)


def test_without_icc_only_the_solver_block_and_its_step_are_missing():
    with_icc = Template(FULL).render(VIEW, ACTOR).splitlines()
    without = Template(FULL, icc=False).render(VIEW, ACTOR).splitlines()
    assert [line[:2] for line in without if line[:1].isdigit() and line[1] == "."] == ["1.", "2.", "3.", "4."]
    strip = lambda line: line[3:] if line[:1].isdigit() and line[1] == "." else line  # noqa: E731
    left_out = [line for line in map(strip, with_icc) if line not in list(map(strip, without))]
    assert left_out == [
        "Infer from the unfinished response how able this solver is, and combine that with the facts about it.",
        "# The solver",
        "model: Qwen3-0.6B, 0.6B parameters",
        "problems it has recently answered correctly: 29%",
        "Your number must describe this solver, not yourself.",
    ]
    other = ActorFacts("another", 7, rate=0.9)
    assert Template(FULL, icc=False).render(VIEW, other) == "\n".join(without) + "\n"


def test_a_critic_of_characters_gets_the_compact_prompt_and_others_the_full_one():
    tokenizer = tiny.tokenizer()
    assert characterwise(tokenizer)
    template = template_for(tokenizer)
    assert (template.text, template.tag) == (COMPACT, Tag("[", "]"))
    view = StateView("17+5=", "17+5=22\n", 8, 80)
    assert template.render(view, ActorFacts("tiny", 1, rate=0.416)) == "42%\n72;17+5=\n17+5=22\n?"
    assert template_for(tokenizer, icc=False).render(view, ACTOR) == "72;17+5=\n17+5=22\n?"

    class Words:
        def __call__(self, text, **_):
            return {"input_ids": text.split()}

    assert template_for(Words()).text == FULL


def test_the_critics_own_chat_template_is_used_and_thinking_is_off():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<go>{% endif %}{% if enable_thinking is false %}<quiet>{% endif %}"
    )
    view, template = StateView("1+1=", "", 0, 9), template_for(tokenizer)
    ids = template.encode(tokenizer, view, ACTOR)
    assert tokenizer.decode(ids) == f"<user>{template.render(view, ACTOR)}<go><quiet>"
    plain = Template(COMPACT, Tag("[", "]"), chat=False).encode(tokenizer, view, ACTOR)
    assert tokenizer.decode(plain) == template.render(view, ACTOR)


BAD = {
    "{problem}": "{prefix}} is missing",
    "{prefix} {rho_pct}": "{problem}} is missing",
    "{problem} {prefix} {rho}": "rho_pct",
    "{problem} {prefix} {rho_pct} {": "lone '{'",
    "{problem} {prefix} {rho_pct} \\frac{{1}{{2}}": "lone '}'",
    "{problem} {prefix}": "nothing of the solver",
    "{problem}{rho_pct}\n<!-- icc -->\n{prefix}\n<!-- /icc -->\n": "{prefix}} is missing",
    "{problem} {prefix}\n<!-- icc -->\n{rho_pct}\n": "<!-- /icc -->",
    "{problem} {prefix}\n<!-- /icc -->\n{rho_pct}\n": "<!-- /icc -->",
}


@pytest.mark.parametrize("text", BAD)
def test_a_template_that_can_not_work_is_refused_in_one_line(text, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=r"mine\.txt") as caught:
        template_for(tiny.tokenizer(), file)
    assert BAD[text].replace("}}", "}") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_template_is_filled_in_and_may_have_braces(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("{{a}} {problem}|{prefix}|{remaining}\n<!-- icc -->\n{actor_name}\n<!-- /icc -->\nend")
    found = template_for(tiny.tokenizer(), file).render(StateView("P", "y", 1, 4), ACTOR)
    assert found == "{a} P|y|3\nQwen3-0.6B\nend"
    with pytest.raises(UserError, match="can not be read"):
        template_for(tiny.tokenizer(), tmp_path / "none.txt")


def test_templates_that_differ_have_other_names():
    names = [
        Template(FULL),
        Template(FULL, icc=False),
        Template(FULL, Tag("[", "]")),
        Template(FULL + " "),
        Template(FULL),
    ]
    assert len({t.digest for t in names}) == 4
    assert names[0].digest == names[4].digest


def test_a_conversation_is_read_as_its_turns():
    assert problem_text("1+1=") == "1+1="
    assert problem_text([{"role": "user", "content": "hi"}]) == "hi"
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert problem_text(turns) == "system: be brief\n\nuser: hi"


def test_a_prompt_that_does_not_fit_is_refused_and_never_cut():
    from vantage.genac.critic import critic_of

    policy = small_policy()
    critic = critic_of(policy, template_for(policy.tokenizer), 1000)
    with pytest.raises(UserError, match=r"critic-tokens is 1000.*1024 positions"):
        critic.encode([StateView("1" * 30, "", 0, 80)], ACTOR)


def test_a_states_prompt_goes_on_where_that_of_an_earlier_state_of_the_response_ends():
    """So that generation can share instructions, problem and response so far (`vantage.rollout.prefill`)."""
    template = Template(FULL)
    early, late = (template.render(StateView("P", text, len(text), 80), ACTOR) for text in ("Let", "Let x be"))
    shared = early.index("\n</partial>")
    assert early[:shared] == late[:shared]
    assert early[:shared].endswith("<partial>\nLet")
    assert late[shared:].startswith(" x be\n</partial>")
