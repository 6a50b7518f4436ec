"""Experiments G1, G2 and G3: a generative critic against a discriminative one, on `sums`.

    python benchmarks/genac_values.py critics|icc [--out FOLDER] [--quick] [--json PATH]

G1: critics of one size trained on the same states of resting rollouts; error against 64 continuations, their noise taken out,
on held-out problems and on two shifts (more terms, three digits). G2: which of 2, 4, 8, 16 next steps is best. G3: critics with
and without the facts about the solver in their prompt, untaught, taught, and taught and reinforced, for two solvers (`tiny` at
two sampling temperatures), and how the prediction moves with the shown success rate. Every piece is a file in FOLDER; what is
there is not made again. `critics` is G1 and G2, results/genac-critics.json; `icc` is G3, results/genac-icc.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common import write
from genac_parts import (
    actor,
    collect,
    discriminative,
    discriminative_values,
    generative_values,
    measured_states,
    pools,
    reinforced,
    schooled,
)

SHIFTS = {"none": "", "moderate": "more-terms", "high": "three-digits"}
ACTORS = {"usual": 1.0, "hasty": 1.4}
"""Sampling temperatures of two solvers with the same weights."""
SHOWN = (0.1, 0.3, 0.5, 0.7, 0.9)
TUNING_SEED = 1000


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    seeds: int = 3
    problems: int = 40
    """Held-out problems of the training distribution …"""
    other_problems: int = 24
    """… and of each shift, and of the second solver."""
    rollouts: int = 2
    states: int = 2
    """States of a response besides the prompt, of the training distribution; one elsewhere."""
    continuations: int = 64
    pools: int = 120
    pool: int = 16
    pool_problems: int = 160
    """Held-out problems, at whose open states next steps part."""
    samples: int = 8
    """Completions of the critic for a state."""
    steps: int = 3
    step_rollouts: int = 128
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    epochs: int = 6
    school: int = 400
    traces: int = 6400
    icc_steps: int = 1


QUICK = Sizes(
    seeds=1, problems=3, other_problems=2, states=1, continuations=2, pools=1, pool=4, pool_problems=3, samples=1, steps=1,
    step_rollouts=16, rates=(1e-4, 3e-4), epochs=1, school=1, traces=16,
)  # fmt: skip


class Pieces:
    """Pieces of the experiment as files; `made` makes what is missing."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.sizes = folder, sizes
        folder.mkdir(parents=True, exist_ok=True)

    def made(self, name: str, make: Callable[[], Any]) -> Any:
        path = self.folder / f"{name}.json"
        if not path.exists():
            draft = path.with_suffix(".part")
            draft.write_text(json.dumps(make()))
            draft.replace(path)
            print(name, flush=True)
        return json.loads(path.read_text())


def rate(pieces: Pieces, who: str) -> float:
    """The solver's success rate on training problems, which is what prompts show."""

    def measure() -> float:
        made = actor(ACTORS[who], "", 0, 16)
        made.estimator.first_success_rate()
        return float(made.estimator.actor.rate or 0.0)

    return float(pieces.made(f"rate-{who}", measure))


def truths(pieces: Pieces, who: str, shift: str) -> Any:
    """States with truth."""
    s = pieces.sizes
    problems, states = (s.problems, s.states) if (who, shift) == ("usual", "none") else (s.other_problems, 1)

    def measure() -> Any:
        made = actor(ACTORS[who], SHIFTS[shift], 0, 16)
        return measured_states(made, problems, s.rollouts, states, s.continuations, pieces.folder / "cache")

    return pieces.made(f"truth-{who}-{shift}", measure)


def candidates(pieces: Pieces) -> Any:
    """Pools of next steps."""
    s, cache = pieces.sizes, pieces.folder / "cache"

    def draw() -> Any:
        made = actor(1.0, "", 1, 16)
        starts = measured_states(made, s.pool_problems, s.rollouts, 1, s.continuations, cache)
        return pools(made, starts, s.pools, s.pool, 2.5, s.continuations, cache)

    return pieces.made("pools", draw)


def sets(pieces: Pieces) -> dict[str, Any]:
    """Everything that critics of G1 and G2 are asked about."""
    return {shift: truths(pieces, "usual", shift) for shift in SHIFTS} | {"pools": candidates(pieces)}


def tuned(pieces: Pieces) -> Any:
    """Learning rate and epochs of the discriminative critic, by its error on states of other problems, on a seed of its own."""
    s = pieces.sizes

    def tune() -> Any:
        made = actor(1.0, "", TUNING_SEED, s.step_rollouts)
        *data, held = collect(made, s.steps + 1)
        errors = {r: discriminative(made, data, r, s.epochs, TUNING_SEED, [held]).errors for r in s.rates}
        best = min((e, r, i + 1) for r, row in errors.items() for i, e in enumerate(row))
        return {"rate": best[1], "epochs": best[2], "errors": {str(r): row for r, row in errors.items()}}

    return pieces.made("tuning", tune)


def trained(pieces: Pieces, seed: int) -> Any:
    """Both critics after learning from the same states; what they say of every set."""
    s, asked, choice, shown = pieces.sizes, sets(pieces), tuned(pieces), rate(pieces, "usual")

    def train() -> Any:
        made = actor(1.0, "", seed, s.step_rollouts)
        made.estimator.actor.rate = shown
        data = collect(made, s.steps)
        learned = discriminative(made, data, choice["rate"], choice["epochs"], seed)
        log = reinforced(None, [made], [data])
        critic = made.estimator.critic
        return {
            "steps": log,
            "discriminative": {name: discriminative_values(learned.model, rows) for name, rows in asked.items()},
            "generative": said(critic, asked, shown, s, seed),
        }

    return pieces.made(f"trained-seed{seed}", train)


def said(critic: Any, asked: dict[str, Any], shown: float, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Values of every set, several for each state: one answer has eleven scores only, so ties are many."""
    return {name: generative_values(critic, rows, shown, sizes.samples, seed) for name, rows in asked.items()}


def taught(pieces: Pieces) -> Any:
    """The embedded critic as it is shipped, which has seen no outcome of these rollouts."""
    s, asked, shown = pieces.sizes, sets(pieces), rate(pieces, "usual")

    def ask() -> Any:
        critic = actor(1.0, "", 0, 16).estimator.critic
        return said(critic, asked, shown, s, 0)

    return pieces.made("taught", ask)


def conditioned(pieces: Pieces, icc: bool, seed: int) -> Any:
    """G3: one critic of both solvers, with and without facts; what it says untaught, taught and reinforced."""
    s = pieces.sizes
    shown = {who: rate(pieces, who) for who in ACTORS}
    asked = {who: truths(pieces, who, "none") for who in ACTORS}
    folder = pieces.folder / f"icc-{'on' if icc else 'off'}"

    def answers(critic: Any, seed: int) -> Any:
        return {who: generative_values(critic, asked[who], shown[who], 1, seed) for who in ACTORS}

    def first() -> Any:
        made = actor(1.0, "", 0, 16)
        untaught = actor(1.0, "", 0, 16, critic="copy", icc=icc).estimator.critic
        critic = schooled(made, icc, s.school, s.traces)
        critic.save(folder, {"stage": "sft", "critic_tokens": 128})
        return {"base": answers(untaught, 0), "sft": answers(critic, 0)}

    pieces.made(f"{folder.name}-sft", first)

    def second() -> Any:
        made = [actor(t, "", seed, s.step_rollouts // 2, critic=str(folder), icc=icc) for t in ACTORS.values()]
        for bench, who in zip(made, ACTORS):
            bench.estimator.actor.rate = shown[who]
        log = reinforced(None, made, [collect(bench, s.icc_steps) for bench in made])
        critic = made[0].estimator.critic
        starts = [r for r in asked["usual"] if not r["prefix_ids"]]
        moved = {str(rho): generative_values(critic, starts, rho, 4, seed) for rho in SHOWN} if icc else None
        return {"steps": log, "values": answers(critic, seed), "moved": moved}

    return pieces.made(f"{folder.name}-rl-seed{seed}", second)


def critics(pieces: Pieces) -> dict[str, Any]:
    """G1 and G2."""
    states = sets(pieces)
    return {
        "rate": rate(pieces, "usual"),
        "states": {name: [slim(r) for r in rows] for name, rows in states.items()},
        "tuning": tuned(pieces),
        "taught": taught(pieces),
        "trained": [trained(pieces, seed) for seed in range(pieces.sizes.seeds)],
    }


def icc(pieces: Pieces) -> dict[str, Any]:
    """G3."""
    found: dict[str, Any] = {
        "rates": {who: rate(pieces, who) for who in ACTORS},
        "temperatures": ACTORS,
        "states": {who: [slim(r) for r in truths(pieces, who, "none")] for who in ACTORS},
    }
    for on in (True, False):
        name = "on" if on else "off"
        rows = [conditioned(pieces, on, seed) for seed in range(pieces.sizes.seeds)]
        found[name] = {"taught": pieces.made(f"icc-{name}-sft", dict), "reinforced": rows}
    return found


def main() -> None:
    """Make what is missing of a part and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("critics", "icc"))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="a few states of each kind, one seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pieces = Pieces(arguments.out or Path("runs/genac-values"), QUICK if arguments.quick else Sizes())
    found = (critics if arguments.part == "critics" else icc)(pieces)
    if arguments.quick and arguments.json is None:
        return
    result = {"quick": arguments.quick, "sizes": vars(pieces.sizes), **found}
    print(write(f"genac-{arguments.part}", result, arguments.json))


def slim(row: dict[str, Any]) -> dict[str, Any]:
    """Without what can be made again from problem and prefix."""
    return {k: v for k, v in row.items() if k not in ("prompt_ids", "prefix_ids")}


if __name__ == "__main__":
    main()
