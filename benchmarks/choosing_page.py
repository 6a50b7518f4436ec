"""Makes docs/choosing.md: which algorithm for which budget, length, reward and memory; numbers from results/*.json alone.

python benchmarks/choosing_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS
from results_later import difference
from results_values import accuracies
from results_words import Found, interval, ranked, share
from vantage.compare.statistics import paired_difference

PAGE = Path(__file__).parents[1] / "docs" / "choosing.md"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def load(name: str) -> Any:
    """The JSON of a benchmark; None where it was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def page() -> str:
    """The whole page."""
    parts = [HEAD, short(), budget(), prompts(), values(), rewards(), memory(), limits()]
    return "\n".join(line for part in parts for line in part)


HEAD = [
    "# Choosing an algorithm",
    "",
    "Made by `benchmarks/choosing_page.py`: every number is read from `benchmarks/results/*.json`. They are "
    "of small models on small worlds, with",
    "three seeds; what they can not tell is said below. Measure on your own work: `vantage compare` for "
    "accuracy under a budget,",
    "`vantage lab` for the value estimates, `vantage audit` for the gradients.",
    "",
]


def short() -> list[str]:
    """The answer first."""
    name = recommended()
    return [
        "| you have | begin with | why |",
        "|---|---|---|",
        f"| nothing in particular | `{name}` | {CHEAP[name]}, no second model, no tokens for values; {standing(name)} |",
        "| rewards that siblings share no scale for, or one rollout a prompt | `poise_token`, `reinforce` | "
        "need no siblings |",
        "| an existing GRPO recipe to stay near | `dr_grpo` | GRPO without the two divisions that bias its gradient |",
        "| a reference model in memory anyway | `vimpo` | its value costs a reference's "
        "forward pass and nothing else |",
        "| long responses with clear steps, and tokens to spare | `genac`, then `vineppo` | values of steps; "
        "the price is below |",
        "| a good critic from an earlier run | `ppo` | `--ppo.critic RUN` begins with it |",
        "",
    ]


CHEAP = {"poise": "two rollouts a prompt", "poise_token": "one rollout a prompt"}
"""What can be recommended to everybody: a baseline that costs next to nothing."""


def worlds() -> list[tuple[Found, Found | None]]:
    """The comparison under one budget of each world, and that of the algorithms that came later."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("algorithms-*.json"), reverse=True)]
    return [(first, load(f"later-{first['configuration']['shared']['task']}")) for first in found]


def told(first: Found, later: Found | None, one: str, other: str) -> int:
    """1 where `one` ends above `other` beyond the paired interval, −1 where below, 0 else."""
    ours, theirs = (
        next((accuracies(part, name) for part in (first, later) if part and name in part["algorithms"]), {})
        for name in (one, other)
    )
    paired = paired_difference(ours, theirs)
    if paired is None or paired.low is None or paired.high is None:
        return 0
    return 1 if paired.low > 0 else -1 if paired.high < 0 else 0


def recommended() -> str:
    """`poise_token` once it was measured in every world, is behind `poise` in none and ahead in one; else `poise`."""
    found = worlds()
    if not all(later is not None and "poise_token" in later["algorithms"] for _, later in found):
        return "poise"
    against = [told(*world, "poise_token", "poise") for world in found]
    return "poise_token" if min(against) >= 0 and max(against) > 0 else "poise"


def standing(name: str) -> str:
    """Who ends above it, beyond the paired interval, world by world."""
    said = []
    for first, later in worlds():
        parts = [part for part in (first, later) if part is not None]
        mine = next(part for part in parts if name in part["algorithms"])
        above = [
            f"`{other}` ({difference(part, other, mine, name)})"
            for part in parts
            for other in part["algorithms"]
            if told(first, later, other, name) > 0
        ]
        task = first["configuration"]["shared"]["task"]
        gain = f"{difference(mine, name, first, 'poise')} over `poise`, " if name == "poise_token" else ""
        said.append(f"on `{task}` {gain}{' and '.join(above) if above else 'nothing'} ended higher beyond noise")
    return "; ".join(said)


def budget() -> list[str]:
    """Accuracy under one budget of tokens."""
    lines = ["## A budget of tokens", ""]
    for found, later in worlds():
        lines += one_budget(found, later)
    return lines


def one_budget(found: Found, later: Found | None) -> list[str]:
    shared, rows = found["configuration"]["shared"], ranked(found)
    more = [] if later is None else ranked(later)
    both = sorted([*rows, *more], key=lambda item: -item[1]["means"]["final_accuracy"]["mean"])
    lines = [
        f"On `{shared['task']}` with {found['budget']['amount']:,} generated tokens, learning rates tuned alike"
        + (" (values' own tokens count):" if more else ":"),
        "",
        "| algorithm | final accuracy | tokens until DAPO's, of DAPO's | time for values |",
        "|---|---|---|---|",
    ]
    for name, row in both:
        reach = row.get("to_target") or {}
        reached = share(reach["tokens"]) if (name, row) in rows and reach.get("tokens") else "–"
        means = row["means"]
        lines.append(
            f"| `{name}` | {interval(means['final_accuracy'])} | {reached} | "
            f"{100 * means['value_share_of_time']['mean']:.1f} % |"
        )
    best = both[0][1]["means"]["final_accuracy"]
    level = [f"`{name}`" for name, row in both if row["means"]["final_accuracy"]["high"] >= best["mean"]]
    return [*lines, "", f"Not told apart from the best by their own intervals: {', '.join(level)}.", ""]


def prompts() -> list[str]:
    """Rollouts of a prompt."""
    found = load("p5-sums")
    if found is None:
        return []
    rows = {(row["estimator"], row["m"]): row["ratio"] for row in found["rows"]}
    shown = [
        name for name in ("constant", "rloo", "poise", "poise shrink", "poise_token") if any(n == name for n, _ in rows)
    ]
    sizes = sorted({m for _, m in rows})
    lines = [
        "## Rollouts of a prompt",
        "",
        "Prompts are better than siblings as long as there are enough of them: the gradient's variance at a "
        "fixed number of rollouts, as a share of",
        "POISE's at two rollouts a prompt ([P5](results.md)):",
        "",
        "| baseline | " + " | ".join(f"m = {m}" for m in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for name in shown:
        cells = [f"{rows[name, m]['mean']:.2f}" if (name, m) in rows else "–" for m in sizes]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "With few problems prompts repeat sooner, which no number here is about: try groups of four and "
        "`--poise.shrink` then.",
        "",
    ]


def values() -> list[str]:
    """What values cost where they are generated, and how that grows with length."""
    lines = ["## Response length, and what values cost", ""]
    found = load("vineppo_cost")
    if found is not None:
        lines += [
            "Values that are read off the policy's own forward pass cost little (below); those that are "
            "generated cost rollouts.",
            "VinePPO on `sums`",
            f"({found['rollouts']} rollouts), tokens and forward rows as multiples of the rollouts' own:",
            "",
            "| setting | tokens | rows computed | noise of an advantage (variance) |",
            "|---|---|---|---|",
        ]
        for name, row in found["settings"].items():
            lines.append(
                f"| {name} | {row['tokens']:.1f} | {row['rows_computed']:.1f} | {row['advantage_noise']:.3f} |"
            )
        lines.append("")
    cost = load("value_cost")
    if cost is not None:
        ratio = cost["ratio"]
        lines += [
            f"POISE's whole cost is {100 * (ratio['median'] - 1):.1f} % of a replayed step of `tiny` "
            f"[{100 * (ratio['low'] - 1):.1f}, {100 * (ratio['high'] - 1):.1f}].",
            "",
        ]
    x2 = load("x2")
    if x2 is not None:
        lines += [
            f"What values cost in a step of `{x2['model']}` on `{x2['task']}` ({x2['rollouts_per_step']} rollouts):",
            "",
        ]
        lines += ["| algorithm | share of a step for values | tokens for values, of the rollouts' |", "|---|---|---|"]
        for name, row in x2["algorithms"].items():
            tokens = row["tokens_value"] / row["tokens_rollouts"]
            lines.append(f"| `{name}` | {100 * row['share_of_time']:.1f} % | {tokens:.2f} |")
        lines.append("")
    return [
        *lines,
        *within(),
        "Over hundreds of tokens the reward of the end says less and less about each of them. Whether values "
        "by step or token are",
        "worth their price there is a question for `vantage lab`.",
        "",
    ]


def within() -> list[str]:
    """Whether values within a response pay at some tens of tokens."""
    found = load("p5-sums")
    if found is None:
        return []
    rows = {(row["estimator"], row["m"]): row["ratio"]["mean"] for row in found["rows"]}
    share_left = rows["poise_token", 1] / rows["constant", 1]
    return [
        f"At the tens of tokens of `sums` values of every prefix already leave {share_left:.2f} of a constant "
        f"baseline's variance, at one",
        "rollout a prompt.",
    ]


def rewards() -> list[str]:
    """Noise and density of rewards."""
    lines = [
        "## Rewards",
        "",
        "- Almost always 0, or almost always 1: groups of equal outcomes teach GRPO and RLOO nothing. `dapo` "
        "throws them away and draws others, which",
        "  costs the tokens of what it throws away; `poise` and `reinforce` use them, since their baseline is "
        "no sibling's reward.",
        "- Graded rewards: no division by a group's deviation (`--grpo.scale none`, `dr_grpo`, `rloo`, "
        "`poise`), or scales mix.",
    ]
    names = {"v2-group": "a quarter of the groups", "v2-rollout": "a quarter of the rollouts"}
    found = {said: load(f"vimpo-{part}") for part, said in names.items()}
    if any(found.values()):
        lines += ["- Wrong rewards, flipped for …:", "", "| flipped | " + " | ".join(_arms(found)) + " |"]
        lines.append("|---" * (len(_arms(found)) + 1) + "|")
        for said, one in found.items():
            if one is not None:
                cells = [interval(one["algorithms"][arm]["means"]["final_accuracy"]) for arm in _arms(found)]
                lines.append(f"| {said} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _arms(found: dict[str, Any]) -> list[str]:
    return list(next(one for one in found.values() if one is not None)["algorithms"])


def memory() -> list[str]:
    """What is held besides the policy."""
    lines = [
        "## Memory",
        "",
        "| algorithm | held besides policy and optimizer |",
        "|---|---|",
        "| `reinforce`, `rloo`, `grpo`, `dr_grpo`, `dapo` | nothing |",
        "| `poise`, `poise_token` | a buffer of features, or sums over them: megabytes |",
        "| `vimpo` | the reference's weights (none with adapters), no gradient |",
        "| `ppo` | a critic with its optimizer: about once more the policy; with `--ppo.critic head` a vector |",
        "| `vineppo` | nothing; time instead |",
        "| `genac` | a critic language model with its optimizer |",
        "",
    ]
    found = load("vimpo_memory")
    if found is not None:
        lines += [
            f"At a vocabulary of {found['vocabulary']:,}, the reference's weights aside, peak memory and time "
            f"over GRPO's:",
            "",
            "| algorithm | memory | time |",
            "|---|---|---|",
        ]
        for name, row in found["over_grpo"].items():
            lines.append(f"| `{name}` | {row['memory']:.3f} | {row['time']:.2f} |")
        lines.append("")
    return [*lines, "`vantage doctor --model NAME --algo X` says whether it fits.", ""]


def limits() -> list[str]:
    """What the numbers can not tell."""
    half = [
        (d["final_accuracy"]["high"] - d["final_accuracy"]["low"]) / 2
        for part in (part for world in worlds() for part in world if part is not None)
        for d in part["differences"]
        if d["final_accuracy"] is not None and d["final_accuracy"]["low"] is not None
    ]
    seeds = f"- Three seeds: half of the paired differences are known to no better than ±{median(half):.2f}."
    return [seeds if line is None else line for line in TAIL]


TAIL = [
    "## What these numbers can not tell",
    "",
    "- Models of less than a million parameters and responses of tens of tokens: shares of time for values "
    "are larger here than at scale, gains from",
    "  values within a response smaller.",
    None,
    "- One family of worlds with exact verifiers. [Results](results.md) has every experiment, also those in "
    "which a claim did not hold.",
    "",
]


if __name__ == "__main__":
    main()
