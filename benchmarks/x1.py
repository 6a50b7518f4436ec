"""Experiment X1: bias and variance of every algorithm's gradient, on the same policy and rollouts.

    python benchmarks/x1.py [--part exact|sums|values|generative] [--quick] [--out DIR] [--json PATH]

`exact`: sums over every group of responses of the enumerable world. `sums`: independent blocks of rollouts of `tiny` on `sums`,
all algorithms whose values are not generated, and POISE's probe reading its own rollout (a planted bias) or the prompt alone.
`values`: VinePPO and GenAC beside two of the others, since each of their values costs rollouts of its own. `generative`: ways
to read GenAC's critic, at one rollout of each prompt, beside a trained critic and none. All through `vantage.audit`; what was
measured is kept in --out, so that a stopped run goes on. Writes results/x1-PART.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import write
from vantage import Genac, Poise
from vantage.audit import plan
from vantage.audit.api import results
from vantage.audit.plan import DEFAULT_ALGOS, EXACT_ALGOS

FIXED = {"alpha": 0.1, "bootstrap": 0}
"""On so small a world the chosen penalty would leave a probe that says the same of everything."""


def request(part: str, quick: bool) -> dict[str, Any]:
    """What `vantage.audit.plan` is asked."""
    if part == "exact":
        probes = {
            "poise": Poise(**FIXED), "poise, own features": Poise(features="own", **FIXED),
            "poise, prompt alone": Poise(features="prompt", **FIXED),
        }  # fmt: skip
        named = {"rloo": "rloo", "poise": "poise"} if quick else {name: name for name in EXACT_ALGOS}
        return {
            "model": "enumerable",
            "algos": {**named, **probes},
            **({"rollouts_per_step": 32, "fill_steps": 2} if quick else {}),
        }
    if part == "values":
        sizes = (
            {"blocks": 4, "rollouts_per_step": 16, "fill_steps": 1}
            if quick
            else {"blocks": 24, "rollouts_per_step": 256}
        )
        names = ["rloo", "vineppo"] if quick else ["rloo", "poise", "vineppo", "genac"]
        return {"model": "tiny", "algos": names, "task": "sums", "rollouts_per_prompt": 4, **sizes}
    if part == "generative":
        sizes = (
            {"blocks": 4, "rollouts_per_step": 16, "fill_steps": 1}
            if quick
            else {"blocks": 24, "rollouts_per_step": 256}
        )
        forms = {"genac, expected score": Genac(reading="expected"), "genac, mean of 4": Genac(samples=4)}
        named = {"reinforce": "reinforce", **({} if quick else {"ppo": "ppo"}), "genac": "genac", **forms}
        return {"model": "tiny", "algos": named, "task": "sums", "rollouts_per_prompt": 1, **sizes}
    probes = {
        "poise, own features": Poise(features="own", bootstrap=0),
        "poise, prompt alone": Poise(features="prompt"),
    }
    named = {name: name for name in (("rloo", "reinforce") if quick else DEFAULT_ALGOS)}
    sizes = (
        {"blocks": 4, "rollouts_per_step": 32, "fill_steps": 2} if quick else {"blocks": 12, "rollouts_per_step": 128}
    )
    return {"model": "tiny", "algos": {**named, **probes}, "task": "sums", **sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("exact", "sums", "values", "generative"), default="sums")
    parser.add_argument("--out", type=Path, default=None, help="folder for what is measured; default runs/x1-PART")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="few algorithms, small blocks")
    arguments = parser.parse_args()
    asked = plan(**request(arguments.part, arguments.quick), out=arguments.out or f"runs/x1-{arguments.part}")
    found = results(asked)
    for name, entry in found["algorithms"].items():
        print(f"{name:22s} {entry['verdict']}")
    if arguments.quick and arguments.json is None:
        return
    print(write(f"x1-{arguments.part}", {"quick": arguments.quick, **found}, arguments.json))


if __name__ == "__main__":
    main()
