"""The run directory: which folder, whether it may be used, what resumes, and everything that is written there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vantage import checkpoint
from vantage.config import TrainConfig
from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.models.holding import is_adapted, save_merged
from vantage.models.reference import policy_digest, reference_digest
from vantage.runfiles import read_metrics
from vantage.settings.configfile import dump_yaml, refuse_other
from vantage.summary import Summary
from vantage.tracking import JsonLines, git_commit, versions

if TYPE_CHECKING:
    from vantage.trainer import Progress, Trainer

MAY_CHANGE = {
    "steps", "eval_every", "eval_problems", "checkpoint_every", "keep_checkpoints", "samples_every", "samples_count",
    "device", "out", "resume", "generation_batch", "generation_cache", "tokens_per_microbatch", "logit_chunk_tokens",
    "budget_tokens", "budget_seconds", "reward_timeout", "report_to", "sharding", "vllm_url", "vllm_critic_url",
    "vllm_sync_dir", "vllm_server_timeout", "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "vllm_max_model_len",
    "vllm_enforce_eager", "vllm_enable_sleep_mode", "vllm_tolerance",
}  # fmt: skip
"""What may differ when a run goes on with --resume auto."""


@dataclass
class RunDirectory:
    """One run's folder."""

    path: Path
    config: TrainConfig
    source: Path | None
    """The checkpoint to start from."""
    metrics: JsonLines = field(init=False)
    samples: JsonLines = field(init=False)

    def __post_init__(self) -> None:
        self.metrics, self.samples = JsonLines(self.path / "metrics.jsonl"), JsonLines(self.path / "samples.jsonl")

    @staticmethod
    def plan(config: TrainConfig) -> RunDirectory:
        """Decide on folder and checkpoint without writing anything; raises `UserError` if the folder is taken."""
        source: Path | None = None
        if config.resume not in ("never", "auto"):
            source = Path(config.resume)
            checkpoint.load_trainer(source)
        path = Path(config.out) if config.out else _default(config, source)
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path}: this is a file; give a folder")
        inside = source is not None and source.resolve().parent == (path / "checkpoints").resolve()
        held = path.is_dir() and any(path.iterdir())
        if held and config.resume != "auto" and not inside:
            holds = "a run" if (path / "metrics.jsonl").exists() or (path / "config.yaml").exists() else "other files"
            raise UserError(f"--out {path}: this folder holds {holds}; choose another, or go on with --resume auto")
        if held and config.resume == "auto":
            _refuse_other_run(path, config)
            source = checkpoint.newest(path / "checkpoints")
        config = dataclasses.replace(config, out=str(path))
        return RunDirectory(path, config, source)

    @staticmethod
    def plan_together(config: TrainConfig, world: World) -> RunDirectory:
        """`plan` by the main process for all of them; each raises what it raises."""
        planned, complaint = None, ""
        if world.main:
            try:
                planned = RunDirectory.plan(config)
            except UserError as error:
                complaint = str(error)
        complaint = world.from_main(complaint)
        if complaint:
            raise UserError(complaint)
        path, source = world.from_main(None if planned is None else (planned.path, planned.source)) or (Path(), None)
        return RunDirectory(path, dataclasses.replace(config, out=str(path)), source)

    def open(self, trainer: Trainer) -> Progress:
        """Create or reopen the folder, restore the checkpoint if there is one, and return how far the run has come."""
        from vantage.trainer import Progress

        progress = Progress()
        if self.source is not None:
            saved = checkpoint.load_trainer(self.source)
            self._refuse_misfit(saved, trainer)
            state = checkpoint.restore(self.source, model=trainer.policy.model, optimizer=trainer.update.optimizer)
            if trainer.reference is not None and trainer.config.reference_refresh:
                checkpoint.restore_reference(self.source, trainer.reference.model)
            trainer.estimator.load_state_dict(state)
            trainer.update.updates_done = int(saved["updates_done"])
            progress = Progress(**saved["progress"])
            trainer.checkpointed = progress.step
        trainer.world.wait()  # nobody reads any more what the main process may now remove
        if trainer.world.main:
            self._open_files(progress.step)
        trainer.world.wait()
        return progress

    def _open_files(self, step: int) -> None:
        """The folder, with what belongs to later steps removed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").touch()
        except OSError as error:
            raise UserError(
                f"--out {self.path}: can not be written ({error.strerror}); choose another folder"
            ) from error
        self._adopt_rows(step)
        kept = step if self.source and step > 0 else -1  # a run that stopped before its first step evaluates again
        self.metrics.drop_after(kept)
        self.samples.drop_after(kept)
        folder = self.path / "checkpoints"
        if folder.is_dir():
            checkpoint.clean(folder)
            for later in checkpoint.complete(folder):
                if int(later.name.removeprefix("step-")) > step:
                    (later / checkpoint.MARKER).unlink()
                    shutil.rmtree(later)
        (self.path / "config.yaml").write_text(self._config_text(), encoding="utf-8")

    def _adopt_rows(self, step: int) -> None:
        """A run that branches off another one begins with that one's rows."""
        if self.source is None or self.metrics.path.exists():
            return
        for ours in (self.metrics, self.samples):
            theirs = self.source.parent.parent / ours.path.name
            if theirs.exists():
                shutil.copyfile(theirs, ours.path)

    def _config_text(self) -> str:
        lines = ["versions:", *(f"  {name}: '{found}'" for name, found in versions().items())]
        if commit := git_commit():
            lines.append(f"git_commit: {commit}")
        return dump_yaml(dataclasses.replace(self.config, resume="never")) + "\n".join(lines) + "\n"

    def _refuse_misfit(self, saved: dict[str, Any], trainer: Trainer) -> None:
        """A value estimate means nothing under another tokenizer, verifier or prompt template."""
        for name, now in fingerprint(trainer).items():
            before = saved["fingerprint"].get(name)
            if before != now:
                raise UserError(
                    f"--resume {self.source}: the checkpoint was made with another {name.replace('_', ' ')} "
                    f"({before}, now {now})"
                )

    def save_checkpoint(self, trainer: Trainer) -> None:
        """Everything that the next step depends on. Where models are dealt out, every process calls it."""
        values = {
            "progress": dataclasses.asdict(trainer.progress),
            "updates_done": trainer.update.updates_done,
            "processes": trainer.world.size,
            "fingerprint": fingerprint(trainer),
            "versions": versions(),
        }
        with trainer.policy.whole() as model:
            checkpoint.save(
                self.path / "checkpoints",
                trainer.step,
                model=model,
                tokenizer=trainer.policy.tokenizer,
                optimizer=checkpoint.optimizer_state(trainer.update.optimizer, trainer.policy.model),
                estimator=trainer.estimator.state_dict(),
                trainer=values,
                reference=trainer.reference.model if trainer.reference and trainer.config.reference_refresh else None,
                keep=trainer.config.keep_checkpoints,
                world=None if trainer.sharding is None else trainer.world,
            )

    def save_model(self, trainer: Trainer) -> None:
        """The final model, for plain transformers, adapters apart too, and what the estimator leaves (`critic/`).

        Every process calls it; the main one writes.
        """
        main = trainer.world.main
        if main or trainer.sharding is not None:
            with trainer.policy.whole() as model:
                network: Any = model
                if main:
                    save_merged(network, self.path / "model")
                if main and is_adapted(network):
                    network.save_pretrained(self.path / "adapter")
        if main:
            trainer.policy.tokenizer.save_pretrained(self.path / "model")
        if main or trainer.estimator.dealt_out:
            trainer.estimator.save_pretrained(self.path / "critic")

    def finish(self, seconds: float) -> Summary:
        """Report and summary."""
        from vantage.report import write_report

        report = write_report([self.path])
        summary = Summary.of(self.path, self.config, read_metrics(self.path), seconds, report.html)
        (self.path / "summary.json").write_text(json.dumps(summary.as_dict(), indent=1), encoding="utf-8")
        return summary


def _default(config: TrainConfig, source: Path | None) -> Path:
    """The run that a checkpoint belongs to, else a fresh folder below runs/."""
    if source is not None:
        return source.resolve().parent.parent
    task = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.task)[:40]
    stem = f"{task}-{config.algo.name}-seed{config.seed}"
    path, number = Path("runs") / stem, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def _refuse_other_run(path: Path, config: TrainConfig) -> None:
    """--resume auto goes on with the same run; another configuration is a mistake that names the field."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"--out {path}: this folder holds other files and no run; choose another")
    refuse_other(path, config, MAY_CHANGE, "resume with the same value, or choose another --out")


def fingerprint(trainer: Trainer) -> dict[str, str]:
    """What a checkpoint is tied to, apart from the weights."""
    tokenizer = trainer.policy.tokenizer
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    template = f"{getattr(tokenizer, 'chat_template', None)}|{trainer.config.chat}"
    frozen = trainer.reference if trainer.config.reference_refresh == 0 else None
    found = {} if frozen is None else {"reference": reference_digest(frozen)}
    if is_adapted(trainer.policy.model):
        found["base_model"] = policy_digest(trainer.policy, frozen_only=True)
    return found | {
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest()[:16],
        "prompt_template": hashlib.sha256(template.encode()).hexdigest()[:16],
        "verifier_version": f"{trainer.work.task.name} {trainer.work.task.version}",
        "algorithm": trainer.config.algo.name,
    }
