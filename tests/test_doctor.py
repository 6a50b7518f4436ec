"""The doctor: what each finding says, and that only what is needed decides on the exit status."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Literal

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vantage import cli, doctor
from vantage.doctor import Row
from vantage.requirements import Distribution, read_distribution
from vantage.verifiers import sandbox as verifiers_sandbox
from vantage.verifiers.levels import Level


def distribution(**changes: object) -> Distribution:
    settings: dict[str, object] = {
        "name": "vantage-rl", "origin": "installed", "python": SpecifierSet(">=3.11"), "needed": [], "extras": {},
    }  # fmt: skip
    return Distribution(**(settings | changes))  # type: ignore[arg-type]


def healthy(monkeypatch: pytest.MonkeyPatch, *rows: Row) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: list(rows))


@pytest.mark.parametrize(
    ("row", "status"),
    [
        (Row("a", "ok", "fine"), 0),
        (Row("a", "problem", "bad", "mend"), 1),
        (Row("a", "missing", "gone", "get"), 1),
        (Row("a", "missing", "gone", "get", needed=False), 0),
        (Row("a", "problem", "bad", "mend", needed=False), 0),
    ],
)
def test_only_what_is_needed_decides_on_the_status(monkeypatch: pytest.MonkeyPatch, row: Row, status: int) -> None:
    healthy(monkeypatch, row)
    assert cli.main(["doctor"]) == status


def test_json_holds_the_verdict_and_every_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy(monkeypatch, Row("a", "missing", "gone", "get it"))
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["rows"] == [{"name": "a", "status": "missing", "detail": "gone", "fix": "get it", "needed": True}]


def test_the_table_shows_name_status_detail_and_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy(monkeypatch, Row("extra dev", "missing", "without ruff", 'pip install "vantage-rl[dev]"', needed=False))
    cli.main(["doctor"])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "extra dev" in line)
    assert 'missing  without ruff  pip install "vantage-rl[dev]"' in line
    assert "Everything that is needed works" in out


def test_a_check_that_fails_is_a_row_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Row]:
        raise ImportError("libcudart.so is missing")

    for check in ("processor", "gpus", "automatic", "embedded_policy"):
        monkeypatch.setattr(doctor, check, broken)
    rows = [row for row in doctor.diagnose() if row.name in ("processor", "embedded policy")]
    assert [(row.status, row.detail) for row in rows] == [("problem", "ImportError: libcudart.so is missing")] * 2


def test_versions_are_judged_against_the_declared_ranges() -> None:
    needed = [Requirement("pytest>=1"), Requirement("rich<1"), Requirement("no-such-package>=2,<3")]
    rows = {row.name: row for row in doctor.packages(distribution(needed=needed, python=SpecifierSet(">=3.99")))}
    assert rows["pytest"].status == "ok"
    assert (rows["rich"].status, rows["rich"].fix) == ("problem", 'pip install "rich<1"')
    assert rows["no-such-package"].status == "missing"
    assert rows["python"].status == "problem"
    assert "needs python >=3.99" in rows["python"].detail


def test_an_extra_that_is_not_complete_comes_with_its_command() -> None:
    extras = {"full": [Requirement("pytest")], "part": [Requirement("pytest"), Requirement("no-such-package")]}
    full, part = doctor.extras(distribution(extras=extras))
    assert (full.status, full.needed) == ("ok", False)
    assert (part.status, part.detail, part.fix) == (
        "missing",
        "without no-such-package",
        'pip install "vantage-rl[part]"',
    )


def test_the_source_tree_declares_what_the_package_does() -> None:
    found = read_distribution()
    assert {"torch", "transformers", "tyro"} <= {requirement.name for requirement in found.needed}
    assert "dev" in found.extras
    assert not any(requirement.name == "ruff" for requirement in found.needed)


def test_a_containers_limit_is_the_memory_that_there_is(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  800 kB\n")
    assert doctor.memory(meminfo, tmp_path) == (1000 * 1024, 800 * 1024)
    (tmp_path / "memory.max").write_text("512000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    assert doctor.memory(meminfo, tmp_path) == (512000, 12000)
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory(meminfo, tmp_path) == (1000 * 1024, 800 * 1024)


def test_every_gpu_is_listed_with_its_memory_and_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for torch.cuda: this test runs where there is no GPU."""
    import torch

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "mem_get_info": lambda index: (20e9, 80e9 + index * 1e9),
        "is_bf16_supported": lambda: True,
        "get_device_name": lambda index: f"card {index}",
        "device": lambda index: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    rows = doctor.gpus()
    assert [(row.name, row.detail) for row in rows] == [
        ("GPU 0", "card 0, 80 GB (20 GB free), bf16 yes"),
        ("GPU 1", "card 1, 81 GB (20 GB free), bf16 yes"),
    ]


def test_a_cpu_build_of_torch_beside_a_driver_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (row,) = doctor.gpus()
    assert (row.status, row.needed) == ("problem", False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    (row,) = doctor.gpus()
    assert (row.status, row.fix) == ("missing", "none is needed for `tiny`")


def test_the_output_folder_is_tried_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = doctor.output_folder(tmp_path)
    assert row.status == "ok"
    assert list(tmp_path.iterdir()) == []
    (row,) = doctor.output_folder(tmp_path / "gone")
    assert (row.status, row.needed) == ("problem", True)
    monkeypatch.setattr(doctor, "DISK_NEEDED", 1e18)
    (row,) = doctor.output_folder(tmp_path)
    assert (row.status, row.fix) == ("problem", "make room, or give --out on another disk")


@pytest.mark.parametrize(
    ("level", "status"),
    [
        (Level("namespaces", change_user=True), "ok"),
        (Level("rlimits", seccomp=True, landlock=4), "ok"),
        (Level("rlimits", seccomp=True, landlock=0), "problem"),
        (Level("rlimits", seccomp=False, landlock=4), "problem"),
    ],
)
def test_the_sandbox_row_says_how_well_programs_are_locked_up(
    monkeypatch: pytest.MonkeyPatch, level: Level, status: str
) -> None:
    monkeypatch.setattr(verifiers_sandbox, "level", lambda: level)
    (row,) = doctor.sandbox()
    assert (row.name, row.status, row.needed) == ("sandbox", status, False)
    assert level.describe() in row.detail
    assert ("bubblewrap" in row.fix) == (status == "problem")


def test_a_sandbox_that_does_not_start_is_a_problem_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Level:
        raise verifiers_sandbox.SandboxError("no sandbox works here: rlimits: no fork")

    monkeypatch.setattr(verifiers_sandbox, "level", broken)
    (row,) = doctor.sandbox()
    assert (row.status, row.needed) == ("problem", False)
    assert "rlimits: no fork" in row.detail


def test_the_sandbox_of_this_machine_is_tried_by_running_a_program() -> None:
    (row,) = doctor.sandbox()
    assert row.detail.startswith("verifier code: ")


def test_a_policy_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vantage import tiny

    monkeypatch.setitem(tiny.WORLDS, "sums", tmp_path)
    (row,) = doctor.embedded_policy()
    assert (row.name, row.status) == ("embedded policy", "problem")


def test_the_live_check_generates_with_the_embedded_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vantage import tiny

    model, tokenizer = tiny.fresh(0, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setitem(tiny.WORLDS, "sums", tmp_path)
    loaded, generated = doctor.embedded_policy()
    assert (loaded.status, generated.status) == ("ok", "ok")
    assert generated.detail.startswith("17+5= → ")


def test_the_engine_row_names_the_engines_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = [row for row in doctor.automatic() if row.name == "engine, device"]
    assert row.detail.startswith("--engine transformers")
    monkeypatch.setattr(doctor, "get_type_hints", lambda kind: {"engine": Literal["transformers", "vllm"]})
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name.startswith("vllm") else "1")
    ready, missing = doctor.automatic()
    assert ready.detail.startswith("--engine transformers;")
    assert (missing.name, missing.status, missing.fix) == (
        "engine vllm", "missing", 'pip install "vantage-rl[vllm]"',
    )  # fmt: skip
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1" if name != "vllm" else None)
    (row,) = doctor.automatic()  # vLLM's CPU build is a distribution of its own
    assert row.detail.startswith("--engine transformers or vllm;")


def test_bf16_is_said_to_be_computed_or_imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for amx, avx, words in (
        (True, True, "computes it (AMX, AVX512-BF16)"),
        (False, True, "computes it (AVX512-BF16)"),
        (False, False, "imitates it, slowly"),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=amx: found)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=avx: found)
        (row,) = doctor.precision()
        assert row.detail == f"float32; bf16: this processor {words}"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert doctor.precision()[0].detail.endswith("this GPU imitates it, slower than float32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert doctor.precision()[0].detail.endswith("the GPU computes it")


def test_attention_that_holds_all_scores_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for number, status in ((0, "problem"), (1, "ok")):  # SDPBackend: math, flash attention
        monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *tensors, number=number, **options: number)
        (row,) = doctor.attention()
        assert (row.status, row.needed) == (status, False)
    assert row.detail.startswith("sdpa takes flash attention (float32 on cpu)")


def test_a_model_that_does_not_fit_decides_on_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vantage.config import TrainConfig
    from vantage.memory import report as memory_report

    healthy(monkeypatch, Row("a", "ok", "fine"))
    for free, fits in ((8e9, True), (1e6, False)):
        monkeypatch.setattr(memory_report, "free_bytes", lambda device, free=free: int(free))
        assert doctor.run_doctor(as_json=True, config=TrainConfig(device="cpu"), prompt_tokens=20) is fits
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert [row["name"] for row in rows] == ["a", "model", "memory for tiny"]


def test_doctor_with_a_model_adds_what_training_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy(monkeypatch)

    def parts(*flags: str) -> str:
        assert cli.main(["doctor", "--model", "tiny", "--json", *flags]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert [row["name"] for row in rows] == ["model", "memory for tiny"]
        return rows[0]["detail"]

    assert "reference" not in parts()
    assert "reference 3.2 MB" in parts("--algo", "vimpo")
    assert "reference 3.2 MB" in parts("--kl-coef", "0.1")
    assert "prompts of 33 tokens, responses of 7" in parts("--prompt-tokens", "33", "--max-new-tokens", "7")
