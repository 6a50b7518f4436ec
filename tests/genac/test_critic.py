"""Asking about states: causality, pooling, failures, keys, tokens, the expectation over labels, and a saved critic."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import small_policy
from vantage.errors import UserError
from vantage.genac.actor import ActorFacts
from vantage.genac.critic import CARD, copied, critic_of, filled, read_card, template_of
from vantage.genac.parsing import expected_value
from vantage.genac.prompt import StateView, template_for
from vantage.genac.start import begin, embedded_critic
from vantage.genac.states import states_of
from vantage.models.holding import ModelOptions
from vantage.rollout.engine import Rollout
from vantage.segments import Segments

ACTOR = ActorFacts("tiny", 800_000, rate=0.4)


@pytest.fixture(scope="module")
def critic():
    policy = small_policy(dtype=torch.float32)
    return critic_of(policy, template_for(policy.tokenizer), 12)


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


TOKENIZER = small_policy().tokenizer


def states(responses, starts, groups, final_action=False):
    cuts = [Segments(tuple(s), len(r)) for s, r in zip(starts, responses)]
    prompts = ["1+1=" if g == 0 else "2+2=" for g in groups]
    return states_of(
        prompts, [ids(p) for p in prompts], responses, cuts, groups, TOKENIZER, limit=20, final_action=final_action
    )


def test_a_state_holds_nothing_of_what_follows_it():
    one, two = ids("1+1=2\n>2"), ids("1+1=2\n>9")
    a = states([one], [[0, 6]], [0])
    b = states([two], [[0, 6]], [0])
    assert [v.prefix for v in a.views] == ["", "1+1=2\n"]
    assert a.views == b.views
    assert a.names() == b.names()
    assert [(v.used, v.limit) for v in a.views] == [(0, 20), (6, 20)]


def test_siblings_share_states_and_targets_and_groups_do_not():
    one, two, other = ids("1+1=2\n>2"), ids("1+1=2\n>9"), ids("1+1=2\n>2")
    found = states([one, two, other], [[0, 6]] * 3, [0, 0, 1])
    assert found.unique.multiplicity == [2, 2, 1, 1]
    assert found.groups == [0, 0, 1, 1]
    assert found.targets([1.0, 0.0, 1.0]) == [0.5, 0.5, 1.0, 1.0]
    assert found.targets([1.0, float("nan"), 1.0]) == [1.0, 1.0, 1.0, 1.0]
    assert [str(t) for t in found.targets([float("nan")] * 3)] == ["nan"] * 4
    assert len(set(found.names())) == 4


def test_special_tokens_of_a_prefix_are_kept():
    found = states([[*ids("1"), 2, *ids("\n2")]], [[0, 3]], [0])
    assert found.views[1].prefix == "1<unk>\n"


def test_the_state_before_the_last_token_is_added_once_and_only_where_it_is_none_yet():
    long, short = ids("1+1=2\n>2"), ids("2")
    found = states([long, short], [[0, 6], [0]], [0, 1], final_action=True)
    assert [found.views[u].prefix for u in found.unique.index[0]] == ["", "1+1=2\n", "1+1=2\n>"]
    assert [found.views[u].prefix for u in found.unique.index[1]] == [""]
    assert [len(cut) for cut in found.segments] == [2, 1]


def test_a_failure_takes_the_value_before_it_and_never_0():
    assert filled([0.4, None, 0.3, 0.8], prior=0.29) == [0.4, 0.4, 0.3, 0.8]
    assert filled([None, None, 0.3, None], prior=0.29) == [0.29, 0.29, 0.3, 0.3]
    assert filled([None], prior=0.29) == [0.29]
    assert filled([0.0, None], prior=0.29) == [0.0, 0.0]  # a real 0 is one


def test_answers_depend_on_the_keys_alone_and_not_on_company(critic):
    views = [StateView("1+1=", "", 0, 20), StateView("12+34=", "12+34=46\n", 9, 20)]
    both = critic.ask(views, [[1, 2], [3]], ACTOR)
    alone = critic.ask(views[1:], [[3]], ACTOR)
    said = [[r.response_ids for r in o.rollouts] for o in (*both, *alone, *critic.ask(views[1:], [[4]], ACTOR))]
    assert said[1] == said[2]
    assert said[0][0] != said[0][1]
    assert said[3] != said[2]
    assert all(len(r.response_ids) <= 12 for o in both for r in o.rollouts)
    assert both[0].prompt_ids == critic.template.encode(critic.policy.tokenizer, views[0], ACTOR)


class Scripted:
    """An engine that says what it is told."""

    end_ids = (1,)

    def __init__(self, texts):
        self.texts = texts

    def generate(self, requests, sampling):
        assert sampling.stop == ("]",)
        said = iter(self.texts)
        return [
            [Rollout(ids(text), [0.0] * len(text), "stop") for text in (next(said) for _ in r.keys)] for r in requests
        ]


def test_the_value_of_a_state_is_the_mean_of_what_can_be_parsed(critic):
    critic = critic_of(critic.policy, critic.template, 12)
    critic.engine = Scripted(["[4]", "[9", "[9]", "x", "[11]", "[0]"])
    found = critic.ask([StateView("[7]", "[8]", 3, 20)] * 2, [[1, 2, 3], [4, 5, 6]], ACTOR)
    assert [o.values for o in found] == [[0.4, None, 0.9], [None, None, 0.0]]
    assert [o.value for o in found] == pytest.approx([0.65, 0.0])
    critic.engine = Scripted(["?"])
    assert critic.ask([StateView("[7]", "[8]", 3, 20)], [[1]], ACTOR)[0].value is None  # tags in the prompt are none


def test_the_expected_value_scores_whole_labels_behind_the_same_reasoning(critic):
    critic = critic_of(critic.policy, critic.template, 12)
    critic.engine = Scripted(["22.[4]", "[[4]"])
    view = StateView("1+1=", "", 0, 20)
    (found,) = critic.ask([view], [[1, 2]], ACTOR, soft=True)
    context = [*critic.template.encode(TOKENIZER, view, ACTOR), *ids("22.[")]
    (logp,) = critic.label_logp([context])
    for score in (1, 10):  # by hand: the sum over the label's tokens, closing tag included
        whole = torch.tensor([[*context, *ids(f"{score}]")]])
        table = torch.log_softmax(critic.policy.model(whole).logits[0].double(), -1)
        byhand = sum(float(table[len(context) + i - 1, t].detach()) for i, t in enumerate(ids(f"{score}]")))
        assert logp[score] == pytest.approx(byhand, abs=1e-4)
    assert found.soft[0] == pytest.approx(expected_value(logp))
    assert found.value == pytest.approx(sum(found.soft) / 2)
    assert found.values == [0.4, 0.4]  # what is learned from stays what was said


def test_a_failure_has_no_expectation(critic):
    critic = critic_of(critic.policy, critic.template, 12)
    critic.engine = Scripted(["22.4]", "[5]"])
    (found,) = critic.ask([StateView("1+1=", "", 0, 20)], [[1, 2]], ACTOR, soft=True)
    assert found.soft[0] is None
    assert found.value == found.soft[1]


def test_a_copy_is_the_actor_at_first_and_moves_alone():
    actor = small_policy()
    critic = copied(actor)
    assert all(torch.equal(a, b) for a, b in zip(actor.model.parameters(), critic.model.parameters()))
    with torch.no_grad():
        next(critic.model.parameters()).add_(1)
    assert not torch.equal(next(actor.model.parameters()), next(critic.model.parameters()))


def test_a_critic_that_learns_has_float32_weights_whatever_the_arithmetic(critic, tmp_path):
    folder = tmp_path / "critic"
    critic.save(folder, {"stage": "joint", "critic_tokens": 12})
    hold = ModelOptions("bf16", trained=True, gradient_checkpointing=True)
    found = begin(
        str(folder), model="x", task="y", policy=small_policy(), device=torch.device("cpu"), hold=hold
    ).critic.policy  # fmt: skip
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    assert (found.compute, found.recompute) == (torch.bfloat16, True)
    copy = copied(found)
    assert (copy.compute, copy.recompute) == (torch.bfloat16, True)  # as the solver's own arithmetic is


def test_a_saved_critic_comes_back_with_its_template_and_weights(critic, tmp_path):
    folder = tmp_path / "run" / "critic"
    critic.save(folder, {"stage": "joint", "critic_tokens": 12})
    kept = begin(
        str(tmp_path / "run"), model="x", task="y", policy=small_policy(), device=torch.device("cpu")
    )  # a run's critic lies in RUN/critic
    assert kept.schooled
    assert kept.critic.template == template_of(read_card(folder), f"--genac.critic {tmp_path / 'run'}")
    assert kept.critic.template.digest == critic.template.digest
    assert kept.critic.sampling.max_new_tokens == 12
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(p, weights[n]) for n, p in kept.critic.policy.model.named_parameters())
    with pytest.raises(UserError, match=r"--genac\.icc is False.*trained with it on"):
        begin(str(folder), model="x", task="y", policy=small_policy(), device=torch.device("cpu"), icc=False)
    (folder / CARD).write_text(json.dumps({"stage": "joint"}))
    with pytest.raises(UserError, match="damaged"):
        read_card(folder)


def test_a_critic_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"--genac\.critic nowhere: there is no such folder"):
        begin("./nowhere", model="x", task="y", policy=small_policy(), device=torch.device("cpu"))


def test_only_the_embedded_policy_on_its_own_world_has_an_embedded_critic():
    assert embedded_critic("tiny", "sums").name == "tiny-critic"
    assert embedded_critic("some/model", "sums") is None
    assert embedded_critic("tiny:programs", "sums") is None
    assert embedded_critic("tiny", "jsonl:x.jsonl") is None
