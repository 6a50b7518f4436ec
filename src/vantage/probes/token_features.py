"""What does a policy know of its success at each token? Features of prefixes, for a value that is read at every position.

The features of token t see the prompt and the tokens before t, never token t itself: the hidden state at the position that
predicts token t, the mean of such states since the response began, and running statistics of how sure the policy was and
how likely the tokens were that it drew so far. M rollouts of a micro-batch, T response tokens, D hidden size, S statistics,
K chosen positions of each rollout, P features, W domains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vantage.gae import gae, paid_at_the_end
from vantage.randomness import Stream, key, uniforms

STATISTICS = (
    "share of the budget used", "log position", "entropy of token t", "mean entropy", "largest entropy", "mean surprise",
    "mean improbability", "largest improbability",
)  # fmt: skip
"""What `running_statistics` gives, in this order; all but the first three are over the tokens before t."""
LARGEST_SURPRISE = 20.0
"""Surprise in nats is cut here, so that one impossible token does not drown a mean."""


def running_statistics(logp_MT: Tensor, entropy_MT: Tensor, mask_MT: Tensor, budget: int) -> Tensor:
    """`STATISTICS` of each prefix [M, T, S], in the dtype of `logp_MT`; a mean or maximum over no token is 0.

    Surprise is −log p of a drawn token in nats, improbability 1 − p. `budget` is the response limit in tokens, so position
    says how much of it remains.
    """
    clean_MT = torch.nan_to_num(entropy_MT.detach(), nan=0.0, posinf=0.0, neginf=0.0).masked_fill(~mask_MT, 0.0)
    surprise_MT = torch.nan_to_num(-logp_MT.detach(), nan=0.0).clamp(0, LARGEST_SURPRISE).masked_fill(~mask_MT, 0.0)
    improbable_MT = -torch.expm1(-surprise_MT)
    place_T = torch.arange(mask_MT.shape[1], device=mask_MT.device, dtype=logp_MT.dtype)
    place_MT, count_T = place_T.expand_as(logp_MT), place_T.clamp(min=1)
    return torch.stack(
        [
            place_MT / budget,
            torch.log1p(place_MT) / np.log1p(budget),
            clean_MT,
            _before(clean_MT.cumsum(1)) / count_T,
            _before(clean_MT.cummax(1).values),
            _before(surprise_MT.cumsum(1)) / count_T,
            _before(improbable_MT.cumsum(1)) / count_T,
            _before(improbable_MT.cummax(1).values),
        ],
        dim=-1,
    )


def _before(running_MT: Tensor) -> Tensor:
    """Move by one token, so that a running figure no longer has its own token in it."""
    return torch.nn.functional.pad(running_MT, (1, 0))[:, :-1]


def predicting_states(hidden_MSD: Tensor, prompt_length_M: Tensor, mask_MT: Tensor) -> Tensor:
    """The states at the positions that predict the response tokens [M, T, D]; zeros outside of the mask.

    Token t of the response is predicted at position prompt length + t − 1, which has read the tokens before it only.
    float32, or float64 where the states are.
    """
    place_T = torch.arange(mask_MT.shape[1], device=hidden_MSD.device)
    index_MT = (prompt_length_M[:, None] + place_T - 1).clamp(max=hidden_MSD.shape[1] - 1)
    row_M1 = torch.arange(len(hidden_MSD), device=hidden_MSD.device)[:, None]
    found_MTD = hidden_MSD.detach()[row_M1, index_MT]
    found_MTD = found_MTD if found_MTD.dtype == torch.float64 else found_MTD.float()
    return found_MTD.masked_fill(~mask_MT[..., None], 0.0)


def chosen_positions(responses: Sequence[Sequence[int]], count: int, seed: int) -> Tensor:
    """At most `count` tokens of each response, one drawn from each of as many equal stretches [M, K]; −1 fills up.

    All tokens where there are no more than `count`. The draw is a function of `seed` and the response, so it is the same
    for any micro-batch and any number of processes.
    """
    keys = np.array([key(seed, Stream.PROBE, _fingerprint(ids)) for ids in responses], dtype=np.uint64)
    drawn_MK = uniforms(keys, 0, count)
    length_M1, place_K = np.array([[len(ids)] for ids in responses]).reshape(-1, 1), np.arange(count)
    low_MK, high_MK = place_K * length_M1 // count, (place_K + 1) * length_M1 // count
    found_MK = low_MK + np.floor(drawn_MK * (high_MK - low_MK)).astype(np.int64)
    every_MK = np.where(place_K < length_M1, place_K, -1)
    return torch.from_numpy(np.where(length_M1 <= count, every_MK, found_MK))


def _fingerprint(ids: Sequence[int]) -> int:
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def feature_rows(states: Sequence[Tensor], statistics_MTS: Tensor, position_MK: Tensor) -> Tensor:
    """Features of the chosen positions [M, K, P]: for each layer its state and the mean of its states so far, then statistics.

    `states` has one [M, T, D] a layer. Rows at position −1 are zeros.
    """
    inside_MK1, place_MK = position_MK[..., None] >= 0, position_MK.clamp(min=0)
    place_T = torch.arange(statistics_MTS.shape[1], device=position_MK.device)
    so_far_MKT = (place_T <= place_MK[..., None]).to(statistics_MTS.dtype) / (place_MK[..., None] + 1)
    parts = []
    for state_MTD in states:
        parts += [_pick(state_MTD, place_MK), so_far_MKT.to(state_MTD.dtype) @ state_MTD]
    parts.append(_pick(statistics_MTS, place_MK).to(parts[0].dtype))
    return torch.cat(parts, dim=-1).masked_fill(~inside_MK1, 0.0)


def _pick(value_MTX: Tensor, place_MK: Tensor) -> Tensor:
    return value_MTX.gather(1, place_MK[..., None].expand(-1, -1, value_MTX.shape[2]))


def linear_values(
    states: Sequence[Tensor], statistics_MTS: Tensor, mean_PW: Tensor, weight_PW: Tensor, offset_W: Tensor
) -> Tensor:
    """offset + (features − mean)·weight at every position [M, T, W], without ever making the features of all positions.

    The mean over states so far is linear too, so it is taken of their products with the weights. Centring each state first
    keeps float32 exact where a coordinate's mean is far larger than its spread.
    """
    dtype, place_T = states[0].dtype, torch.arange(statistics_MTS.shape[1], device=statistics_MTS.device)
    weight_PW, mean_PW = weight_PW.to(states[0]), mean_PW.to(states[0])
    total_MTW = offset_W.to(states[0])
    start = 0
    for state_MTD in states:
        size = state_MTD.shape[2]
        own, mean = slice(start, start + size), slice(start + size, start + 2 * size)
        total_MTW = total_MTW + _centred(state_MTD, mean_PW[own], weight_PW[own])
        so_far_MTW = _centred(state_MTD, mean_PW[mean], weight_PW[mean]).cumsum(1)
        total_MTW = total_MTW + so_far_MTW / (place_T + 1)[:, None].to(dtype)
        start += 2 * size
    return total_MTW + _centred(statistics_MTS.to(dtype), mean_PW[start:], weight_PW[start:])


def _centred(value_MTX: Tensor, mean_XW: Tensor, weight_XW: Tensor) -> Tensor:
    """(value − mean)·weight [M, T, W]; one domain after the other where their means differ."""
    columns = [(value_MTX - m) @ w for m, w in zip(mean_XW.T, weight_XW.T)]
    return torch.stack(columns, dim=-1)


def lambda_advantages(value_BT: Tensor, reward_B: Tensor, mask_BT: Tensor, lam: float) -> Tensor:
    """Σ_l λ^l δ_{t+l} with δ_t = V_{t+1} − V_t, and R − V_t at the last token [B, T]; 0 outside of the mask.

    Generalised advantage estimation (arXiv 1506.02438) with γ = 1 and the reward at the end. At λ = 1 it is R − V_t to the bit.
    """
    return gae(value_BT, paid_at_the_end(reward_B, mask_BT), mask_BT, lam=lam)
