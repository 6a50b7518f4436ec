"""Checkpoints: complete, atomic, without pickle. A folder is a checkpoint only once its completion marker is in place.

`step-000020/` holds `model/` (save_pretrained, tokenizer included), `optimizer.*`, `estimator.*`, `rng.*`,
`trainer.json` and, where the reference is refreshed, `reference.*`. Everything is written into a hidden folder, the marker
last, which is then renamed. Tensors that are dealt out over N processes lie in `optimizer.part-0001-of-000N.safetensors` and so
on, each process's rows in its own file: whatever the number of processes that go on, all rows are there.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vantage.distributed.dealt import is_dealt, load_weights, local, placed
from vantage.distributed.world import World
from vantage.errors import StorageError, UserError
from vantage.estimators.base import State
from vantage.lowbit import put_together, taken_apart
from vantage.models.holding import is_adapted
from vantage.plugins import one_line

MARKER = "COMPLETE"


def folder_name(step: int) -> str:
    """`step-000020`."""
    return f"step-{step:06d}"


def complete(folder: Path) -> list[Path]:
    """Finished checkpoints in a `checkpoints` folder, oldest first."""
    return sorted(p.parent for p in folder.glob(f"step-*/{MARKER}"))


def newest(folder: Path) -> Path | None:
    """The newest finished checkpoint, if any."""
    found = complete(folder)
    return found[-1] if found else None


def save(
    folder: Path,
    step: int,
    *,
    model: Any,
    tokenizer: Any,
    optimizer: State,
    estimator: State,
    trainer: Mapping[str, Any],
    keep: int,
    reference: nn.Module | None = None,
    world: World | None = None,
) -> Path:
    """Write a checkpoint and let the oldest go, so that `keep` remain (0: all). Returns its folder.

    `reference` is given where it changes during the run; a frozen one is made again from its source. In a `world` of several
    processes all must call it, and see one file system: each writes its rows of what is dealt out, the main process the
    rest; `model` is None on the others.
    """
    world = world or World()
    draft: Path = world.from_main(folder / f".{folder_name(step)}.{os.getpid()}")
    states = {"optimizer": optimizer, "estimator": estimator}
    if reference is not None:
        states["reference"] = State(reference.state_dict())

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        draft.mkdir()
        model.save_pretrained(draft / "model")
        tokenizer.save_pretrained(draft / "model")
        save_state(draft / "rng", random_state())
        (draft / "trainer.json").write_text(json.dumps(dict(trainer), indent=1))

    def write() -> None:
        for name, state in states.items():
            save_state(draft / name, state, world)

    def end() -> None:
        with (draft / MARKER).open("w") as marker:
            marker.write(f"{step}\n")
            marker.flush()
            os.fsync(marker.fileno())

    for stage, by_all in ((begin, False), (write, True), (end, False)):
        complaint = _complaint(stage) if by_all or world.main else ""
        complaint = next(filter(None, world.exchange(complaint)), "")
        if complaint:  # the disk is full, or gone
            shutil.rmtree(draft, ignore_errors=True)
            left = newest(folder)
            kept = f"the newest one is {left}" if left else "there is none yet"
            raise StorageError(
                f"the checkpoint of step {step} can not be written ({complaint}); {kept}; make room and go on with the "
                f"same command and --out {folder.parent} --resume auto"
            )
    final = folder / folder_name(step)
    if world.main:
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
        for old in complete(folder)[:-keep] if keep else []:
            # The marker goes first: a removal that is cut short leaves nothing that looks finished.
            (old / MARKER).unlink()
            shutil.rmtree(old)
    return final


def _complaint(stage: Callable[[], None]) -> str:
    """What went wrong with the disk, in one line."""
    try:
        stage()
    except (OSError, SafetensorError) as error:
        return one_line(error)
    return ""


def clean(folder: Path) -> None:
    """Remove what an interrupted save or removal left behind."""
    for path in [*folder.glob(".step-*"), *folder.glob("step-*")]:
        if not (path / MARKER).exists() or path.name.startswith("."):
            shutil.rmtree(path)


def load_trainer(checkpoint: Path) -> dict[str, Any]:
    """`trainer.json`; raises `UserError` if this is no finished checkpoint."""
    if not (checkpoint / MARKER).is_file():
        raise UserError(f"--resume {checkpoint}: this is not a finished checkpoint (no file {MARKER} in it)")
    with _undamaged(checkpoint):
        loaded: dict[str, Any] = json.loads((checkpoint / "trainer.json").read_text())
    missing = {"progress", "updates_done", "fingerprint"} - loaded.keys()
    if missing:
        raise UserError(
            f"--resume {checkpoint}: its trainer.json has no {sorted(missing)[0]!r}; another version wrote it"
        )
    return loaded


@contextlib.contextmanager
def _undamaged(checkpoint: Path) -> Iterator[None]:
    """Turn what a torn file raises into a `UserError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"--resume {checkpoint}: the checkpoint is damaged ({one_line(error)}); resume from another one"
        ) from error


def restore(checkpoint: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Load weights, optimizer and random state in place; returns the estimator's state for it to load."""
    with _undamaged(checkpoint):
        weights = _weights(checkpoint, model)
    try:
        missing, unexpected = load_weights(model, weights, strict=False)
    except RuntimeError as error:  # a message with a line for each tensor
        raise UserError(
            f"--resume {checkpoint}: its weights do not fit this model (tensors of other shapes)"
        ) from error
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    if is_adapted(model):  # whose base comes from its own files
        missing = [name for name in missing if ".lora_" in name]
    if unexpected or set(missing) - tied:
        raise UserError(f"--resume {checkpoint}: its weights do not fit this model ({[*missing, *unexpected][:3]})")
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    load_optimizer(optimizer, model, load_state(checkpoint / "optimizer", "the optimizer"))
    load_random_state(load_state(checkpoint / "rng", "the random state"))
    return load_state(checkpoint / "estimator", "the estimator's state")


def _weights(checkpoint: Path, model: nn.Module) -> dict[str, Tensor]:
    """The weights that a checkpoint has, under the names that `model` has for them."""
    if is_adapted(model):
        saved = load_file(checkpoint / "model" / "adapter_model.safetensors")
        return {name.replace(".weight", ".default.weight"): value for name, value in saved.items()}
    if (checkpoint / "model" / "model.safetensors").is_file():
        whole: dict[str, Tensor] = load_file(checkpoint / "model" / "model.safetensors")
        return whole
    return _sharded(checkpoint)


def restore_reference(checkpoint: Path, model: nn.Module) -> None:
    """Load the weights of a reference that is refreshed during the run, in place."""
    load_weights(model, load_state(checkpoint / "reference", "the refreshed reference").tensors)


def _sharded(checkpoint: Path) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for shard in sorted((checkpoint / "model").glob("model-*.safetensors")):
        merged |= load_file(shard)
    return merged


def save_state(stem: Path, state: State, world: World | None = None) -> None:
    """Write tensors to `STEM.safetensors` and values to `STEM.json`.

    Of tensors that are dealt out, every process of the `world` writes its rows, to `STEM.part-0001-of-0002.safetensors` …
    """
    world = world or World()
    held = {k: local(v).detach().cpu().contiguous().clone() for k, v in state.tensors.items()}
    dealt = {name for name, tensor in state.tensors.items() if is_dealt(tensor)}
    if dealt:
        part = f"{stem.name}.part-{world.rank + 1:04d}-of-{world.size:04d}.safetensors"
        save_file({name: held[name] for name in dealt}, stem.with_name(part))
    if world.main:
        save_file({k: v for k, v in held.items() if k not in dealt}, stem.with_suffix(".safetensors"))
        stem.with_suffix(".json").write_text(json.dumps(dict(state.values)))


def load_state(stem: Path, what: str) -> State:
    """Read what `save_state` wrote; raises `UserError` if it is missing."""
    try:
        with _undamaged(stem.parent):
            tensors: Mapping[str, Tensor] = load_file(stem.with_suffix(".safetensors"))
            if files := sorted(stem.parent.glob(f"{stem.name}.part-*-of-*.safetensors")):
                tensors = Parts(tensors, files)
            values = json.loads(stem.with_suffix(".json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"--resume {stem.parent}: {what} is missing, this checkpoint can not be resumed") from error
    return State(tensors, values)


class Parts(Mapping[str, Tensor]):
    """Whole tensors of which processes have written their rows, read when they are asked for; and those in one piece."""

    def __init__(self, whole: Mapping[str, Tensor], files: Sequence[Path]) -> None:
        if len(files) != int(files[0].stem.rpartition("-of-")[2]):
            raise ValueError(f"{len(files)} files of {files[0].name} are there")
        self.whole = whole
        self.files = [safe_open(file, framework="pt") for file in files]
        self.names = frozenset(self.files[0].keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        if name in self.names:
            return torch.cat([file.get_tensor(name) for file in self.files])  # type: ignore[no-untyped-call]
        return self.whole[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.whole
        yield from sorted(self.names)

    def __len__(self) -> int:
        return len(self.whole) + len(self.names)


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> State:
    """Moments and step counts, by parameter name."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {
        f"{names[id(p)]}|{key}": value
        for p, entries in optimizer.state.items()
        for key, value in taken_apart(entries).items()
    }
    return State(tensors)


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, state: State) -> None:
    """Put moments and step counts back."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in state.tensors.items():
        name, _, entry = key.rpartition("|")
        parameter = parameters[name]
        held = value if entry == "step" else placed(value, parameter).to(parameter.device)
        optimizer.state[parameter][entry] = held
    for trained, entries in optimizer.state.items():
        put_together(optimizer, entries, trained)
        if optimizer.defaults.get("fused") and "step" in entries:
            entries["step"] = entries["step"].to(trained.device)


def random_state() -> State:
    """Global generators of torch, numpy and Python: ours need none, but a user's reward function may draw from them."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    values = {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), int(position), int(has_gauss), float(cached)],
    }
    return State(tensors, values)


def load_random_state(state: State) -> None:
    """Restore what `random_state` returned."""
    version, internal, gauss = state.values["python"]
    random.setstate((version, tuple(internal), gauss))
    name, position, has_gauss, cached = state.values["numpy"]
    np.random.set_state((name, state.tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state.tensors["torch"])
    cuda = [v for k, v in sorted(state.tensors.items()) if k.startswith("cuda")]
    if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
