"""The page's parts on P6 (results/p6-*.json) and on values by continuations at equal steps (results/vineppo-steps-*.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common import RESULTS
from results_lab import number
from results_later import difference
from results_words import Found, interval, listed, ranked
from vantage.compare.statistics import paired_difference

PAPER = {"cross": 50.1, "prompt-only": 47.5, "same-rollout": 40.7}
"""Avg@32 over seven benchmarks, Qwen3-4B on mathematics (arXiv 2605.07579 v3, ablation)."""
SAID = {
    "cross": "the sibling's features (POISE)",
    "prompt-only": "the prompt's states",
    "same-rollout": "the rollout's own features",
}


def p6() -> list[str]:
    """One section for each measured world."""
    return [line for path in sorted(RESULTS.glob("p6-*.json")) for line in p6_section(json.loads(path.read_text()))]


def p6_section(found: Found) -> list[str]:
    shared, seeds = found["configuration"]["shared"], found["seeds"]["reporting"]
    lines = [
        f"# P6 on `{shared['task']}`: it matters whose features the baseline is read from (POISE v3, ablation)",
        "",
        f"**Scale.** Model `{shared['model']}` on `{shared['task']}`, {found['budget']['amount']} steps of "
        f"{shared['rollouts_per_step']} rollouts, two a prompt in every row, learning rate",
        f"{shared['learning_rate']:g}, seeds {listed(seeds)}. In the paper the other two rows have one rollout a prompt.",
        f"Intervals are {found['interval']}.",
        "",
        "| baseline from | paper | final accuracy | − POISE | Pearson of value and outcome | entropy | response length |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, paper in PAPER.items():
        last = [course["last"] for course in found["course"][name]]
        change = "–" if name == "cross" else difference(found, name, found, "cross")
        shown = [mean(last, key) for key in ("value/pearson", "policy/entropy", "completion/length_mean")]
        lines.append(
            f"| {SAID[name]} | {paper} | {interval(found['algorithms'][name]['means']['final_accuracy'])} | {change} | "
            f"{number(shown[0], '{:.2f}')} | {number(shown[1])} | {number(shown[2], '{:.1f}')} |"
        )
    return [
        *lines,
        "",
        "Pearson, entropy (nats a token) and length are means over the last quarter of the steps and over seeds.",
        "",
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        *(
            f"| {SAID[name]} are worse than the sibling's | {PAPER['cross']} against {PAPER[name]} | "
            f"{difference(found, name, found, 'cross')} | {word(found, name)} |"
            for name in ("prompt-only", "same-rollout")
        ),
        "",
    ]


def mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Over the seeds that have a number."""
    known = [row[key] for row in rows if row[key] is not None]
    return sum(known) / len(known) if known else None


def word(found: Found, name: str) -> str:
    ours, theirs = accuracies(found, name), accuracies(found, "cross")
    paired = paired_difference(ours, theirs)
    if paired is None or paired.low is None or paired.high is None:
        return "one seed says nothing"
    if paired.high < 0:
        return "holds here"
    return "does not hold here" if paired.low > 0 else "no difference seen"


def accuracies(found: Found, name: str) -> dict[int, float]:
    reported = found["seeds"]["reporting"]
    return {c["seed"]: c["final_accuracy"] for c in found["cells"] if c["algorithm"] == name and c["seed"] in reported}


def ppo_forms() -> list[str]:
    """What PPO's forms came to in thirty steps."""
    path = RESULTS / "ppo-forms.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    shared = found["configuration"]["shared"]
    return [
        "# PPO's forms",
        "",
        f"**Scale.** Model `{shared['model']}` on `{shared['task']}`, {found['budget']['amount']} steps of "
        f"{shared['rollouts_per_step']} rollouts, learning rate {shared['learning_rate']:g}, seed",
        f"{listed(found['seeds']['reporting'])} alone: that they work, not which is best. Intervals are those of the "
        "evaluation, the other figures means over the last ten steps.",
        "",
        "| form | accuracy before | after | explained variance | deviation of V within a response | values' share of a step |",
        "|---|---|---|---|---|---|",
        *(
            f"| {FORMS[name]} | {row['before']['mean']:.3f} | {interval(row['after'])} | {row['explained_variance']:.3f} | "
            f"{row['within_response_std']:.3f} | {100 * row['share_of_step']:.0f} % |".replace("| -", "| −")
            for name, row in found["course"].items()
        ),
        "",
    ]


FORMS = {
    "copy": "a copied trunk (default)",
    "head": "`--ppo.critic head`",
    "lambda-0.95": "`--ppo.lam-actor 0.95`, the critic's λ at 1",
}


def steps() -> list[str]:
    """VinePPO at equal steps, beside runs of GenAC's experiment with the same settings where there are some."""
    path, others = RESULTS / "vineppo-steps-sums.json", RESULTS / "genac-rl.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    parts = [found, *([json.loads(others.read_text())] if others.exists() else [])]
    parts = [part for part in parts if same(part, found)]
    shared = found["configuration"]["shared"]
    rows = [(name, row, part) for part in parts for name, row in ranked(part)]
    rows.sort(key=lambda row: -row[1]["means"]["final_accuracy"]["mean"])
    lines = [
        "# Values by continuations, at equal steps",
        "",
        f"**Scale.** Model `{shared['model']}` on `{shared['task']}`, {found['budget']['amount']} steps of "
        f"{shared['rollouts_per_step']} rollouts, learning rate {shared['learning_rate']:g} for all, seeds "
        f"{listed(found['seeds']['reporting'])}; nobody is tuned.",
        "Tokens that are sampled for values do not count against anybody here.",
        "",
        "| algorithm | final accuracy | − RLOO | tokens sampled, of RLOO's | for values |",
        "|---|---|---|---|---|",
    ]
    base = found["algorithms"]["rloo"]["means"]["tokens"]["mean"]
    told: dict[str, list[str]] = {"ahead of": [], "behind": []}
    for name, row, part in rows:
        means = row["means"]
        tokens = means["tokens"]["mean"]
        extra = means["tokens_value_extra"]["mean"] / max(1.0, tokens)
        change = "–" if name == "rloo" else difference(part, name, found, "rloo")
        apart = paired_difference(accuracies(part, name), accuracies(found, "rloo"))
        if apart is not None and apart.low is not None and apart.high is not None:
            told["ahead of"] += [f"`{name}`"] if apart.low > 0 else []
            told["behind"] += [f"`{name}`"] if apart.high < 0 else []
        lines.append(
            f"| `{name}` | {interval(means['final_accuracy'])} | {change} | {tokens / base:.1f} | {100 * extra:.0f} % |"
        )
    words = [f"{where} `rloo`: {listed(names) or 'none'}" for where, names in told.items()]
    return [*lines, "", f"Beyond the interval of the paired difference {'; '.join(words)}.", ""]


def same(part: Found, found: Found) -> bool:
    """Whether both were run alike."""
    keys = ("task", "model", "rollouts_per_step", "learning_rate", "eval_problems")
    ours, theirs = found["configuration"]["shared"], part["configuration"]["shared"]
    return part["budget"] == found["budget"] and all(ours[key] == theirs[key] for key in keys)
