"""`vantage critic sft|pretrain|score`: GenAC's stages one by one. Flags are checked before torch is imported.

`sft` and `pretrain` take the flags of `vantage train --algo genac`: what they do is what such a run would do first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vantage.errors import UserError
from vantage.genac.settings import ScoreConfig
from vantage.plugins import did_you_mean

if TYPE_CHECKING:
    from vantage.config import TrainConfig

USAGE = """\
usage: vantage critic [-h] sft|pretrain|score [FLAGS]

GenAC's critic by itself: a language model that reads problem, unfinished response and facts about the solver, reasons, and
ends with an integer 0..10.

  sft        learn from an oracle's traces how to reason: a file, a stronger model, or the task's own critiques
  pretrain   learn from outcomes while the policy rests; --steps of --rollouts-per-step rollouts
  score      ask a saved critic about states of held-out problems, and measure it

sft and pretrain take the flags of `vantage train --algo genac`, and --out is where the critic goes.

examples:
  vantage critic sft --task sums --model tiny --genac.critic copy --out critic-sft
  vantage critic pretrain --task sums --model tiny --genac.critic critic-sft --steps 20 --out critic
  vantage critic score critic --task sums --model tiny --continuations 32
  vantage train --algo genac --genac.critic critic
"""
STAGES = ("sft", "pretrain", "score")


def run(argv: Sequence[str]) -> int:
    """Find the stage and run it; raises `UserError`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    stage, rest = argv[0], list(argv[1:])
    if stage not in STAGES:
        raise UserError(
            f"vantage critic: there is no stage {stage!r}{did_you_mean(stage, STAGES) or '; sft, pretrain, score'}"
        )
    if stage == "score":
        from vantage.settings.commandline import parse_dataclass
        from vantage.tasks import check_task

        config = parse_dataclass(ScoreConfig, rest, "vantage critic score", {"critic": "CRITIC"})
        check_task(config.task)
        _free(config.out)
        from vantage.genac.scoring import score

        score(config)
        return 0
    train = _parsed(stage, rest)
    if train is None:
        return 0
    from vantage.genac.alone import pretrain, school_alone

    return (school_alone if stage == "sft" else pretrain)(train)


def _parsed(stage: str, argv: list[str]) -> TrainConfig | None:
    """The configuration of the run whose first stage this is; None after --dry-run."""
    from vantage.estimators.genac import Genac
    from vantage.settings.commandline import parse_train

    request = parse_train(["--algo", "genac", *argv] if "--algo" not in argv else argv, f"vantage critic {stage}")
    config = request.config
    if not isinstance(config.algo, Genac):
        raise UserError(f"--algo is {config.algo.name}, a critic is trained for genac alone; leave --algo out")
    if config.out is None:
        raise UserError("--out is missing: the folder for the critic")
    if stage == "pretrain" and config.algo.sft_steps:
        raise UserError("--genac.sft-steps belongs to `vantage critic sft`; leave it out")
    if config.resume != "never":
        raise UserError("--resume: the stages of a critic are short and begin anew; leave it out")
    if request.dry_run:
        from vantage.settings.configfile import dump_yaml

        print(dump_yaml(config), end="")
        return None
    from vantage.tasks import check_task

    check_task(config.task)
    _free(config.out)
    if request.note:
        print(f"vantage: note: {request.note}", file=sys.stderr)
    return config


def _free(out: str | None) -> None:
    if out is not None and Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder")
