import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vantage.errors import UserError
from vantage.estimators.poise_token import PoiseToken
from vantage.estimators.reinforce import Reinforce
from vantage.estimators.rloo import Rloo
from vantage.lab.algorithms import AlgorithmValues, PoisePrompt, PoiseSelf, PoiseValues
from vantage.lab.baselines import BatchMean, Constant, GivenFeatures, LeaveOneOut
from vantage.lab.choose import Origin, chosen, generative
from vantage.lab.critics import Continuations, Generative, Implied, SequenceValues


def fitted(estimator, train, bench):
    estimator.fit(train, bench)
    return estimator


def test_means_are_the_baselines_that_training_uses(bench, train, test_states):
    """The lab's simple means against the estimators of the algorithms, asked through the trainer's own code."""
    mine = LeaveOneOut().predict(test_states)
    np.testing.assert_allclose(fitted(AlgorithmValues([Rloo()]), train, bench).predict(test_states), mine)
    theirs = fitted(AlgorithmValues([Reinforce()]), train, bench).predict(test_states)
    np.testing.assert_allclose(theirs, BatchMean().predict(test_states), atol=1e-12)
    constant = fitted(Constant(), train, bench).predict(test_states)
    assert set(constant) == {np.nanmean(train.reward_B)}


def test_the_cross_probe_reads_the_other_rollout(bench, train, test_states):
    cross, own = (fitted(kind(), train, bench).predict(test_states) for kind in (PoiseValues, PoiseSelf))
    assert test_states.rollouts.prompt_B.tolist() == [i // 2 for i in range(16)]
    at_prompt = {int(r): i for i, (r, c) in enumerate(zip(test_states.rollout_N, test_states.cut_N)) if c == 0}
    for rollout, i in at_prompt.items():
        assert cross[i] == pytest.approx(own[at_prompt[rollout ^ 1]], abs=1e-12)
    prompt = fitted(PoisePrompt(), train, bench).predict(test_states)
    for number in set(test_states.prompt_N.tolist()):
        assert np.ptp(prompt[test_states.prompt_N == number]) < 1e-12
    assert np.ptp(prompt) > 0.01


def test_token_values_do_not_see_behind_the_state(bench, train, test_states):
    """A response that goes on differently behind the state must not change its value."""
    estimator = fitted(AlgorithmValues([PoiseToken(bootstrap=0, alpha=1.0)]), train, bench)
    before = estimator.predict(test_states)
    rollouts = test_states.rollouts
    cut = {int(r): int(max(test_states.cut_N[test_states.rollout_N == r])) for r in test_states.rollout_N}
    changed = [[*ids[: cut[i]], *reversed(ids[cut[i] :])] for i, ids in enumerate(rollouts.response_ids)]
    other = replace(test_states, rollouts=replace(rollouts, response_ids=changed, logp=None))
    np.testing.assert_allclose(estimator.predict(other), before, atol=1e-5)
    assert np.ptp(before) > 0.01


def test_the_sequence_critic_says_one_number_a_prompt(bench, train, test_states):
    estimator = fitted(SequenceValues(1e-3, epochs=(1,)), train, bench)
    found = estimator.predict(test_states)
    for number in set(test_states.prompt_N.tolist()):
        assert np.ptp(found[test_states.prompt_N == number]) < 1e-6
    assert estimator.chosen[0] in (1e-3 / 3, 1e-3, 3e-3)
    assert estimator.size_bytes() > 3e6


def test_of_several_learning_rates_the_best_on_other_prompts_is_taken(bench, train):
    """With outcomes that a constant predicts best, the rate that moves least must win."""
    from vantage.estimators.ppo import Ppo

    draw = np.random.default_rng(0)
    noise = replace(train, reward_B=(draw.random(len(train)) < 0.5).astype(float))
    candidates = [Ppo(critic="head", critic_learning_rate=rate) for rate in (3.0, 1e-6)]
    estimator = fitted(AlgorithmValues(candidates, passes=2), noise, bench)
    assert estimator.chosen is candidates[1]


def test_continuations_are_not_those_of_the_truth(bench, train, test_states):
    estimator = fitted(Continuations(3), train, bench)
    few = test_states.few(6)
    found = estimator.predict(few)
    assert set(np.round(found * 3, 9) % 1) <= {0.0, 1.0}
    assert estimator.extra_tokens > 0
    truth, _ = bench.values([few.state(i) for i in range(len(few))], 3, bench.seed)
    assert (truth.mean(1) != found).any()


def test_the_generative_critic_judges_equal_states_once(bench, train, test_states):
    estimator = fitted(Generative(generative(bench, Origin())), train, bench)
    few = test_states.few(6)
    found = estimator.predict(few)
    at_prompt = found[few.cut_N == 0]
    known = at_prompt[np.isfinite(at_prompt)]
    assert len(known)
    assert np.all((known >= 0) & (known <= 1))
    for number in set(few.prompt_N.tolist()):
        same = found[(few.prompt_N == number) & (few.cut_N == 0)]
        assert len({round(v, 6) for v in same if math.isfinite(v)}) <= 1


def test_without_a_difference_the_implied_value_is_that_of_the_siblings(bench, train, test_states):
    estimator = fitted(Implied("tiny"), train, bench)
    np.testing.assert_allclose(estimator.predict(test_states), LeaveOneOut().predict(test_states), atol=1e-6)


def test_the_implied_values_scale_is_fitted_to_rewards(bench, train):
    """Drifts that are a multiple of the centred rewards give that multiple back."""
    estimator = Implied("tiny")
    rest = np.nan_to_num(train.reward_B - train.others_mean())
    estimator._drift = lambda rollouts: [np.array([r / 0.05]) for r in rest]  # type: ignore[method-assign]
    estimator.fit(train, bench)
    assert estimator.beta == pytest.approx(0.05)


def test_features_that_came_along_are_regressed_on(bench, train, test_states):
    with pytest.raises(UserError, match="these rollouts have none"):
        GivenFeatures().fit(train, bench)
    draw = np.random.default_rng(0)
    hint = np.where(np.isfinite(train.others_mean()), train.others_mean(), 0)
    known = replace(train, features_BP=np.stack([hint, draw.random(len(train))], 1))
    estimator = fitted(GivenFeatures(), known, bench)
    held = test_states.rollouts
    given = replace(test_states, rollouts=replace(held, features_BP=np.stack([held.reward_B, held.reward_B], 1)))
    high, low = (estimator.predict(given)[held.reward_B[given.rollout_N] == r].mean() for r in (1.0, 0.0))
    assert high > low + 0.3


def test_an_algorithm_of_the_users_is_asked_as_training_would(bench, train, test_states, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from vantage.estimators.rloo import Rloo\n\nclass Mine(Rloo):\n    name = 'mine'\n")
    ((name, estimator),) = chosen(f"{file}:Mine", bench, Origin(), features=False)
    assert name.endswith(":Mine")
    found = fitted(estimator, train, bench).predict(test_states)
    np.testing.assert_allclose(found, LeaveOneOut().predict(test_states))


def test_the_generative_critic_is_the_runs_own_or_that_of_what_it_began_with(bench, tmp_path):
    embedded = generative(bench, Origin())
    assert embedded is not None
    trained = replace(bench, train=replace(bench.train, model=str(tmp_path)))
    assert generative(trained, Origin()) is None
    assert generative(trained, Origin(reference="tiny")) == embedded
    assert generative(trained, Origin(reference="tiny", critic="run/critic")) == "run/critic"
    ((_, critic),) = chosen("genac", trained, Origin(), features=False)
    with pytest.raises(UserError, match="no critic comes with"):
        critic.fit(None, trained)


def test_a_critic_without_facts_about_the_solver_is_read_as_it_was_trained(bench, train, test_states, tmp_path):
    embedded = Path(generative(bench, Origin()))
    shutil.copytree(embedded, tmp_path / "critic")
    card = json.loads((embedded / "critic.json").read_text())
    (tmp_path / "critic" / "critic.json").write_text(json.dumps(card | {"icc": False}))
    estimator = fitted(Generative(str(tmp_path / "critic")), train, bench)
    assert estimator.critic.template.icc is False
    assert fitted(Generative(str(embedded)), train, bench).critic.template.icc is True


def test_all_takes_what_can_be_had(bench):
    everything = [name for name, _ in chosen("all", bench, Origin(), features=False)]
    assert "genac" in everything
    assert "vimpo" not in everything
    assert "features" not in everything
    more = [name for name, _ in chosen("all", bench, Origin(reference="tiny"), features=True)]
    assert more[-2:] == ["vimpo", "features"]
    with pytest.raises(UserError, match="give --reference MODEL"):
        chosen("vimpo", bench, Origin(), features=False)
