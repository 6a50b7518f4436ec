"""The `vantage` command: which command was meant, and what its end means to the shell.

Exit status: 0 done; 1 `doctor` found something broken, runs of `compare` failed, or a bug (with a traceback); 2 a mistake
of the user (one line on standard error, nothing written); 128 + signal where a run was interrupted.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vantage import __version__
from vantage.distributed.world import launched_rank, leave
from vantage.errors import StorageError, UserError

OVERVIEW = """\
usage: vantage COMMAND [ARGUMENTS]

Reinforcement learning with verifiable rewards, with the value estimate first.

commands:
  train    train a policy; without arguments: POISE on the embedded world, on a CPU, without network
  eval     accuracy on held-out problems, or of two models: avg@k, pass@k, majority@k, intervals
  compare  algorithms × seeds under one budget, on the same prompts: one report with intervals
  audit    bias and variance of each algorithm's gradient, with a verdict in words
  lab      how good is any estimate of V(s): the same states and Monte-Carlo truth for all of them
  report   one HTML page with plots from one or more runs
  tasks    list the tasks, or show sample problems with responses and their rewards
  sft      supervised warm start on a task's own solutions
  critic   GenAC's critic by itself: sft, pretrain, score
  doctor   what this machine can run, what is missing and how to get it

options:
  -h, --help     this overview; vantage COMMAND --help lists the flags of a command
  --version      the version

examples:
  vantage train
  vantage train --algo grpo --steps 50 --out runs/grpo
  vantage train --algo poise --poise.alpha 0.01 --dry-run > poise.yaml
  vantage train poise.yaml --seed 1
  vantage eval runs/grpo --k 8 --against tiny
  vantage compare --algos poise,grpo,dapo --seeds 3 --steps 60 --tune --out runs/compare
  vantage audit tiny --algos rloo,grpo,poise --quick
  vantage lab tiny --quick
  vantage report runs/grpo runs/poise --out report
"""


@dataclass(frozen=True)
class ReportArguments:
    """One HTML page with plots, from one or more runs."""

    runs: tuple[Path, ...] = ()
    """Run directories, as `vantage train` wrote them."""
    out: Path | None = None
    """Folder for the page and its plots. Default: the run's own, or report/ for several runs."""


@dataclass(frozen=True)
class TasksArguments:
    """List the tasks, or show sample problems of one with responses and their rewards."""

    task: str | None = None
    """Task to show, as `vantage train --task` takes it."""
    count: int = 5
    """Problems to show."""
    reward: tuple[str, ...] = ()
    """Reward functions FILE.py:FUNCTION to try, instead of the task's own."""
    prompt_column: str = "prompt"
    """Column of the dataset that holds the prompt."""
    answer_column: str | None = None
    """Column that reward functions get as `answer`; COLUMN.KEY reaches into a column. Default: `answer`, or verl's."""
    prompt_template: str | None = None
    """Text around the prompt, which replaces {prompt} in it; other columns can be named too."""
    system_prompt: str | None = None
    """Text of a system message before every prompt."""
    domain_column: str | None = None
    """Column that names a problem's domain. Default: `domain`, else `data_source`, if there."""


@dataclass(frozen=True)
class DoctorArguments:
    """What this machine can run, what is missing and how to get it."""

    model: str | None = None
    """Model of which to tell whether training it fits into memory; only its configuration and tokenizer are read."""
    task: str = "sums"
    """Its task, as `vantage train` takes it."""
    algo: str = "poise"
    """Algorithm, as `vantage train` takes it; some keep a reference model."""
    max_new_tokens: int | None = None
    """Longest response in tokens. Default: the task's, else 512."""
    prompt_tokens: int | None = None
    """Longest prompt in tokens. Default: of the task's first 256 problems."""
    rollouts_per_step: int = 256
    """Rollouts in a step."""
    tokens_per_microbatch: int | None = None
    """Padded tokens in a forward pass, as in `vantage train`."""
    generation_batch: int = 512
    """Rollouts that are decoded side by side."""
    rollouts_per_prompt: int | None = None
    """Rollouts of the same prompt. Default: the algorithm's."""
    kl_coef: float = 0.0
    """Above 0 there is a reference model."""
    reference: str | None = None
    """The reference, where it is another model than the policy at its start."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic, as in `vantage train`."""
    gradient_checkpointing: bool = False
    """Whether blocks are run again in the backward pass."""
    lora_rank: int = 0
    """Rank of adapters; 0 trains all weights."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """Whether the optimizer's moments have 32 or 8 bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy would live."""
    processes: int = 1
    """Processes that train together, as `--num_processes` of accelerate's launcher; what each takes is told."""
    sharding: Literal["auto", "none", "fsdp2"] = "auto"
    """Whether models are dealt out over them, as in `vantage train`; auto: none."""
    json: bool = False
    """Print JSON instead of a table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return the exit status."""
    status = _run(argv)
    leave(status)
    return status


def _run(argv: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that can not show × must not end a run
    try:
        status = _dispatch_or_help(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except UserError as error:
        return _complain(f"error: {error}" if launched_rank() == 0 else "", 2)  # all processes find the same mistake
    except KeyboardInterrupt:
        return _complain("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not try to flush into the void at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _dispatch_or_help(argv: list[str]) -> int:
    """As `dispatch`; that the parser exits after printing the help is a normal end."""
    try:
        return dispatch(argv)
    except SystemExit as stop:
        if stop.code:
            raise
        return 0


def dispatch(argv: list[str]) -> int:
    """Find the command and run it; raises what the command raises."""
    if not argv or argv[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return 0
    if argv[0] == "--version":
        print(f"vantage {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        from vantage.plugins import did_you_mean

        kind = "option" if name.startswith("-") else "command"
        hint = did_you_mean(name, ("--help", "--version") if kind == "option" else COMMANDS)
        raise UserError(f"there is no {kind} {name!r}{hint or '; vantage --help lists the commands'}")
    return COMMANDS[name](rest)


def train(argv: Sequence[str]) -> int:
    """`vantage train`: parse, check what is cheap to check, then import torch."""
    from vantage.interrupts import Abandoned, Interrupted
    from vantage.settings.commandline import parse_train
    from vantage.settings.configfile import dump_yaml
    from vantage.trackers import check as check_trackers
    from vantage.workload import Workload

    request = parse_train(argv)
    config = request.config
    check_trackers(config.report_to)
    work = Workload.of(
        config.task, config.reward, config.reward_weights, config.prompt_column, config.domain_column,
        **config.data_options,
    )  # fmt: skip
    if request.note:
        print(f"vantage: note: {request.note}", file=sys.stderr)
    if request.dry_run:
        from vantage.config import resolve

        task = work.task
        resolved = resolve(
            config, max_new_tokens=task.max_new_tokens, stop=tuple(task.stop), reward_range=work.reward_range
        )
        print(f"# vantage {__version__}; run it: vantage train THIS_FILE\n{dump_yaml(resolved)}", end="")
        return 0
    from vantage.trainer import Trainer

    try:
        Trainer(config, task=work.task).train()
    except Interrupted as stop:
        return _complain(str(stop) if launched_rank() == 0 else "", 128 + stop.signal)
    except Abandoned as stop:
        return _complain(str(stop), 1)
    except StorageError as error:
        return _complain(f"error: {error}", 1)
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """`vantage eval`."""
    from vantage.config import EvalConfig
    from vantage.settings.commandline import parse_dataclass

    config = parse_dataclass(EvalConfig, argv, "vantage eval", {"model": "MODEL|RUN"})
    from vantage.protocols import eval_tasks
    from vantage.tasks import check_task

    for spec in eval_tasks(config):
        check_task(spec)
    from vantage.evaluation.command import run_eval

    run_eval(config)
    return 0


def compare(argv: Sequence[str]) -> int:
    """`vantage compare`."""
    from vantage.compare.flags import parse_compare

    request = parse_compare(argv)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("WORLD_SIZE is set: vantage compare starts a process for each run; call it without a launcher")
    from vantage.compare.api import check_folder, run_comparison
    from vantage.compare.plan import workload
    from vantage.compare.run import Stopped
    from vantage.compare.words import closing_words, listing

    if request.dry_run:
        check_folder(request.comparison, workload(request.comparison.base))
        print(listing(request.comparison))
        return 0
    try:
        outcome = run_comparison(request.comparison)
    except Stopped as stop:
        again = shlex.join(["vantage", "compare", *argv])
        return _complain(f"{stop}, checkpoint written; go on with the same command: {again}", 128 + stop.signal)
    print(closing_words(outcome.results, outcome.report))
    return 1 if outcome.failed else 0


def audit(argv: Sequence[str]) -> int:
    """`vantage audit`."""
    from vantage.audit.flags import parse_audit
    from vantage.tasks import check_task

    asked = parse_audit(argv)
    if not asked.exact:
        check_task(str(asked.settings.get("task", "sums")))
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("WORLD_SIZE is set: vantage audit runs in one process; call it without a launcher")
    from vantage.audit.api import run_audit
    from vantage.audit.words import closing_words

    outcome = run_audit(asked)
    print(closing_words(outcome.results, outcome.report))
    return 0


def lab(argv: Sequence[str]) -> int:
    """`vantage lab`."""
    from vantage.lab.settings import LabConfig, check_out
    from vantage.settings.commandline import parse_dataclass
    from vantage.tasks import check_task

    config = parse_dataclass(LabConfig, argv, "vantage lab", {"model": "MODEL|RUN"})
    check_out(config.out)
    if config.task is not None:
        check_task(config.task)
    from vantage.lab.command import run_lab
    from vantage.lab.words import closing_words

    print(closing_words(run_lab(config), Path(config.out)))
    return 0


def report(argv: Sequence[str]) -> int:
    """`vantage report`."""
    from vantage.settings.commandline import parse_dataclass

    arguments = parse_dataclass(ReportArguments, argv, "vantage report", {"runs": "RUN [RUN ...]"})
    if not arguments.runs:
        raise UserError("RUN is missing: vantage report RUN [RUN ...] takes one or more run directories")
    from vantage.runfiles import read_config

    for run in arguments.runs:
        read_config(run)  # a wrong path is answered before anything is drawn
    from vantage.report import write_report

    print(write_report(arguments.runs, arguments.out).html)
    return 0


def tasks(argv: Sequence[str]) -> int:
    """`vantage tasks`."""
    from vantage.settings.commandline import parse_dataclass
    from vantage.taskview import list_tasks, show_task

    arguments = parse_dataclass(TasksArguments, argv, "vantage tasks", {"task": "[NAME]"})
    if arguments.count < 1:
        raise UserError(f"--count is {arguments.count}, it must be greater than 0")
    if arguments.task is None:
        list_tasks()
    else:
        show_task(
            arguments.task,
            arguments.count,
            arguments.reward,
            prompt_column=arguments.prompt_column,
            answer_column=arguments.answer_column,
            prompt_template=arguments.prompt_template,
            system_prompt=arguments.system_prompt,
            domain_column=arguments.domain_column,
        )
    return 0


def sft(argv: Sequence[str]) -> int:
    """`vantage sft`."""
    from vantage.config import SftConfig
    from vantage.settings.commandline import parse_dataclass
    from vantage.tasks import check_task

    config = parse_dataclass(SftConfig, argv, "vantage sft")
    check_task(config.task)
    from vantage.sft import run_sft

    run_sft(config)
    return 0


def critic(argv: Sequence[str]) -> int:
    """`vantage critic sft|pretrain|score`."""
    from vantage.genac.command import run

    return run(argv)


def doctor(argv: Sequence[str]) -> int:
    """`vantage doctor`."""
    from vantage.settings.commandline import parse_dataclass

    arguments = parse_dataclass(DoctorArguments, argv, "vantage doctor")
    from vantage.doctor import run_doctor

    given = dataclasses.asdict(arguments)
    as_json, prompt_tokens, processes = (given.pop(name) for name in ("json", "prompt_tokens", "processes"))
    if processes < 1:
        raise UserError(f"--processes is {processes}, it must be 1 or more")
    if arguments.model is None:
        return 0 if run_doctor(as_json=as_json) else 1
    from vantage.config import TrainConfig
    from vantage.estimators import get_algorithm

    config = TrainConfig(**given | {"algo": get_algorithm(arguments.algo)()})
    return 0 if run_doctor(as_json=as_json, config=config, prompt_tokens=prompt_tokens, processes=processes) else 1


def _complain(message: str, status: int) -> int:
    if message:
        print(f"vantage: {' '.join(message.split())}", file=sys.stderr)
    return status


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "eval": evaluate,
    "compare": compare,
    "audit": audit,
    "lab": lab,
    "report": report,
    "tasks": tasks,
    "sft": sft,
    "critic": critic,
    "doctor": doctor,
}
