"""Which stage of its training is the critic in, and may it go on? SFT → RL pretraining with a frozen actor → joint PPO.

Gates look at states that the critic has never learned from: those of the newest step, before it learns from them.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vantage.batch import Batch
from vantage.errors import UserError
from vantage.estimators.base import Setup, State
from vantage.genac.asking import Asked
from vantage.genac.panel import Judged
from vantage.genac.rival import Rival

if TYPE_CHECKING:
    from vantage.estimators.genac import Genac

Stage = Literal["sft", "pretrain", "joint"]
ORDER: tuple[Stage, ...] = ("sft", "pretrain", "joint")


@dataclass(frozen=True)
class Gates:
    """What a critic must reach before its values move the actor."""

    parse_rate: float = 0.98
    beat_constant: bool = True
    """Whether its Brier score, failures counted as 1, must be below that of the best constant."""

    rival_steps: int = 0
    """Steps that a discriminative critic learns beside it before the two are compared; 0: there is none."""

    def complaints(self, found: Judged, rival: tuple[int, float] | None = None) -> list[str]:
        """What is not good enough, each with both numbers; empty if the gates are open.

        `rival` has the steps that the discriminative critic has learned from, and its squared error on the same states.
        """
        complaints = []
        if not found.parse_rate >= self.parse_rate:
            complaints.append(
                f"it can be parsed in {found.parse_rate:.3f} of its answers, {self.parse_rate} are wanted"
            )
        if self.beat_constant and not found.brier_penalised < found.brier_constant:
            complaints.append(
                f"its squared error is {found.brier_penalised:.4f}, that of the best constant {found.brier_constant:.4f}"
            )
        if rival is not None:
            steps, error = rival
            if steps < self.rival_steps:
                complaints.append(
                    f"the discriminative critic beside it has learned from {steps} of {self.rival_steps} steps"
                )
            elif not found.brier_penalised < error:
                complaints.append(
                    f"its squared error is {found.brier_penalised:.4f}, that of a discriminative critic {error:.4f}"
                )
        return complaints


class Course:
    """Where a critic stands in its training, what it has been through, and the rival that it is compared with."""

    def __init__(self, options: Genac, setup: Setup, source: str, schooled: bool, say: Callable[[str], None]) -> None:
        self.options, self.source, self.say = options, source, say
        self.stage: Stage = "pretrain" if schooled or options.sft_steps == 0 else "sft"
        self.gates = Gates(options.gate_parse, rival_steps=options.rival_steps)
        self.pretrained = 0
        """Steps that the critic has learned from while the policy rested."""
        self.rival = Rival(setup) if options.rival_steps else None

    def against_rival(self, batch: Batch, asked: Asked) -> tuple[int, float] | None:
        """What the rival has learned from, and its error on the step's states, in pretraining alone."""
        if self.stage != "pretrain" or self.rival is None:
            return None
        return self.rival.steps, self.rival.brier(batch, asked)

    def advance(self, judged: Judged, rival: tuple[int, float] | None) -> None:
        """From pretraining to joint training, where the gates are open or the steps are used up.

        Raises `UserError` where they are used up, the gates closed, and `--genac.gates stop` wants them open.
        """
        if self.stage != "pretrain":
            return
        done, most, mode = self.pretrained, self.options.pretrain_steps, self.options.gates
        complaints = [] if mode == "off" else self.gates.complaints(judged, rival)
        who = "the critic" if done else f"the critic ({self.source})"
        if done < most and (complaints or mode == "off"):
            if done == 0:
                why = f": {'; '.join(complaints)}" if complaints else ""
                self.say(f"{who} learns from outcomes while the policy rests, for at most {most} steps{why}")
            return
        if complaints:
            text = f"{who} does not pass the gates after {done} steps of pretraining: {'; '.join(complaints)}"
            if mode == "stop":
                raise UserError(f"{text}; raise --genac.pretrain-steps, or go on regardless with --genac.gates warn")
            self.say(f"{text}; it is used all the same (--genac.gates stop ends the run here)")
        self.stage, self.rival = "joint", None
        self.say(
            f"joint training begins after {done} steps of pretraining; on new states the squared error of {who} "
            f"is {judged.brier:.4f} (best constant {judged.brier_constant:.4f}), {judged.parse_rate:.3f} can be parsed"
        )

    def learned(self, batch: Batch, asked: Asked, held_out: Set[str]) -> None:
        """The critic has learned from a step; in pretraining, so does its rival. Every process must call it."""
        if self.stage != "pretrain":
            return
        self.pretrained += 1
        if self.rival is not None:
            self.rival.learn(batch, asked, held_out)

    def state_dict(self) -> State:
        """Stage and steps as plain values, and all of the rival."""
        rival = State() if self.rival is None else self.rival.state_dict()
        values = {"stage": self.stage, "pretrained": self.pretrained, "rival": rival.values or None}
        return State(rival.tensors, values)

    def load_state_dict(self, state: State) -> None:
        """What `state_dict` gave; a checkpoint from before there was a rival lets it begin anew."""
        values = state.values
        self.stage, self.pretrained = values["stage"], int(values["pretrained"])
        if self.stage == "joint":
            self.rival = None
        elif self.rival is not None and values.get("rival") is not None:
            self.rival.load_state_dict(State(state.tensors, values["rival"]))
