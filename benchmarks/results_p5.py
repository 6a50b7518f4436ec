"""The page's part on P5: the gradient's variance by rollouts per prompt, from results/p5-*.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from common import RESULTS

Found = Mapping[str, Any]


def p5() -> list[str]:
    """One section for each measured world, `sums` first, with the whole table for its first seed."""
    worlds: dict[str, list[Found]] = {}
    for path in sorted(RESULTS.glob("p5-*.json"), key=lambda path: ("-sums" not in path.stem, path.stem)):
        found = json.loads(path.read_text())
        worlds.setdefault(found["task"], []).append(found)
    for world in worlds.values():
        world.sort(key=lambda found: found["seed"])
    return [line for found in worlds.values() for line in [*section(found[0]), *seeds(found)]]


def seeds(world: Sequence[Found]) -> list[str]:
    """Figures that do not need siblings, by seed of a world that was measured more than once."""
    if len(world) < 2:
        return []
    tables = [{(row["estimator"], row["m"]): row for row in found["rows"]} for found in world]
    names = [name for name, m in tables[-1] if m == 1]
    return [
        f"The same on `{world[0]['task']}` by seed, one rollout a prompt:",
        "",
        "| estimator | " + " | ".join(f"seed {found['seed']}, {found['prompts']} prompts" for found in world) + " |",
        "|---" * (len(world) + 1) + "|",
        *(
            f"| `{name}` | " + " | ".join(share(t[name, 1]["ratio"]) if (name, 1) in t else "–" for t in tables) + " |"
            for name in names
        ),
        "",
    ]


def section(found: Found) -> list[str]:
    rows = {(row["estimator"], row["m"]): row for row in found["rows"]}
    groups = sorted({m for _, m in rows})
    names = list(dict.fromkeys(name for name, _ in rows))
    whole = [name for name in names if (name, groups[1]) in rows]
    others = [name for name in names if name not in whole]
    rollouts = found["rollouts_per_step"]
    return [
        f"# P5 on `{found['task']}`: more prompts beat more rollouts per prompt (POISE Proposition 1, Corollary 1)",
        "",
        f"**Scale.** Model `{found['model']}` on `{found['task']}`, a policy that stands still.",
        f"{found['prompts']} prompts with 16 rollouts each, cut into groups of m;",
        f"probes filled with {found['filled_steps']} steps of {rollouts} rollouts; seed {found['seed']}.",
        f"Trace of the covariance of a step's gradient at {rollouts} rollouts, as a share of POISE's at m = 2, with",
        "jackknife intervals over prompts (paired). In parentheses what Proposition 1 predicts from Σ_w and Σ_b,",
        "where the baseline is a function of the prompt or the prefix.",
        "",
        "| estimator | " + " | ".join(f"m = {m}" for m in groups) + " |",
        "|---" * (len(groups) + 1) + "|",
        *(f"| `{name}` | " + " | ".join(cell(rows, name, m) for m in groups) + " |" for name in whole),
        "",
        "| form, at one rollout a prompt | of POISE's at m = 2 | bias |",
        "|---|---|---|",
        *(
            f"| `{name}` | {share(rows[name, 1]['ratio'])} | {bias(rows[name, 1])} |"
            for name in ["poise_token", *others]
        ),
        "",
        "Bias: distance of the mean gradient from that at λ = 1, as a share of the gradient's norm; 0 by construction at 1,",
        "and not resolved where these rollouts are too few to tell the gradient's norm from its noise.",
        "",
        *verdict(rows, groups),
        "",
    ]


def cell(rows: Mapping[tuple[str, int], Found], name: str, m: int) -> str:
    row = rows.get((name, m))
    if row is None:
        return "–"
    reference = row["trace"]["mean"] / row["ratio"]["mean"]
    predicted = f" ({row['predicted'] / reference:.2f})" if "predicted" in row and m not in (1, 16) else ""
    return share(row["ratio"]) + predicted


def share(value: Found) -> str:
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def bias(row: Found) -> str:
    if "bias" not in row:
        return "0"
    return "not resolved" if row["bias"] is None else f"{100 * row['bias']:.0f} %"


def verdict(rows: Mapping[tuple[str, int], Found], groups: list[int]) -> list[str]:
    """Whether the smallest allocation is the best, and what the token's values are worth, in words."""
    shares = {m: rows["constant", m]["ratio"]["mean"] for m in groups}
    rising = all(shares[a] < shares[b] for a, b in pairwise(groups))
    between = [m for m in groups if m not in (1, 16)]
    off = max(abs(rows["constant", m]["trace"]["mean"] / rows["constant", m]["predicted"] - 1) for m in between)
    token, constant = rows["poise_token", 1]["ratio"], rows["constant", 1]["ratio"]
    best = min((row["ratio"]["mean"], name, m) for (name, m), row in rows.items() if "λ" not in name)
    said = ["holds here" if flag else "does not hold here" for flag in (rising, best[2] == 1)]
    return [
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        "| variance grows with m at a fixed number of rollouts | Proposition 1 | constant baseline: "
        f"{shares[1]:.2f} at m = 1 to {shares[16]:.2f} at m = 16; "
        f"within {100 * off:.0f} % of the prediction between | {said[0]} |",
        f"| so one rollout a prompt is best | Corollary 1 | smallest trace without bias: `{best[1]}` at m = {best[2]}; "
        f"`poise_token` {share(token)} of POISE's, a constant {share(constant)} | {said[1]} |",
    ]
