"""What does the command line of `vantage compare` mean? Its own flags, those of `vantage train`, options of each algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import partial
from typing import Any

from vantage.compare.plan import DECIDED_HERE, DEFAULT_STEPS, OWN_DEFAULTS, Comparison, algorithm_class, plan
from vantage.errors import UserError
from vantage.estimators import algorithm_names
from vantage.estimators.base import Algorithm
from vantage.settings.arguments import Argument, arguments_of, no_such_option, scan, unknown_flag
from vantage.settings.commandline import ALIASES, convert
from vantage.settings.configfile import option_fields, train_fields
from vantage.settings.fieldtypes import Field

OWN = {
    field.name: field
    for field in (
        Field("algos", tuple[str, ...], "Algorithms to compare, with commas in between; each as --algo takes it.", MISSING),
        Field("seeds", int, "Reported runs of each algorithm: the seeds --seed, --seed + 1, and so on.", 3),
        Field("tune", bool, "Choose the learning rate of each algorithm first, by runs on seeds apart.", False),
        Field(
            "learning_rates",
            tuple[str, ...],
            "Learning rates to choose from, with commas in between. Default: the usual one, a third of it, three times it.",
            (),
        ),
        Field("tune_seeds", int | None, "Runs for each learning rate of each algorithm. Default: 1.", None),
        Field(
            "target",
            float | None,
            "Accuracy for time to target. Default: the mean final one of dapo, else of the algorithm that ends lowest.",
            None,
        ),
        Field(
            "jobs",
            int | None,
            "Runs side by side; each has a GPU to itself, or its share of the cores. Default: one for each GPU, else one.",
            None,
        ),
        Field("out", str | None, "Folder of the comparison; what it holds already goes on. Default: one below runs/.", None),
        Field("dry_run", bool, "Print the runs that it takes and stop; nothing is written.", False),
    )
}  # fmt: skip
HELP = {
    "steps": f"Budget of each run: training steps. Default: {DEFAULT_STEPS}, if no other budget is given.",
    "budget_tokens": "Budget of each run, instead of --steps: generated tokens.",
    "budget_seconds": "Budget of each run, instead of --steps: seconds of training; evaluations do not count.",
    "seed": "The first seed; prompts and their order follow from the seed, for all algorithms alike.",
    "learning_rate": "Peak learning rate of AdamW, for all algorithms alike; --tune chooses one for each.",
}
"""Where a flag of `vantage train` means something else, or has another default."""
TRAIN_ONLY = {
    "--resume": "vantage compare always goes on with what --out holds",
    "--config": "a comparison takes flags only",
    "--algo": "algorithms are listed as --algos A,B",
}


@dataclass(frozen=True)
class CompareRequest:
    """What `vantage compare` was asked for."""

    comparison: Comparison
    dry_run: bool


def parse_compare(argv: Sequence[str], prog: str = "vantage compare") -> CompareRequest:
    """Flags to a checked comparison, without torch.

    Raises:
        UserError: any mistake, in one line.
        SystemExit: after --help.
    """
    fields = {**OWN, **_shared_fields()}
    common = arguments_of(fields, metavars={"algos": "A,B,...", "learning_rates": "X,Y,..."}, aliases=ALIASES)
    classes, arguments = with_options_of_algorithms(argv, common)
    names = [cls.name for cls in classes]
    found = scan(argv, arguments, partial(unknown_with_options, arguments=arguments, names=names, elsewhere=TRAIN_ONLY))
    values = convert(
        found, arguments, prog, "Compare algorithms: the same work, budget, prompts and seeds; one report."
    )
    algorithms = [cls(**algorithm_options(cls, values)) for cls in classes]
    shared = {name: values[name] for name in _shared_fields() if name in found.given}
    request = {name: values[name] for name in ("seeds", "tune", "tune_seeds", "target", "jobs", "out")}
    rates = _rates(values["learning_rates"]) if "learning_rates" in found.given else None
    return CompareRequest(plan(algorithms, **request, learning_rates=rates, **shared), bool(values["dry_run"]))


def _shared_fields() -> dict[str, Field]:
    """The flags of `vantage train` that all runs share, with the defaults of a comparison."""
    fields = {name: field for name, field in train_fields().items() if name not in DECIDED_HERE}
    for name, default in OWN_DEFAULTS.items():
        fields[name] = dataclasses.replace(fields[name], default=default)
    fields["steps"] = dataclasses.replace(fields["steps"], type=int | None, default=None)
    return {name: dataclasses.replace(field, help=HELP.get(name, field.help)) for name, field in fields.items()}


def algorithm_options(cls: type[Algorithm], values: Mapping[str, Any]) -> dict[str, Any]:
    """What was given for an algorithm's own options."""
    return {name: values[f"{cls.name}.{name}"] for name in option_fields(cls)}


def listed(words: Sequence[str]) -> list[str]:
    """The parts of words with commas in between."""
    return [part for word in words for part in map(str.strip, word.split(",")) if part]


def _rates(words: Sequence[str]) -> list[float]:
    try:
        return [float(part) for part in listed(words)]
    except ValueError:
        given = " ".join(map(repr, words))
        raise UserError(f"--learning-rates is {given}, it must be numbers with commas in between") from None


def with_options_of_algorithms(
    argv: Sequence[str], common: Sequence[Argument]
) -> tuple[list[type[Algorithm]], list[Argument]]:
    """The algorithms that --algos lists on a command line, and `common` with the options of each of them."""
    given = scan(argv, common).given
    classes = [algorithm_class(spec) for spec in (listed(given["algos"][2]) if "algos" in given else [])]
    arguments = list(common)
    for cls in dict.fromkeys(classes):
        arguments += arguments_of(option_fields(cls), group=cls.name)
    return classes, arguments


def unknown_with_options(
    flag: str, arguments: Sequence[Argument], names: Sequence[str], elsewhere: Mapping[str, str] | None = None
) -> str:
    """What to say of a flag that a command does not have with these algorithms; `elsewhere` has why, by flag."""
    head, dot, option = flag.removeprefix("--").partition(".")
    head = head.replace("-", "_")
    if not dot:
        why = (elsewhere or {}).get(flag)
        return f"there is no flag {flag!r} here: {why}" if why else unknown_flag(flag, arguments)
    if head in names:
        return no_such_option(head, option, arguments)
    if head in algorithm_names():
        return f"{flag} is an option of {head}, which --algos does not list; leave it out or add {head}"
    return f"there is no flag {flag!r}: options of the listed algorithms are --{names[0] if names else 'NAME'}.OPTION"
