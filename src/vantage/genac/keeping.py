"""Where does a critic go that a run has taught for an embedded policy? Into a cache, from which the next run begins.

Lessons of the embedded worlds take minutes and depend on nothing but policy, task, sampling, options and seed: they are held
once.
Only for embedded policies: a critic of a large model is large, and its user says where it goes (`vantage critic sft --out`).
The cache is `critics/` below `$VANTAGE_CACHE`, else below `~/.cache/vantage`; it may be deleted at any time.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vantage.montecarlo.cache import digest, model_digest

if TYPE_CHECKING:
    from vantage.estimators.genac import Genac
    from vantage.policy import Policy
    from vantage.rollout.engine import Sampling
    from vantage.tasks.base import Task

FORMAT = 2
"""Of critiques, prompts and lessons: raised where what would be learned changes."""
TAUGHT_BY = (
    "icc", "template", "critic_tokens", "actor_name", "success_problems", "segmentation", "segment_tokens", "lowprob",
    "min_segment_tokens", "max_segment_tokens", "max_segments", "sft_examples", "sft_steps", "sft_batch",
    "sft_learning_rate", "sft_own", "sft_continuations", "sft_tolerance",
)  # fmt: skip
"""Options that decide what is learned at school."""


def cache_folder() -> Path:
    """Where critics are kept."""
    return Path(os.environ.get("VANTAGE_CACHE") or "~/.cache/vantage").expanduser() / "critics"


def place_of(options: Genac, model: str, policy: Policy, task: Task, sampling: Sampling, seed: int) -> Path | None:
    """The folder of the critic that these lessons make; None where none is kept."""
    own_lessons = options.critic is None and options.traces is None and options.teacher is None
    if model.partition(":")[0] != "tiny" or not own_lessons or options.template is not None:
        return None
    settings = {name: getattr(options, name) for name in TAUGHT_BY}
    name = digest(
        [FORMAT, model_digest(policy.model), task.name, task.version, asdict(sampling), settings, seed]
    ).hex()[:16]
    return cache_folder() / f"{task.name.replace(':', '-')}-{name}"


def kept(place: Path | None) -> Path | None:
    """The critic at this place, if it is there and whole."""
    return place if place is not None and (place / "critic.json").is_file() else None


def keep(place: Path, save: Callable[[Path], None]) -> str:
    """Let `save` write a critic, which appears at its place when it is complete; returns what there is to say."""
    draft = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
        save(draft)
        if kept(place) is None:
            draft.rename(place)
    except OSError as error:
        return f"the critic could not be kept for other runs ({error})"
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return f"the critic is kept in {place}; other runs with these settings begin with it"
