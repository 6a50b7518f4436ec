"""What is each step of a response to blame for? Values of segment starts turned into advantages of segments and tokens.

The reward R is paid by the last segment, the state behind it is worth 0. `gae` is generalised advantage estimation with
segments as actions, for critics; `one_step_advantages` is VinePPO's difference of neighbouring values, with its cap.
S segments of one response, B responses, T tokens of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vantage.distributed.world import World
from vantage.lazy import torch
from vantage.segments import Segments

if TYPE_CHECKING:
    from torch import Tensor


def gae(values: Sequence[float], reward: float, lam: float = 1.0, gamma: float = 1.0) -> list[float]:
    """Advantages [S] by δ_k = r_k + γ V_{k+1} − V_k, A_k = δ_k + γ λ A_{k+1} (arXiv 1506.02438), V behind the end 0.

    λ is per segment: at λ = 1 and γ = 1, A_k = R − V_k, and an error of V costs variance only; below it, A also rests on
    V_{k+1}, and the bias of V enters.
    """
    found, behind, advantage = [0.0] * len(values), 0.0, 0.0
    for k in range(len(values) - 1, -1, -1):
        paid = reward if k == len(values) - 1 else 0.0
        advantage = paid + gamma * behind - values[k] + gamma * lam * advantage
        found[k], behind = advantage, values[k]
    return found


def states_to_value(segments: int, cap: int | None) -> int:
    """How many of a response's first states get a value under VinePPO's cap M: those numbered 0 … M."""
    return segments if cap is None else min(segments, cap + 1)


def fill_backward(values: Sequence[float], reward: float) -> list[float]:
    """Values [S] with every missing one (NaN) set to r_k + V_{k+1}, which is the next one, or R in the last place.

    What comes behind the cap so gets advantage 0, and the last step with a value answers for all that follows. A value
    missing elsewhere (no continuation could be judged) makes its step a part of the one before it.
    """
    found, behind = list(values), reward
    for k in range(len(found) - 1, -1, -1):
        if math.isnan(found[k]):
            found[k] = behind
        behind = found[k]
    return found


def one_step_advantages(values: Sequence[float], reward: float) -> list[float]:
    """VinePPO (arXiv 2410.01679 §4): V_{k+1} − V_k, and R − V_k in the last step [S]; NaN values are filled backward.

    They add up to R − V_0.
    """
    return gae(fill_backward(values, reward), reward, lam=0.0)


def segment_numbers(segments: Sequence[Segments], width: int | None = None) -> Tensor:
    """For each token the number of its segment, −1 outside of the response [B, T]; T is `width`, or the longest."""
    width = max((s.length for s in segments), default=0) if width is None else width
    number_BT = torch.full((len(segments), width), -1, dtype=torch.long)
    for b, cut in enumerate(segments):
        number_BT[b, : cut.length] = torch.tensor(cut.numbers(), dtype=torch.long)
    return number_BT


def over_tokens(rows: Sequence[Sequence[float]], number_BT: Tensor, outside: float = 0.0) -> Tensor:
    """One number a segment, copied to each of its tokens [B, T] in float64; `outside` where there is no token.

    `number_BT` is what `segment_numbers` gives. Raises `ValueError` where a row has not as many numbers as segments.
    """
    most = max((len(row) for row in rows), default=0)
    counts = [max(numbers, default=-1) + 1 for numbers in number_BT.tolist()]
    if counts != [len(row) for row in rows]:
        raise ValueError(f"responses of {counts} segments have {[len(row) for row in rows]} numbers")
    padded_BS = torch.full((len(rows), most + 1), outside, dtype=torch.float64)  # one column more, for number −1
    for b, row in enumerate(rows):
        padded_BS[b, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return padded_BS.gather(1, torch.where(number_BT < 0, most, number_BT))


def with_final_action(
    advantage_BT: Tensor, segments: Sequence[Segments], rewards: Sequence[float], values: Sequence[float]
) -> Tensor:
    """Give the last token of each response the baseline of its own state: R − V(all tokens but the last) [B, T].

    `values` has that V for each response, NaN where there is none. No other token changes: the value must not move into
    the bootstrap of the segment before it.
    """
    found_BT = advantage_BT.clone()
    for b, (cut, reward, value) in enumerate(zip(segments, rewards, values, strict=True)):
        if cut.length and not math.isnan(value):
            found_BT[b, cut.length - 1] = reward - value
    return found_BT


def whiten_tokens(
    advantage_BT: Tensor, mask_BT: Tensor, world: World | None = None, eps: float = 1e-8, centre: bool = True
) -> Tensor:
    """(A − mean)/√(variance + eps) over the tokens of the mask, of all processes; 0 outside [B, T].

    The variance is the unbiased one (divided by the number of tokens less one), as PPO codes take it. A single token and
    equal advantages become 0. Without `centre` nothing is subtracted: A/√(variance + eps), and A where that variance is 0.
    """
    world = world or World()
    clean_BT = torch.where(mask_BT, advantage_BT.double(), 0.0)
    count, total = world.sum(torch.stack([mask_BT.double().sum(), clean_BT.sum()])).tolist()
    mean = total / count if count else 0.0
    centred_BT = torch.where(mask_BT, clean_BT - mean, 0.0)
    variance = float(world.sum(centred_BT.square().sum())) / max(count - 1, 1)
    if not centre:
        return clean_BT / math.sqrt(variance + eps) if variance > 0 else clean_BT
    return centred_BT / math.sqrt(variance + eps) if variance > 0 else torch.zeros_like(centred_BT)
