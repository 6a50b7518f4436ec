"""Every benchmark script runs end to end in its quick form and writes what the documents read."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers import SMALL, random_batch, small_policy
from vantage import Poise, PoiseToken
from vantage.estimators.base import Setup

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def quick(name: str, *flags: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")}
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)
    assert done.returncode == 0, done.stderr


def test_results_are_json_with_a_line_for_each_list_of_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    readable = importlib.import_module("common").readable
    found = {
        "a": [[1, 2.5], [None, True]],
        "b": {"text": "[\n 1,\n 2\n]", "rows": [{"c": [-1e-9]}, {"c": []}]},
        "d": ["x"],
    }
    text = readable(found)
    assert json.loads(text) == found
    assert "\n  [1, 2.5],\n  [null, true]\n" in text
    assert len(text.splitlines()) == 20


@pytest.mark.slow
def test_value_cost(tmp_path):
    quick("value_cost", "--out", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
    assert found["buffer_rows"] == 8 * 16
    assert len(found["raw"]["ratios"]) == found["pairs"] == 3
    assert {"versions", "machine", "git_commit"} <= set(found)


@pytest.mark.slow
def test_value_cost_of_the_token_probe(tmp_path):
    quick("value_cost", "--algo", "poise_token", "--clock", "cpu", "--out", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["algorithm"], found["clock"]) == ("poise_token", "cpu")
    assert 0 < found["learn_share"]["low"] <= found["learn_share"]["median"] < 1
    assert found["buffer_rows"] > 16 * 8


@pytest.mark.slow
def test_vineppo_cost(tmp_path):
    quick("vineppo_cost", "--out", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())["settings"]
    assert set(found) == {"K=1", "K=3", "K=3, reuse"}
    assert found["K=1"]["tokens"] < found["K=3"]["tokens"] == found["K=3, reuse"]["tokens"]
    assert found["K=3"]["rows_computed"] <= found["K=3"]["tokens"]
    assert found["K=3"]["samples_per_value"] == 3 <= found["K=3, reuse"]["samples_per_value"]


def test_the_page_of_vineppo_quotes_the_committed_cost():
    page = (BENCHMARKS.parent / "docs" / "vineppo.md").read_text()
    found = json.loads((BENCHMARKS / "results" / "vineppo_cost.json").read_text())["settings"]
    for name in ("K=3, all", "K=9, all", "K=3, reuse", "K=9, reuse"):
        row = found[name.removesuffix(", all")]
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        shown = [f"{row['tokens']:.1f}", f"{row['samples_per_value']:.1f}", f"{row['advantage_noise']:.4f}"]
        assert all(f"| {figure} |" in line for figure in shown)
    plain, reused = (found[name]["advantage_square"] for name in ("K=9", "K=9, reuse"))
    assert f"by {100 * (1 - reused / plain):.0f} % (from {plain:.4f} to {reused:.4f})" in page


@pytest.mark.slow
def test_vineppo(tmp_path):
    quick("vineppo", "cap", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["algorithms_compared"] == ["m0", "m2"]
    assert [cell["status"] for cell in found["cells"]] == ["finished"] * 4


@pytest.mark.slow
def test_step_time(tmp_path):
    quick("step_time", "--out", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["ratios"]["vantage"]["time"]["median"] > 0
    assert found["ratios"]["vantage"]["peak_memory"] > 0
    assert [len(side["seconds"]) for side in found["sides"].values()] == [3, 3, 3]
    assert all(4 < side["mean_length"] <= 64 for side in found["sides"].values())


@pytest.mark.slow
def test_demo(tmp_path):
    before = (BENCHMARKS / "results" / "demo.json").read_bytes()
    quick("demo")
    assert (BENCHMARKS / "results" / "demo.json").read_bytes() == before


def test_the_committed_results_are_those_that_the_readme_tells_of():
    runs = json.loads((BENCHMARKS / "results" / "demo.json").read_text())["runs"]
    readme = (BENCHMARKS.parent / "README.md").read_text()
    for run in runs:
        assert f"{run['before']['mean']:.3f} → {run['after']['mean']:.3f}" in readme
        assert 0.35 <= run["before"]["mean"] <= 0.5
        assert run["gain"]["mean"] >= 0.25
        assert run["gain"]["low"] >= 0.2
        assert run["wall_seconds"] <= 300


@pytest.mark.slow
def test_algorithms(tmp_path):
    quick("algorithms", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["algorithms_compared"] == ["poise", "grpo"]
    assert [cell["status"] for cell in found["cells"]] == ["finished"] * 4
    assert {"versions", "machine", "git_commit"} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["v1", "v2-group", "v3"])
def test_vimpo(part, tmp_path):
    quick("vimpo", part, "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["algorithms_compared"] == (["vimpo", "value-only"] if part == "v3" else ["vimpo", "grpo"])
    reported = [cell for cell in found["cells"] if cell["seed"] in found["seeds"]["reporting"]]
    assert [cell["status"] for cell in reported] == ["finished"] * 4
    assert found["configuration"]["shared"]["reward_noise"] == (0.25 if part == "v2-group" else 0.0)


@pytest.mark.slow
def test_vimpo_memory(tmp_path):
    quick("vimpo_memory", "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["vocabulary"] == 151_936
    assert found["over_grpo"]["grpo"] == {"memory": 1.0, "time": 1.0}
    assert 0.5 < found["over_grpo"]["vimpo"]["memory"] < 2
    assert found["sides"]["vimpo"]["reference_bytes"] > 4 * 151_936 * 128


def test_the_page_of_results_is_made_from_the_committed_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    page = importlib.import_module("results_page")
    assert page.page() == (BENCHMARKS.parent / "docs" / "results.md").read_text()
    committed = sorted((BENCHMARKS / "results").glob("algorithms-*.json"))
    assert committed
    for path in committed:
        found = json.loads(path.read_text())
        assert not found["quick"]
        assert len(found["seeds"]["reporting"]) >= 3


def test_the_choosing_guide_is_made_from_the_committed_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    guide = importlib.import_module("choosing_page")
    assert guide.page() == (BENCHMARKS.parent / "docs" / "choosing.md").read_text()


def test_every_part_of_vimpos_experiments_is_committed_whole():
    for part in ("v1", "v2-group", "v2-rollout", "v3"):
        found = json.loads((BENCHMARKS / "results" / f"vimpo-{part}.json").read_text())
        assert not found["quick"]
        assert len(found["seeds"]["reporting"]) >= 3
        assert all(row["finished"] == row["of"] == 3 for row in found["algorithms"].values())
        assert not set(found["seeds"]["reporting"]) & set(found["seeds"]["tuning"])
        assert all(row["finished"] == row["of"] for row in found["algorithms"].values())


def test_gradients_of_groups_by_linearity_are_those_of_the_trainer(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gradients = importlib.import_module("gradients")
    lab = gradients.Laboratory("sums", "tiny", rollouts=16, fills=1, seed=0)
    batch = lab.present(1)
    pairs = torch.arange(16).view(-1, 2).tolist()

    def direct(update):
        gradient_NP = torch.stack([lab.gradient(update, batch.select(rows)) for rows in pairs])
        return float((gradient_NP**2).sum(1).mean()), gradient_NP.mean(0)

    for algo, m in ((Poise(bootstrap=0), 2), (PoiseToken(bootstrap=0, gae_lambda=0.9), 1)):
        update = lab.update(algo, m)
        (found,) = lab.of_response([(update, 2)], batch) if m == 2 else lab.of_prefix(update, batch, [2])
        square, mean_P = direct(update)
        assert found.square_C == pytest.approx([square], rel=1e-4)
        assert torch.allclose(found.mean_CP[0], mean_P, atol=1e-5 * float(mean_P.norm()))
    with pytest.raises(ValueError, match="pays tokens of a response differently"):
        lab.of_response([(update, 2)], batch)


@pytest.mark.slow
def test_p5(tmp_path):
    quick("p5", "--forms", "lambda", "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    rows = {(row["estimator"], row["m"]): row for row in found["rows"]}
    assert {m for name, m in rows if name == "poise_token"} == {1, 2, 4, 8, 16}
    assert {m for name, m in rows if name == "rloo"} == {2, 4, 8, 16}
    assert all(row["trace"]["mean"] > 0 for row in rows.values())
    constant = [rows["constant", m]["trace"]["mean"] for m in (1, 2, 4, 8, 16)]
    assert constant[0] < constant[-1]
    assert rows["constant", 16]["predicted"] == pytest.approx(constant[-1])
    assert {"versions", "machine", "git_commit"} <= set(found)


@pytest.mark.slow
def test_p3(tmp_path):
    quick("p3", "--worlds", "sums", "--json", str(tmp_path))
    found = json.loads((tmp_path / "p3-sums.json").read_text())
    assert set(found["estimators"]) == {"constant", "leave_one_out", "poise", "poise_prompt", "sequence"}
    assert len(found["raw"]) == found["set"]["states"] == 16
    errors = [abs(row["poise"] - row["truth"]) - abs(row["sequence"] - row["truth"]) for row in found["raw"]]
    (mae,) = [d for d in found["differences"] if (d["one"], d["other"], d["metric"]) == ("poise", "sequence", "mae")]
    assert mae["mean"] == pytest.approx(sum(errors) / len(errors))
    assert {"versions", "machine", "git_commit"} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["exact", "sums"])
def test_x1(part, tmp_path):
    quick("x1", "--part", part, "--out", str(tmp_path / "a"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert {"rloo", "poise, own features", "poise, prompt alone"} <= set(found["algorithms"])
    assert all(row["verdict"] for row in found["algorithms"].values())
    if part == "exact":
        biased = {name for name, row in found["algorithms"].items() if row["bias"]["found"]}
        assert biased == {"poise, own features"}
    assert {"versions", "machine", "git_commit"} <= set(found)


@pytest.mark.slow
def test_p4(tmp_path):
    quick("p4", "--json", str(tmp_path / "r.json"))
    grid = json.loads((tmp_path / "r.json").read_text())["grid"]
    assert len(grid["rows"]) == 5 * 2 * 2 * 2
    columns = {row["features"]: row["columns"] for row in grid["rows"]}
    assert columns == {"prompt": 128, "response": 128, "entropy": 3, "length": 1, "full": 259}


@pytest.mark.slow
def test_x2(tmp_path):
    quick("x2", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())["algorithms"]
    assert list(found) == ["rloo", "poise", "ppo"]
    assert found["rloo"]["step_over_base"] == found["rloo"]["peak_over_base"] == 1
    assert found["ppo"]["seconds_value_update"] > found["rloo"]["seconds_value_update"]


@pytest.mark.slow
def test_p6(tmp_path):
    quick("p6", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "r.json"))
    text = (tmp_path / "r.json").read_text()
    found = json.loads(text)
    assert found["algorithms_compared"] == ["cross", "prompt-only", "same-rollout"]
    assert [cell["status"] for cell in found["cells"]] == ["finished"] * 3
    assert all(course["last"]["reward/mean"] is not None for (course,) in found["course"].values())
    assert str(BENCHMARKS) not in text


def test_the_probe_that_verifies_itself_learns_its_own_outcomes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    variants = importlib.import_module("p6_variants")
    policy, batch = small_policy(), random_batch(groups=20)
    setup = Setup(SMALL["num_hidden_layers"], SMALL["hidden_size"], 2, (0.0, 1.0))
    cross, same = (a(bootstrap=0).build(setup) for a in (Poise, variants.SameRollout))
    with torch.no_grad():
        whole_NP = cross.read(policy.forward(batch, layers=cross.needs.hidden_layers))["features"]
    reads = {"features": whole_NP}
    for made in (cross, same):
        made.learn(batch, reads, made.advantages(batch, reads))
    siblings_N, own_N = (made.domains["default"].buffer.data()[1] for made in (cross, same))
    assert torch.equal(own_N.double(), batch.outcome_B)
    assert torch.equal(siblings_N.double(), batch.outcome_B.view(-1, 2).flip(1).flatten())
    later = replace(batch, step=2)
    predicted_N = same.domains["default"].predict(whole_NP, 2)
    assert torch.equal(same.advantages(later, reads).value_BT[:, 0], predicted_N)
    same.learn(later, reads, same.advantages(later, reads))
    error = float(((batch.outcome_B - predicted_N) ** 2).sum())  # its own outcomes judge its own predictions
    assert same.domains["default"].history[-1].probe == pytest.approx(error)


@pytest.mark.slow
def test_ppo_forms(tmp_path):
    quick("ppo_forms", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found["course"]) == {"copy", "head", "lambda-0.95"}
    assert all(0 < row["share_of_step"] < 1 for row in found["course"].values())


@pytest.mark.slow
def test_token_features(tmp_path):
    quick("token_features", "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    columns = {row["features"]: row["columns"] for row in found["rows"]}
    assert columns["default"] == columns["layer 2"] == 264
    assert columns["all layers"] == 5 * 256 + 8
    assert columns["without surprise"] == columns["default"] - 3
    assert all(len(values) == 2 for values in found["raw"].values())


def test_the_page_of_the_token_probe_quotes_the_committed_comparison(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    later = importlib.import_module("results_later")
    page = (BENCHMARKS.parent / "docs" / "poise-token.md").read_text()
    ours, first = (json.loads((BENCHMARKS / "results" / f"{n}-sums.json").read_text()) for n in ("later", "algorithms"))
    token, ppo = (ours["algorithms"][name]["means"] for name in ("poise_token", "ppo"))
    for said in (
        f"`poise_token` ends at {later.interval(token['final_accuracy'])}",
        f"POISE at {later.interval(first['algorithms']['poise']['means']['final_accuracy'])}: "
        + later.difference(ours, "poise_token", first, "poise"),
        f"ends at {later.interval(ppo['final_accuracy'])}: {later.difference(ours, 'poise_token', ours, 'ppo')}",
        f"over RLOO {later.difference(ours, 'poise_token', first, 'rloo')}",
        f"It spends {100 * ppo['value_share_of_time']['mean']:.0f} % of its time on\n  values, `poise_token` "
        f"{100 * token['value_share_of_time']['mean']:.1f} %",
        f"explains {later.interval(token['value/variance_reduction'])} of the variance",
    ):
        assert said in page
    fit = token["time/value_update"]["mean"] / token["seconds"]["mean"]
    assert f"The fit takes about {100 * fit:.1f} % of a step" in page


def test_the_page_of_the_token_probe_quotes_the_committed_numbers():
    page = (BENCHMARKS.parent / "docs" / "poise-token.md").read_text()
    names = {
        "default": "**default**",
        "without surprise": "without the three of surprise",
        "statistics alone": "statistics alone",
    }
    for task in ("sums", "programs"):
        path = BENCHMARKS / "results" / f"token-features-{task}.json"
        rows = {row["features"]: row for row in json.loads(path.read_text())["rows"]}
        for name, said in names.items():
            row = rows[name]
            (line,) = [line for line in page.splitlines() if line.startswith(f"| {said} |")]
            assert f"{row['skill']:.3f} ± {row['high'] - row['skill']:.3f}" in line


@pytest.mark.slow
def test_rollout(tmp_path):
    quick("rollout", "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found["sides"]) == {"dynamic", "static", "generate"}
    assert all(4 * 8 < row["tokens"] <= 4 * 8 * 80 for rows in found["sides"].values() for row in rows)
    for ratio in found["over_generate"].values():
        assert 0 < ratio["low"] <= ratio["median"]


@pytest.mark.slow
def test_gpu_step_on_the_tiny_shape(tmp_path):
    quick("gpu_step", "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())["shapes"]["tiny"]
    assert list(found["algorithms"]) == ["rloo", "poise", "grpo", "poise_token", "vimpo", "ppo"]
    for name, row in found["algorithms"].items():
        assert {"forward_backward", "value", "value_update", "step"} <= set(row["median_seconds"]), (name, row)
        assert len(row["steps"]) == 2
        assert row["flops"] > 6 * found["parameters"]
        assert row["peak_gb"] > 0
        assert row["mfu"] is None
    assert "reference" in found["algorithms"]["vimpo"]["median_seconds"]
    assert found["generation"]["mean_length"] > 12
    assert len(found["poise_over_rloo"]["ratios"]) == 2


def test_the_table_of_what_fits_on_24_gb_is_the_result(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("memory_24gb")
    rows = json.loads((BENCHMARKS / "results" / "memory_24gb.json").read_text())["rows"]
    assert [(row["model"], row["trained"], row["settings"]) for row in rows] == script.ROWS
    page = (BENCHMARKS.parent / "docs" / "models.md").read_text()
    assert [script.line(row) in page for row in rows] == [True] * len(script.ROWS)
    for row in rows:
        held = sum(row[part] for part in ("weights", "optimizer", "reference", "critic"))
        assert row["phases"]["rollout"] == held + row["generation"]
        assert row["fits"] == (1.1 * row["peak"] <= 24e9)


def test_genac_cost(tmp_path):
    quick("genac_cost", "--out", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    shape, steps = found["shape"], found["sums"]["steps"]
    assert shape["model"]["genac"] == pytest.approx(1.93, abs=0.005)  # papers' §7 at four states: 1.93 and 2.81
    assert shape["model"]["vineppo"] == pytest.approx(2.81, abs=0.005)
    row = shape["raw"]["genac"][0]
    assert (row["tokens/generated"], row["tokens/value_extra"]) == (
        2 * 200,
        2 * 4 * 40,
    )  # everything has its full length
    # Nothing is run twice: policy and PPO's critic take 2 + 6 a token; so few states are padded to the longest.
    padded = (8 * 200 + 4 * 8 * (25 + 15 + 150 + 40)) / (16 * 200)
    assert shape["flops_counted"] == pytest.approx(padded, rel=0.12)
    assert steps["vineppo"]["tokens/value_extra"] > steps["genac"]["tokens/value_extra"] > 0
    assert all(step["flops"] > 1e9 for step in steps.values())


@pytest.mark.slow
def test_genac_rl(tmp_path):
    quick("genac_rl", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["algorithms_compared"] == ["genac", "ppo", "vineppo"]
    assert all(row["finished"] for row in found["algorithms"].values())


@pytest.mark.slow
def test_genac_values(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    words = importlib.import_module("results_genac")
    folder = tmp_path / "pieces"
    for part, sections in (("critics", (words.g1, words.g2)), ("icc", (words.g3,))):
        quick("genac_values", part, "--out", str(folder), "--json", str(tmp_path / f"{part}.json"))
        found = json.loads((tmp_path / f"{part}.json").read_text())
        assert {"versions", "machine", "git_commit"} <= set(found)
        for section in sections:
            text = "\n".join(section(found))
            assert "verdict" in text
            assert "nan" not in text.replace("[nan, nan]", "")
    pieces = sorted(folder.glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in pieces}
    quick("genac_values", "critics", "--out", str(folder), "--json", str(tmp_path / "again.json"))
    assert {path: path.stat().st_mtime_ns for path in pieces} == before  # what is there is not made again


@pytest.mark.slow
def test_genac_school(tmp_path):
    words = ["--worlds", "tools", "--courses", "own", "--out", str(tmp_path), "--json", str(tmp_path / "r.json")]
    quick("genac_school", *words)
    found = json.loads((tmp_path / "r.json").read_text())["worlds"]["tools"]["own"]
    assert found["school"]["cpu_seconds"] > 0
    assert found["against_truth"]["continuations"] == 2
    assert 0 <= found["completions_parsed"] <= 1


@pytest.mark.slow
def test_genac_pretrain(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    words = ["--worlds", "tools", "--school", str(tmp_path / "school"), "--out", str(tmp_path / "out")]
    quick("genac_pretrain", *words, "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    steps = found["worlds"]["tools"]["steps"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(0 < row["brier_rival"] < 1 and 0 < row["brier_penalised"] <= 1 for row in steps)
    page = "\n".join(importlib.import_module("results_genac_training").pretraining(found))
    assert "| `tools` |" in page
    assert "nan" not in page.replace("[nan, nan]", "")


@pytest.mark.slow
def test_genac_siblings(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    quick("genac_siblings", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    parts = found["rollouts_per_prompt"]
    for number in ("1", "8"):
        shared = parts[number]["configuration"]["shared"]
        assert shared["rollouts_per_prompt"] == int(number)
        assert all(cell["status"] == "finished" for cell in parts[number]["cells"])
    page = "\n".join(importlib.import_module("results_genac_training").siblings(found))
    assert "| 1 | 16 | 1 |" in page
    assert "| 8 | 2 | 1 |" in page


def test_the_page_of_genac_quotes_the_schooled_critics():
    page = " ".join((BENCHMARKS.parent / "docs" / "genac.md").read_text().replace("−", "-").split())
    found = json.loads((BENCHMARKS / "results" / "genac-school.json").read_text())["worlds"]
    name = "mse_noise_corrected"
    less, constant = f"{name}_less_that_of_the_constant", "mse_of_the_best_constant_noise_corrected"

    def said(row, key, sign=""):
        low, high = row["intervals"][key]
        return f"{row[key]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

    for world, courses in found.items():
        own, shipped = (courses[course]["against_truth"] for course in ("own", "shipped"))
        oracle = f"{own['mse_of_the_oracle_noise_corrected']:.3f}"
        assert f"| `{world}` | {own[name]:.3f} | {oracle} | {said(own, less, '+')} |" in page
        assert (
            f"| `{world}` | {said(shipped, name)} | {oracle} | {said(shipped, constant)} | {said(shipped, less, '+')} |"
            in page
        )
    assert f"was as good, {said(found['sums']['again']['against_truth'], name)}" in page


def test_the_page_of_models_quotes_the_rollout_benchmark():
    page = (BENCHMARKS.parent / "docs" / "models.md").read_text()
    ratios = json.loads((BENCHMARKS / "results" / "rollout.json").read_text())["over_generate"]
    for ratio in ratios.values():
        assert f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" in page


def test_the_page_of_memory_quotes_the_committed_numbers():
    page = (BENCHMARKS.parent / "docs" / "memory.md").read_text()
    found = json.loads((BENCHMARKS / "results" / "memory_check.json").read_text())
    assert found["worst"] <= found["bar"] == 0.15
    for name, case in found["cases"].items():
        cells = [
            f"{case['ratio'][phase]:.2f}" if phase in case["ratio"] else "" for phase in ("rollout", "update", "critic")
        ]
        assert f"| {name} | {' | '.join(cells)} | {case['peak_ratio']:.2f} |" in page


def test_the_page_of_genac_quotes_g3_and_what_rollouts_of_a_prompt_are_worth(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    words = importlib.import_module("results_genac_training")
    page = " ".join((BENCHMARKS.parent / "docs" / "genac.md").read_text().split())
    parts = json.loads((BENCHMARKS / "results" / "genac-siblings.json").read_text())["rollouts_per_prompt"]
    gains = {name: words.paired_difference(*(words.final(parts[n], name) for n in "18")) for name in ("genac", "ppo")}
    said = {name: words.interval(gain.as_dict(), True) for name, gain in gains.items()}
    assert f"GenAC ended {said['genac']} higher on `sums`" in page
    assert f"PPO {said['ppo']}" in page
    school = json.loads((BENCHMARKS / "results" / "genac-school.json").read_text())["worlds"]["tools"]["own"]["school"]
    assert school["threads"] == 2
    assert f"The course of `tools` took {school['seconds']:.0f} seconds" in page
    trained = json.loads((BENCHMARKS / "results" / "genac-pretrain.json").read_text())["worlds"]
    last = {world: row["steps"][-words.LAST :] for world, row in trained.items()}
    above = {  # what the page says of all worlds, and of all but one
        name: [w for w, rows in last.items() if sum(r["brier_penalised"] - r[f"brier_{name}"] for r in rows) >= 0]
        for name in ("constant", "rival")
    }
    assert above == {"constant": [], "rival": ["tools"]}
    (slope,) = re.findall(r"; slope (\d\.\d\d) \(seeds", (BENCHMARKS.parent / "docs" / "results.md").read_text())
    assert f"a slope of {slope} (G3" in page
