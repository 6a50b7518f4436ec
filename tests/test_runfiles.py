from __future__ import annotations

from pathlib import Path

import pytest

from vantage.errors import UserError
from vantage.runfiles import first_model, read_config, read_metrics, read_samples


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("model: tiny\nalgo: poise\nsteps: 3\nversions:\n  torch: 2.13.0\n")
    return tmp_path


def test_metrics_come_back_in_file_order_with_null_as_none(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 0, "eval/accuracy": 0.5}\n{"step": 1, "value/pearson": null}\n')
    assert read_metrics(run) == [{"step": 0, "eval/accuracy": 0.5}, {"step": 1, "value/pearson": None}]


@pytest.mark.parametrize("torn", ['{"step": 2, "reward/me', '{"step": 2, "reward/mean": "\ud83d', "{", "2"])
def test_a_torn_last_line_is_skipped(run: Path, torn: str) -> None:
    text = '{"step": 0}\n{"step": 1}\n' + torn
    (run / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert read_metrics(run) == [{"step": 0}, {"step": 1}]


def test_a_last_line_without_newline_counts_if_it_is_whole(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}')
    assert [row["step"] for row in read_metrics(run)] == [0, 1]


def test_a_broken_line_in_the_middle_is_an_error_that_names_file_and_line(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not a JSON object"):
        read_metrics(run)


def test_unicode_line_separators_inside_a_completion_do_not_cut_its_line(run: Path) -> None:
    (run / "samples.jsonl").write_text('{"response": "a\u2028b\x85c"}\n{"response": "d"}\n', encoding="utf-8")
    assert [row["response"] for row in read_samples(run)] == ["a\u2028b\x85c", "d"]


def test_a_young_run_reads_as_empty(run: Path) -> None:
    assert read_metrics(run) == []
    assert read_samples(run) == []


def test_config_is_the_mapping_with_its_versions(run: Path) -> None:
    assert read_config(run) == {"model": "tiny", "algo": "poise", "steps": 3, "versions": {"torch": "2.13.0"}}


@pytest.mark.parametrize("read", [read_config, read_metrics, read_samples])
def test_a_folder_that_is_no_run_is_one_line_with_the_fix(tmp_path: Path, read) -> None:
    (tmp_path / "file").touch()
    for path, reason in (("absent", "does not exist"), ("file", "is a file"), (".", "holds no config.yaml")):
        with pytest.raises(UserError, match=reason) as caught:
            read(tmp_path / path)
        assert "--out" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "reason"), [("a: [1", "not readable as YAML"), ("- 1", "expected a mapping")])
def test_a_configuration_that_is_no_mapping_is_one_line(run: Path, text: str, reason: str) -> None:
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read_config(run)
    assert "\n" not in str(caught.value)


def test_the_first_model_is_found_through_a_chain_of_runs(tmp_path: Path) -> None:
    for name, model in (
        ("one", "tiny:programs"),
        ("two", str(tmp_path / "one")),
        ("three", str(tmp_path / "two" / "model")),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"model: {model}\n")
        (tmp_path / name / "metrics.jsonl").touch()
    assert [first_model(str(tmp_path / name)) for name in ("one", "two", "three")] == ["tiny:programs"] * 3
    assert first_model("some/model") == "some/model"
    (tmp_path / "one" / "config.yaml").write_text(f"model: {tmp_path / 'three'}\n")  # a circle, made by hand
    assert Path(first_model(str(tmp_path / "two"))).is_relative_to(tmp_path)
    (tmp_path / "one" / "config.yaml").write_text("model: [")
    assert first_model(str(tmp_path / "two")) == str(tmp_path / "one")
    (tmp_path / "one" / "metrics.jsonl").unlink()  # the configuration of something else
    assert first_model(str(tmp_path / "one")) == str(tmp_path / "one")
