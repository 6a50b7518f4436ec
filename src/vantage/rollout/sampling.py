"""Drawing a token from logits by inversion, one uniform number a token: pure functions.

N rows of logits, R draws from them (one a row, or several), V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample(
    logits_NV: Tensor, uniform_R: Tensor, temperature: float, top_p: float, top_k: int, branch_R: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probs at the temperature, before top-p and top-k, both [R]; temperature 0 is greedy.

    `branch_R` has the row of logits that each draw is from; None: draw i from row i. The token is the first whose
    cumulative probability exceeds the uniform number, in float64, so that the draw depends on the row alone.
    """
    count = logits_NV.shape[0] if branch_R is None else len(branch_R)
    row_R = torch.arange(count, device=logits_NV.device) if branch_R is None else branch_R
    if temperature == 0:
        logp_NV = torch.log_softmax(logits_NV.float(), -1)
        token_R = logp_NV.argmax(-1)[row_R]
        return token_R, logp_NV[row_R, token_R]
    logp_NV = torch.log_softmax(logits_NV.float() / temperature, -1)
    kept_NV = truncate(logp_NV, top_p, top_k)
    cumulative_NV = kept_NV.double().exp().cumsum(-1)
    threshold_R = uniform_R.to(cumulative_NV.device) * cumulative_NV[row_R, -1]
    cumulative_RV = cumulative_NV if branch_R is None else cumulative_NV[branch_R]
    token_R = torch.searchsorted(cumulative_RV, threshold_R[:, None], right=True).squeeze(1)
    token_R = token_R.clamp(max=logits_NV.shape[1] - 1)
    return token_R, logp_NV[row_R, token_R]


def truncate(logp_RV: Tensor, top_p: float, top_k: int) -> Tensor:
    """Set to −inf what lies outside of the k likeliest tokens and of the nucleus; the likeliest token always stays."""
    if 0 < top_k < logp_RV.shape[1]:
        floor_R1 = logp_RV.topk(top_k, dim=-1).values[:, -1:]
        logp_RV = logp_RV.masked_fill(logp_RV < floor_R1, float("-inf"))
    if top_p < 1:
        sorted_RV, order_RV = logp_RV.sort(dim=-1, descending=True, stable=True)
        mass_RV = sorted_RV.softmax(-1)
        before_RV = mass_RV.cumsum(-1) - mass_RV
        drop_RV = (before_RV >= top_p).scatter(1, order_RV, before_RV >= top_p)
        logp_RV = logp_RV.masked_fill(drop_RV, float("-inf"))
    return logp_RV
