"""Pooled states, thinking tags and entropy statistics against the sheet's T4, T5 and C5, and plain loops."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vantage.estimators.base import Setup
from vantage.estimators.poise import Poise
from vantage.policy import Forward, entropy, score_tokens
from vantage.probes.features import entropy_statistics, last_tokens_mean, reasoning_length

OPEN, A, B, CLOSE, C, D, EOS = range(7)


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def token_entropies(logits_TV: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropies as the policy's forward pass computes them, the head being the identity."""
    target = torch.zeros(len(logits_TV), dtype=torch.long)
    return score_tokens(lambda states: states, logits_TV, target, temperature, False)[1]


# --- entropies of single tokens -------------------------------------------------------------------------------------

T4_LOGITS = f64([
    [2, 1, 0, -1], [0, 0, 0, 0], [5, 0, 0, 0], [1, 1, -3, -3], [0, 2, 0, 2], [10, 0, 0, 0], [-1, 0, 1, 2],
])  # fmt: skip
T4_ENTROPY = f64([
    0.947536963975425, 1.38629436111989, 0.119078940092171, 0.783241948326121,
    1.05848103564715, 0.00149800292924951, 0.947536963975425,
])  # fmt: skip
C5_LOGITS = f64([[2, 1, 0, -1], [0, 0, 0, 0], [5, 0, 0, 0], [1, 1, -1, -1]])
C5_CASES = {
    1.0: [0.947536963975, 1.386294361120, 0.119078940092, 1.058481035647],
    0.5: [0.455428622853, 1.386294361120, 0.001498002929, 0.783241948326],
}


def test_t4_token_entropies_are_in_nats_over_the_whole_vocabulary() -> None:
    torch.testing.assert_close(token_entropies(T4_LOGITS), T4_ENTROPY, rtol=0, atol=1e-13)


def test_t4_entropy_is_of_the_distribution_at_the_sampling_temperature() -> None:
    assert float(token_entropies(T4_LOGITS[:1], 0.6)) == pytest.approx(0.587659565320864, abs=1e-13)


@pytest.mark.parametrize("temperature", C5_CASES)
def test_c5_token_entropies(temperature: float) -> None:
    found = token_entropies(C5_LOGITS, temperature)
    torch.testing.assert_close(found, f64(C5_CASES[temperature]), rtol=0, atol=1e-11)


def test_c5_mean_over_the_response() -> None:
    found = entropy_statistics(token_entropies(C5_LOGITS)[None], [[A, B, C, D]], [CLOSE], [EOS])
    assert float(found[0, 0]) == pytest.approx(0.877847825209, abs=1e-7)


def test_an_impossible_token_adds_nothing_to_the_entropy() -> None:
    logp = f64([[math.log(0.5), math.log(0.5), -math.inf], [0.0, -math.inf, -math.inf]])
    torch.testing.assert_close(entropy(logp), f64([math.log(2), 0.0]), rtol=0, atol=1e-15)


def test_large_logits_lose_no_entropy() -> None:
    # With logits of this size in bfloat16 the logsumexp would move in steps of 0.125 and more.
    shifted = (C5_LOGITS + 1000).float()
    torch.testing.assert_close(token_entropies(shifted).double(), f64(C5_CASES[1.0]), rtol=0, atol=1e-6)


# --- entropy statistics of a response -------------------------------------------------------------------------------


def statistics(entropies: Sequence[float], ids: Sequence[int], tag: Sequence[int] = (CLOSE,)) -> list[float]:
    found = entropy_statistics(f64([list(entropies)]), [list(ids)], list(tag), {EOS})
    assert found.shape == (1, 3)
    assert found.dtype == torch.float32
    return found[0].tolist()


def test_t4_spans_of_a_response_whose_thought_the_template_opened() -> None:
    # Tokens a, b, </think>, c, d, EOS: the sheet's reasoning (a, b) and answer (c, d).
    found = statistics(T4_ENTROPY[1:].tolist(), [A, B, CLOSE, C, D, EOS])
    assert found[0] == pytest.approx(float(T4_ENTROPY[1:].mean()), abs=1e-7)
    assert found[1] == pytest.approx(0.752686650606031, abs=1e-7)
    assert found[2] == pytest.approx(0.529989519288201, abs=1e-7)


def test_t4_all_tokens_before_the_tag_are_reasoning_and_the_end_token_is_no_answer() -> None:
    found = statistics(T4_ENTROPY.tolist(), [OPEN, A, B, CLOSE, C, D, EOS])
    assert found[0] == pytest.approx(0.749095459437918, abs=1e-7)
    assert found[1] == pytest.approx(float(T4_ENTROPY[:3].mean()), abs=1e-7)
    assert found[2] == pytest.approx(0.529989519288201, abs=1e-7)


def test_an_answer_that_was_cut_off_keeps_its_last_token() -> None:
    assert statistics([4, 8, 1, 2], [A, CLOSE, C, D]) == [3.75, 4, 1.5]


def test_without_a_tag_the_whole_response_is_reasoning_and_there_is_no_answer() -> None:
    assert statistics([1, 2, 6], [A, B, EOS]) == [3, 3, 0]


def test_the_last_tag_ends_the_reasoning() -> None:
    # Before the last tag: 1, 2, 3, the earlier tag included.
    assert statistics([1, 2, 3, 50, 7], [A, CLOSE, B, CLOSE, C]) == [pytest.approx(12.6), 2, 7]


def test_a_tag_at_the_very_end_leaves_an_empty_answer() -> None:
    assert statistics([1, 3, 8], [A, B, CLOSE]) == [4, 2, 0]


def test_a_tag_followed_by_the_end_token_leaves_an_empty_answer() -> None:
    assert statistics([1, 3, 8, 4], [A, B, CLOSE, EOS]) == [4, 2, 0]


def test_a_tag_at_the_very_start_leaves_an_empty_reasoning() -> None:
    assert statistics([8, 1, 3], [CLOSE, C, D]) == [4, 0, 2]


def test_only_a_tag() -> None:
    assert statistics([8], [CLOSE]) == [8, 0, 0]


def test_only_an_end_token() -> None:
    assert statistics([5], [EOS]) == [5, 5, 0]


def test_an_empty_response_has_three_zeros() -> None:
    assert statistics([9, 9], []) == [0, 0, 0]


def test_an_end_token_in_the_middle_is_an_ordinary_token() -> None:
    assert statistics([8, 2, 4, 6], [CLOSE, EOS, D, C]) == [5, 0, 4]


def test_a_tag_of_several_tokens_belongs_to_neither_span() -> None:
    assert statistics([1, 3, 50, 60, 70, 4, 5], [A, B, 30, 31, 32, C, EOS], tag=(30, 31, 32)) == [
        pytest.approx(193 / 7),
        2,
        4,
    ]


def test_padding_is_left_out_and_rows_do_not_mix() -> None:
    entropies = f64([[1, 3, 99, 99, 99], [2, 8, 4, 6, 10], [99, 99, 99, 99, 99]])
    found = entropy_statistics(entropies, [[A, B], [A, CLOSE, C, D, EOS], []], [CLOSE], {EOS})
    assert found.tolist() == [[2, 2, 0], [6, 2, 5], [0, 0, 0]]


def test_a_micro_batch_without_rollouts_gives_no_rows() -> None:
    assert entropy_statistics(torch.zeros((0, 4)), [], [CLOSE], {EOS}).shape == (0, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_entropies_that_are_not_finite_never_reach_the_features(bad: float) -> None:
    found = statistics([1, bad, 3, 8, 4, 6], [A, B, C, CLOSE, C, D])
    assert all(map(math.isfinite, found))
    assert found[2] == 5  # a span without the bad token is exact
    assert statistics([bad, bad, 8, 4], [A, B, CLOSE, C])[1:] == [0, 4]
    entropies = f64([[bad, bad], [1, 3]])
    assert entropy_statistics(entropies, [[A, B], [A, B]], [CLOSE], {EOS})[1].tolist() == [2, 2, 0]
    beyond = f64([[1, 3, bad]])
    assert entropy_statistics(beyond, [[A, B]], [CLOSE], {EOS})[0].tolist() == [2, 2, 0]


def test_statistics_carry_no_gradient() -> None:
    entropies = torch.ones((1, 2), requires_grad=True)
    assert not entropy_statistics(entropies, [[A, B]], [CLOSE], {EOS}).requires_grad


@pytest.mark.parametrize("seed", range(20))
def test_statistics_equal_a_plain_loop(seed: int) -> None:
    draw = random.Random(seed)
    tag = [1, 2] if seed % 2 else [3]
    responses = [[draw.randrange(5) for _ in range(draw.randint(0, 14))] for _ in range(8)]
    entropies = [[draw.random() * 3 for _ in range(15)] for _ in responses]
    found = entropy_statistics(f64(entropies), responses, tag, {4})
    for row, ids, values in zip(found.tolist(), responses, entropies):
        starts = [i for i in range(len(ids)) if ids[i : i + len(tag)] == tag]
        thought = values[: starts[-1]] if starts else values[: len(ids)]
        answer = values[starts[-1] + len(tag) : len(ids)] if starts else []
        if answer and ids[-1] == 4:
            answer = answer[:-1]
        wanted = [sum(span) / len(span) if span else 0.0 for span in (values[: len(ids)], thought, answer)]
        assert row == pytest.approx(wanted, abs=1e-6)


# --- the closing tag ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "tag", "wanted"),
    [
        ([7, 8, 3, 9], [3], 3),
        ([3, 8, 3, 9], [3], 3),  # the last occurrence
        ([7, 8, 9], [3], None),
        ([], [3], None),
        ([3], [3], 1),
        ([9, 3], [3], 2),  # at the very end
        ([3, 9, 9], [3], 1),  # at the very start
        ([1, 5, 6, 7, 2], [5, 6, 7], 4),
        ([5, 6, 7, 5, 6, 2], [5, 6, 7], 3),  # a later beginning of a tag is no tag
        ([1, 5, 6], [5, 6, 7], None),  # cut off within the tag
        ([5, 6], [5, 6, 7], None),  # shorter than the tag
        ([5, 5, 6, 5, 6], [5, 6], 5),
        ([5, 5, 5], [5, 5], 3),  # overlapping occurrences: the last one
        ([1, 2, 3], [], None),  # a tokenizer without such a tag
        ([], [], None),
    ],
)
def test_reasoning_runs_to_the_end_of_the_last_complete_tag(
    response: list[int], tag: list[int], wanted: int | None
) -> None:
    assert reasoning_length(response, tag) == wanted
    assert reasoning_length(tuple(response), tuple(tag)) == wanted


# --- pooling --------------------------------------------------------------------------------------------------------

T5_STATES = f64([[t, 10 * t, (-1) ** t] for t in range(1, 15)])[None]


def pooled(hidden: Tensor, end: Sequence[int], count: Sequence[int], window: int) -> Tensor:
    return last_tokens_mean(hidden, torch.tensor(end), torch.tensor(count), window)


def test_t5_mean_of_the_last_ten_states() -> None:
    assert pooled(T5_STATES, [14], [14], 10).tolist() == [[9.5, 95, 0]]


def test_t5_the_window_ends_with_the_closing_tag() -> None:
    kept = reasoning_length([7, 7, 7, CLOSE, *[7] * 10], [CLOSE])
    assert kept == 4
    assert pooled(T5_STATES, [kept], [kept], 10).tolist() == [[2.5, 25, 0]]


def test_t5_nothing_to_average_is_a_zero_vector() -> None:
    assert pooled(T5_STATES, [0], [0], 10).tolist() == [[0, 0, 0]]
    assert pooled(T5_STATES, [5], [0], 10).tolist() == [[0, 0, 0]]


def test_the_response_window_does_not_reach_into_the_prompt() -> None:
    # Prompt: positions 1–11, response: 12, 13, 14.
    torch.testing.assert_close(pooled(T5_STATES, [14], [3], 10), torch.tensor([[13, 130, 1 / 3]]))


def test_a_window_of_one_is_the_last_state_and_a_window_of_the_whole_span_its_mean() -> None:
    assert pooled(T5_STATES, [6], [6], 1).tolist() == [[6, 60, 1]]
    assert pooled(T5_STATES, [6], [6], 6).tolist() == [[3.5, 35, 0]]
    assert pooled(T5_STATES, [6], [6], 1000).tolist() == [[3.5, 35, 0]]


def test_every_row_has_its_own_span() -> None:
    found = pooled(T5_STATES.expand(4, -1, -1), [14, 4, 0, 2], [14, 4, 0, 1], 10)
    assert found.tolist() == [[9.5, 95, 0], [2.5, 25, 0], [0, 0, 0], [2, 20, 1]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_states_outside_of_the_window_do_not_matter_even_if_not_finite(bad: float) -> None:
    # Positions 5–7 are the span (shorter than the window); before it the prompt, after it padding.
    hidden = T5_STATES.clone()
    hidden[0, :4] = bad
    hidden[0, 7:] = bad
    torch.testing.assert_close(pooled(hidden, [7], [3], 10), torch.tensor([[6, 60, -1 / 3]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_states_are_averaged_in_float32(dtype: torch.dtype) -> None:
    # 256 + 1 is 256 in bfloat16, and 64.75 is no number there.
    hidden = torch.tensor([[[256.0], [1.0], [1.0], [1.0]]], dtype=dtype)
    found = pooled(hidden, [4], [4], 4)
    assert found.dtype == torch.float32
    assert found.tolist() == [[64.75]]


@pytest.mark.parametrize("seed", range(10))
def test_pooling_equals_a_plain_loop(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn((6, 23, 5), generator=draw)
    end = torch.randint(0, 24, (6,), generator=draw)
    count = (torch.rand(6, generator=draw) * (end + 1)).long()
    window = int(torch.randint(1, 15, (1,), generator=draw))
    found = last_tokens_mean(hidden, end, count, window)
    for row, states, stop, size in zip(found, hidden, end.tolist(), count.tolist()):
        span = states[max(stop - size, stop - window) : stop]
        torch.testing.assert_close(row, span.mean(0) if len(span) else torch.zeros(5), rtol=0, atol=1e-6)


# --- what POISE reads of a forward pass -----------------------------------------------------------------------------


def test_poise_reads_prompt_window_reasoning_window_and_entropies() -> None:
    """One rollout with a finished thought, one cut off and shorter than the window, one empty; both layers differ."""
    responses = [[A, B, CLOSE, C, EOS], [A, B], []]
    prompts = [3, 2, 5]
    positions = torch.arange(1, 9, dtype=torch.float32)[None, :, None].expand(3, -1, 1)
    hidden = {1: torch.cat([positions, -positions], 2), 2: torch.cat([10 * positions, positions**2], 2)}
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 0])[:, None]
    forward = Forward(
        logp_MT=torch.zeros((3, 5)),
        entropy_MT=torch.tensor([[1.0, 2, 3, 4, 5], [1, 3, 0, 0, 0], [0, 0, 0, 0, 0]]),
        mask_MT=mask,
        hidden=hidden,
        prompt_length_M=torch.tensor(prompts),
        length_M=torch.tensor([5, 2, 0]),
        response_ids=responses,
    )
    setup = Setup(2, 2, 2, (0.0, 1.0), think_end_ids=(CLOSE,), end_ids=(EOS,))
    estimator = Poise(layer=2, prompt_layer=1, prompt_window=2, reasoning_window=3).build(setup)
    found = estimator.read(forward)["features"]
    assert found.dtype == torch.float32
    wanted = [
        [2.5, -2.5, 50, 77 / 3, 3, 1.5, 4],  # prompt positions 2–3; thought and tag at positions 4–6
        [1.5, -1.5, 35, 12.5, 2, 2, 0],  # prompt positions 1–2; response at positions 3–4, shorter than the window
        [4.5, -4.5, 0, 0, 0, 0, 0],  # prompt positions 4–5; no response
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))
