"""YAML ↔ TrainConfig: what is written is read back, and every mistake in a file is one line that names file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vantage.config import TrainConfig, resolve
from vantage.errors import UserError
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise
from vantage.estimators.rloo import Rloo
from vantage.settings.configfile import config_to_dict, dump_yaml, load_yaml_config, refuse_other, settings_of

PLUGIN = '''\
from dataclasses import dataclass
from typing import ClassVar, Literal

from vantage.estimators.base import Algorithm


@dataclass(frozen=True)
class Mine(Algorithm):
    """An algorithm of the user's."""

    name: ClassVar[str] = "mine"

    weights: tuple[float, ...] = (1.0, 2.0)
    """Weights of something."""
    switch: bool = True
    """Whether it is on."""
    mode: Literal["a", "b"] | None = None


class Nameless(Algorithm):
    pass


class Steps(Algorithm):
    name = "steps"


@dataclass(frozen=True)
class Odd(Algorithm):
    name: ClassVar[str] = "odd"
    table: dict[str, int] | None = None
'''


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return "mine.py"


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(algo=Poise(layer=0, alpha=0.01, bootstrap=3, pca_order="scale-first"), rollouts_per_prompt=4),
        TrainConfig(algo=Poise(alpha=1e-7), learning_rate=3e-6, adam_betas=(0.0, 0.95), reward_range=(-1.0, 2.0)),
        TrainConfig(
            algo=Grpo(scale="none", eps=1e-8), prompts_per_step=3, stop=("\n", "--", " é\t", "null", "1e3", "")
        ),
        TrainConfig(algo=Rloo(), stop=(), out="-run", reward=("a.py:f", "b.py:g"), reward_weights=(1.0, 0.5)),
        TrainConfig(model="None", task="yes", out="2024", resume="auto", aggregation="token-mean", dual_clip=3.0),
    ],
)
def test_a_dumped_configuration_loads_as_the_same_configuration(tmp_path: Path, config: TrainConfig) -> None:
    assert load_yaml_config(write(tmp_path, dump_yaml(config))) == config


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(engine="vllm", policy_loss="cispo", lora_rank=4)])
def test_a_key_that_an_older_version_did_not_write_counts_as_what_it_is_by_default(
    tmp_path: Path, config: TrainConfig
) -> None:
    asked = resolve(config, max_new_tokens=9, stop=("\n",), reward_range=(-1.0, 1.0))
    written = config_to_dict(asked)
    own = {"engine", "policy_loss", "lora_rank"}  # what was asked for, and not left to a default
    for key in written.keys() - own:
        rest = {name: value for name, value in written.items() if name != key}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(rest))
        refuse_other(tmp_path, asked, (), "")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in written.items() if k not in own}))
    if config != TrainConfig():
        with pytest.raises(UserError, match=r"--policy-loss is cispo, but the run in .* has clip; mend it"):
            refuse_other(tmp_path, asked, (), "mend it")


def test_an_algorithm_from_a_file_is_written_as_its_spec_and_read_back(tmp_path: Path, plugin: str) -> None:
    settings = settings_of({"algo": f"{plugin}:Mine", "mine": {"weights": [3, 1e-3], "mode": "b"}}, "c.yaml")
    config = settings.config()
    assert config_to_dict(config)["algo"] == "mine.py:Mine"
    assert config_to_dict(config)["mine"] == {"weights": [3.0, 1e-3], "switch": True, "mode": "b"}
    assert load_yaml_config(write(tmp_path, dump_yaml(config))) == config


def test_the_file_has_flat_names_and_the_options_below_the_algorithms_name() -> None:
    plain = yaml.safe_load(dump_yaml(TrainConfig(steps=7, algo=Grpo(eps=0.5))))
    assert plain["steps"] == 7
    assert plain["algo"] == "grpo"
    assert plain["grpo"] == {"scale": "group", "eps": 0.5}
    assert plain["adam_betas"] == [0.9, 0.999]
    assert "rloo" not in yaml.safe_load(dump_yaml(TrainConfig(algo=Rloo())))


def test_an_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    assert load_yaml_config(write(tmp_path, "# nothing\n")) == TrainConfig()


def test_versions_and_commit_of_a_run_are_ignored(tmp_path: Path) -> None:
    text = "steps: 3\nversions:\n  torch: '2'\ngit_commit: abc\n"
    assert load_yaml_config(write(tmp_path, text)) == TrainConfig(steps=3)


def test_a_number_without_a_point_before_its_exponent_is_a_number(tmp_path: Path) -> None:
    assert load_yaml_config(write(tmp_path, "learning_rate: 1e-4\ntemperature: 1")).learning_rate == 1e-4


MISTAKES = {
    "stpes: 4": "c.yaml: there is no key 'stpes', did you mean 'steps'?",
    "rollouts-per-prompt: 4": "c.yaml: there is no key 'rollouts-per-prompt', did you mean 'rollouts_per_prompt'?",
    "1: 2": "c.yaml: there is no key '1'; vantage train --help lists all",
    "layer: 2": "c.yaml: there is no key 'layer'; options of poise stand below it, poise: {layer: VALUE}",
    "poise.layer: 2": "c.yaml: there is no key 'poise.layer'; options of poise stand below it, poise: {layer: VALUE}",
    "grpo: {eps: 1}": (
        "c.yaml: grpo are options of another algorithm, the file has algo poise; remove them or set algo: grpo"
    ),
    "poise: {lyaer: 2}": "c.yaml: poise has no option 'lyaer', did you mean 'layer'?",
    "{algo: rloo, rloo: {x: 2}}": "c.yaml: rloo has no option 'x'; it has none",
    "poise: 3": "c.yaml: poise is 3, it must be a mapping of options, such as poise: {OPTION: VALUE}",
    "steps: abc": "c.yaml: steps is 'abc', it must be a whole number",
    "steps: 1.5": "c.yaml: steps is 1.5, it must be a whole number",
    "steps: true": "c.yaml: steps is true, it must be a whole number",
    "steps:": "c.yaml: steps is null, it must be a whole number",
    "temperature: warm": "c.yaml: temperature is 'warm', it must be a number",
    "device: gpu": "c.yaml: device is 'gpu', it must be one of auto, cpu, cuda",
    "adam_betas: [0.9]": "c.yaml: adam_betas is [0.9], it must be 2 numbers",
    "stop: x": "c.yaml: stop is 'x', it must be a list of texts",
    "out: 2024": "c.yaml: out is 2024, it must be text (put it in quotes)",
    "poise: {alpha: big}": "c.yaml: poise.alpha is 'big', it must be a number or auto",
    "algo: gpro": "c.yaml: --algo: there is no algorithm 'gpro', did you mean 'grpo'?",
    "algo: [poise]": "c.yaml: algo is ['poise'], it must be text",
    "steps: 0": "c.yaml: --steps is 0, it must be greater than 0",
    "rollouts_per_prompt: 1": "c.yaml: --rollouts-per-prompt is 1, poise compares rollouts of a prompt: at least 2",
    "temperature: .nan": "c.yaml: --temperature is nan, it must be a finite number",
    "poise: {alpha: -1}": "c.yaml: --poise.alpha is -1.0, it must be greater than 0, or auto",
    "- 1\n- 2": "CONFIG c.yaml: expected `key: value` lines, found list; see --dry-run",
    "just text": "CONFIG c.yaml: expected `key: value` lines, found str; see --dry-run",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_is_one_line_that_names_file_key_and_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_yaml_config("c.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: b: c\n", "this is not valid YAML: ScannerError: mapping values are not allowed here"),
        (b"steps: 1\nsteps: 2\n", "this is not valid YAML: ConstructorError: the key 'steps' comes twice"),
        (b"out: 2026-13-45\n", "this is not valid YAML: ValueError"),
        (b"out: !!python/object:os.system x\n", "this is not valid YAML: ConstructorError"),
        (b"[" * 5000, "this is not valid YAML: "),
        (b"steps: \x00\n", "this is not valid YAML: ReaderError"),
        (b"\x89PNG\xff\xfe", "this is not a text file in UTF-8; give a YAML file"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_yaml_config(path)
    assert str(caught.value).startswith(f"CONFIG {path}: {reason}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "steps: 1")
    with pytest.raises(UserError, match=r"c\.yml: there is no such file, did you mean 'c\.yaml'\?$"):
        load_yaml_config(tmp_path / "c.yml")


def test_a_run_directory_instead_of_its_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 1")
    with pytest.raises(UserError, match=r"this is a folder; did you mean '.*config\.yaml'\?$"):
        load_yaml_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nameless", "--algo: Nameless needs a class attribute `name`"),
        ("Steps", "--algo: Steps calls itself 'steps', which is a field of TrainConfig; rename it"),
        ("Odd", "Odd.table has the type dict[str, int] | None; an option can be a bool, int"),
    ],
)
def test_a_class_that_no_flag_could_configure_is_refused(plugin: str, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_of({"algo": f"{plugin}:{name}"}, "c.yaml")
    assert str(caught.value).removeprefix("c.yaml: ").startswith(message)


def test_another_algorithm_on_the_command_line_drops_the_files_options_and_says_so() -> None:
    settings = settings_of({"poise": {"layer": 2}, "clip_high": 0.3, "steps": 4}, "c.yaml", algo="grpo")
    assert settings.config() == TrainConfig(steps=4, clip_high=0.3, algo=Grpo())
    assert settings.note == (
        "c.yaml is for poise and --algo is grpo: its options of poise are not used; used as they stand there: clip_high"
    )


def test_the_same_algorithm_on_the_command_line_keeps_the_files_options() -> None:
    settings = settings_of({"algo": "grpo", "grpo": {"eps": 0.5}}, "c.yaml", algo="grpo")
    assert (settings.config().algo, settings.note) == (Grpo(eps=0.5), "")
