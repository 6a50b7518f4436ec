"""What does a probe need? Layers × windows × features × regressors on the same rollouts, scored at prompts against truth.

The protocol of POISE's ablations (arXiv 2605.07579, Tables 3 and 8-12): a probe predicts the value of a prompt from one of
its rollouts. Its target is the mean reward of the prompt's *other* rollouts, so that no feature is paid for knowing its own
outcome. All hidden states are pooled in one forward pass; every combination is a fit of its own. B rollouts, P features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vantage.batch import plan_microbatches
from vantage.errors import UserError
from vantage.lab.metrics import METRICS, Floats, bootstrap, resampled_rows
from vantage.lab.settings import FEATURES, check_regressor
from vantage.models.loading import think_end_ids
from vantage.probes.features import entropy_statistics, last_tokens_mean, reasoning_length
from vantage.probes.linear import Scaler, fit_probe

if TYPE_CHECKING:
    from vantage.lab.bench import Bench
    from vantage.lab.data import Rollouts, TestSet

MOST_LAYERS = 8
REPORTED = ("mae", "mse_corrected", "pearson", "pearson_corrected", "explained_variance")
Say = Callable[[str], None]
Predictor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pooled:
    """Features of B rollouts by place of reading."""

    prompt: Mapping[tuple[int, int], Tensor]
    """Mean of the last prompt states [B, D], by layer and window."""
    response: Mapping[tuple[int, int], Tensor]
    entropy_B3: Tensor
    length_B1: Tensor

    def of(self, features: str, layer: int, window: int) -> Tensor:
        """The columns of one kind of input [B, P], float64."""
        parts = {
            "prompt": [self.prompt[layer, window]], "response": [self.response[layer, window]], "entropy": [self.entropy_B3],
            "length": [self.length_B1],
            "full": [self.prompt[layer, window], self.response[layer, window], self.entropy_B3],
        }  # fmt: skip
        return torch.cat(parts[features], dim=1).double()


@torch.no_grad()
def pooled(rollouts: Rollouts, bench: Bench, layers: Sequence[int], windows: Sequence[int]) -> Pooled:
    """One forward pass over the rollouts; what is kept is pooled."""
    batch, policy = rollouts.batch(0, bench.reward_range), bench.policy
    tags, ends = think_end_ids(policy), bench.engine.end_ids
    plan = plan_microbatches(
        batch.tokens(), [[i] for i in range(batch.size)], bench.train.tokens_per_microbatch or 4096
    )
    places = list(itertools.product(layers, windows))
    found: dict[tuple[str, int, int], list[Tensor]] = {(kind, *at): [] for kind in ("p", "r") for at in places}
    entropies, order = list[Tensor](), list[int]()
    for rows in plan.micro:
        forward = policy.forward(batch.select(rows), layers=tuple(layers))
        prompt_M = forward.prompt_length_M
        kept = [reasoning_length(ids, tags) or len(ids) for ids in forward.response_ids]
        kept_M = torch.tensor(kept, device=prompt_M.device)
        for layer, window in places:
            hidden = forward.hidden[layer]
            found["p", layer, window].append(last_tokens_mean(hidden, prompt_M, prompt_M, window).cpu())
            found["r", layer, window].append(last_tokens_mean(hidden, prompt_M + kept_M, kept_M, window).cpu())
        entropies.append(entropy_statistics(forward.entropy_MT, forward.response_ids, tags, ends))
        order += rows
    back = torch.tensor(order).argsort()
    joined = {at: torch.cat(parts)[back] for at, parts in found.items()}
    return Pooled(
        {at: joined[("p", *at)] for at in places}, {at: joined[("r", *at)] for at in places}, torch.cat(entropies)[back],
        batch.length_B[:, None].float(),
    )  # fmt: skip


def lasso(x_NP: Tensor, y_N: Tensor, alpha: float, rounds: int = 300) -> Tensor:
    """Minimises ‖y − Xw‖²/(2N) + alpha·‖w‖₁ for centred columns by FISTA (Beck and Teboulle, SIAM J. Imaging Sci. 2, 2009)."""
    rows = len(x_NP)
    gram, right = x_NP.T @ x_NP / rows, x_NP.T @ y_N / rows
    step = 1 / max(float(torch.linalg.matrix_norm(gram, 2)), 1e-12)
    w_P = momentum_P = torch.zeros(x_NP.shape[1], dtype=x_NP.dtype)
    pace = 1.0
    for _ in range(rounds):
        moved_P = momentum_P - step * (gram @ momentum_P - right)
        new_P = moved_P.sign() * (moved_P.abs() - step * alpha).clamp(min=0)
        next_pace = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        momentum_P = new_P + (pace - 1) / next_pace * (new_P - w_P)
        w_P, pace = new_P, next_pace
    return w_P


def fit_regressor(name: str, x_NP: Tensor, y_N: Tensor, group_N: Floats, seed: int = 0) -> Predictor:
    """A fitted regressor, clipped to [0, 1]; penalties and epochs are chosen on a fifth of the prompts where they are open."""
    kind, number, width = check_regressor(name)
    if kind == "ridge":
        return fit_probe(x_NP, y_N, alpha=number or "auto", condition=False)
    scaler, mean = Scaler.fit(x_NP), float(y_N.mean())
    z_NP = scaler(x_NP)
    prompts = np.unique(group_N)
    held_N = torch.from_numpy(np.isin(group_N, prompts[-max(1, len(prompts) // 5) :]))
    if kind == "lasso":
        w_P = _chosen_lasso(z_NP, y_N, held_N)
        return lambda x: (mean + scaler(x) @ w_P).clamp(0, 1)
    network = _chosen_network(z_NP, y_N, held_N, int(number), width, seed)

    def predict(x_NP: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = network(scaler(x_NP).float()).squeeze(1).double().clamp(0, 1)
        return found

    return predict


def _chosen_lasso(z_NP: Tensor, y_N: Tensor, held_N: Tensor) -> Tensor:
    """Weights on all rows with the penalty that is best on those held back."""
    rest_N = ~held_N
    mean = float(y_N[rest_N].mean())
    errors = {}
    for alpha in (0.001, 0.003, 0.01, 0.03, 0.1):
        w_P = lasso(z_NP[rest_N], y_N[rest_N] - mean, alpha)
        errors[alpha] = float(((mean + z_NP[held_N] @ w_P - y_N[held_N]) ** 2).mean())
    return lasso(z_NP, y_N - y_N.mean(), min(errors, key=lambda alpha: errors[alpha]))


def _chosen_network(
    z_NP: Tensor, y_N: Tensor, held_N: Tensor, depth: int, width: int, seed: int, epochs: int = 40
) -> nn.Module:
    """A ReLU network with dropout, by AdamW, with the weights of its best epoch on the rows held back (early stopping)."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        sizes = [z_NP.shape[1], *[width] * depth]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.1)]
        last = nn.Linear(width, 1)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.fill_(float(y_N.mean()))  # it starts near the best constant
        network = nn.Sequential(*layers, last)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
        x, y = z_NP[~held_N].float(), y_N[~held_N].float()[:, None]
        best, kept = float("inf"), {k: v.clone() for k, v in network.state_dict().items()}
        for _ in range(epochs):
            network.train()
            for rows in torch.split(torch.randperm(len(x)), 64):
                loss = nn.functional.mse_loss(network(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            network.eval()
            with torch.no_grad():
                error = float(((network(z_NP[held_N].float()).squeeze(1) - y_N[held_N]) ** 2).mean())
            if error < best:
                best, kept = error, {k: v.clone() for k, v in network.state_dict().items()}
        network.load_state_dict(kept)
    return network


def grid_of(bench: Bench) -> tuple[list[int], list[int], list[str]]:
    """Layers, windows and regressors of the grid; raises `UserError` for a layer that the policy has not."""
    config, depth = bench.config, bench.policy.num_layers
    if depth < 1:
        raise UserError(f"--ablate: {bench.train.model} has no hidden layers to read")
    layers = list(config.layers or range(depth + 1))
    if wrong := [layer for layer in layers if not 0 <= layer <= depth]:
        raise UserError(f"--layers has {wrong[0]}, this model has layers 0 (embeddings) to {depth}")
    if config.layers is None and len(layers) > MOST_LAYERS:
        layers = sorted({round(i * depth / (MOST_LAYERS - 1)) for i in range(MOST_LAYERS)})
    return layers, list(config.windows), list(config.regressors)


def ablate(bench: Bench, train: Rollouts, test: TestSet, say: Say) -> dict[str, Any]:
    """Every combination, for JSON: `rows` with its metrics and intervals over prompts."""
    layers, windows, regressors = grid_of(bench)
    rows_N = np.flatnonzero(test.states.cut_N == 0)
    target, rollout_N = test.target.take(rows_N), test.states.rollout_N[rows_N]
    siblings_B = train.others_mean()
    known = np.flatnonzero(np.isfinite(siblings_B))
    if len(known) < len(train) // 2:
        raise UserError(
            "--ablate: probes learn the siblings' mean reward; give --train-rollouts-per-prompt of at least 2"
        )
    y_N, group_N = torch.from_numpy(siblings_B[known]), train.prompt_B[known].astype(np.float64)
    before, after = pooled(train, bench, layers, windows), pooled(test.states.rollouts, bench, layers, windows)
    samples = resampled_rows(target.prompt_N, bench.config.resamples or 200)
    rows, done = list[dict[str, Any]](), dict[tuple[Any, ...], dict[str, Any]]()
    for features, layer, window, regressor in itertools.product(FEATURES, layers, windows, regressors):
        # Entropies and length are the same in every layer and window.
        same = (features, regressor) if features in ("entropy", "length") else (features, layer, window, regressor)
        if same not in done:
            x_NP = before.of(features, layer, window)[known]
            predict = fit_regressor(regressor, x_NP, y_N, group_N, bench.seed)
            predicted_N = predict(after.of(features, layer, window)).numpy()[rollout_N]
            done[same] = {
                name: asdict(bootstrap(METRICS[name], predicted_N, target, samples)) for name in REPORTED
            } | {"columns": x_NP.shape[1]}  # fmt: skip
        at = {"features": features, "layer": layer, "window": window, "regressor": regressor}
        rows.append(at | done[same])
    say(f"ablation: {len(done)} probes")
    return {"layers": layers, "windows": windows, "regressors": regressors, "features": list(FEATURES), "rows": rows}
