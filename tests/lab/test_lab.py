"""`vantage lab` from end to end, small."""

import json
import re

import numpy as np
import pytest

from tests.lab.conftest import SMALL
from tests.lab.made import made_lab
from vantage.cli import main
from vantage.errors import UserError
from vantage.lab.command import run_lab
from vantage.lab.report import write_lab_report
from vantage.lab.settings import LabConfig

MINE = """
from vantage.lab.protocol import ValueEstimator

class ByLength(ValueEstimator):
    "Longer prefixes are worth less."
    def fit(self, rollouts, bench):
        self.top = float(rollouts.reward_B.mean())
    def predict(self, states):
        return [self.top * (1 - cut / states.limit) for cut in states.cut_N]

class Wrong(ValueEstimator):
    def predict(self, states):
        return [0.5]
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A finished lab with an estimator of the user's."""
    folder = tmp_path_factory.mktemp("labs")
    (folder / "mine.py").write_text(MINE)
    names = f"constant,leave_one_out,poise,poise_token,poise_self,{folder}/mine.py:ByLength"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name != "quick"]
    command = [
        "lab", "tiny", "--quick", *flags, "--estimators", names, "--shifts", "sums:more-terms", "--ablate", "--layers", "2",
        "--windows", "5", "--regressors", "ridge", "--out", str(folder / "lab"),
    ]  # fmt: skip
    assert main(command) == 0
    return folder / "lab"


def test_everything_is_written(lab):
    found = json.loads((lab / "lab.json").read_text())
    assert [one["name"] for one in found["sets"]] == ["held-out", "sums:more-terms"]
    assert {"versions", "machine", "git_commit", "seed"} <= set(found)
    for row in found["estimators"].values():
        metrics = row["sets"]["held-out"]["all"]["metrics"]
        assert metrics["mse"]["low"] <= metrics["mse"]["mean"] <= metrics["mse"]["high"]
        assert row["cost"]["seconds_per_state"] >= 0
    mine = next(row for name, row in found["estimators"].items() if name.endswith("ByLength"))
    assert mine["about"] == "Longer prefixes are worth less."
    assert next(row["size"] for row in mine["ranking"]) == 2
    assert found["estimators"]["poise"]["ranking"] == []
    assert found["estimators"]["poise"]["cost"]["peak_bytes"] > 0
    assert len(found["ablation"]["rows"]) == 5
    assert len(found["differences"]) == 2 * 5


def test_metrics_can_be_had_again_from_the_raw_numbers(lab):
    found = json.loads((lab / "lab.json").read_text())
    rows = [json.loads(line) for line in (lab / "states.jsonl").read_text().splitlines()]
    held = [row for row in rows if row["set"] == "held-out"]
    assert len(held) == found["sets"][0]["states"]
    for name, entry in found["estimators"].items():
        pairs = [(r["predictions"][name], r["truth"]) for r in held if r["predictions"][name] is not None]
        error = np.mean([(p - m) ** 2 for p, m in pairs])
        assert entry["sets"]["held-out"]["all"]["metrics"]["mse"]["mean"] == pytest.approx(error)


def test_the_page_needs_nothing_from_outside(lab):
    page = (lab / "report.html").read_text()
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert "http" not in re.sub(r"https?://www\.w3\.org/[\w/.]+|http-equiv", "", page)
    for word in (
        "ByLength",
        "Squared error",
        "Calibration",
        "Out of distribution",
        "Ranking of next steps",
        "Layer and window",
    ):
        assert word in page
    captions = page.count("<figcaption>")
    assert (
        captions
        == page.count("<figure")
        == len(list((lab / "plots").glob("*.png")))
        == len(list((lab / "plots").glob("*.svg")))
    )
    assert all(text.strip() for text in re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL))


def test_a_page_can_be_made_of_numbers_that_are_missing(tmp_path):
    """NaN is null in JSON: a metric that can not be said must not break the page."""
    found = made_lab()
    for entry in found["estimators"].values():
        for test in entry["sets"].values():
            for part in ("all", "prompt", "step"):
                for metric in test[part]["metrics"].values():
                    metric.update(mean=None, low=None, high=None)
        entry["ranking"] = []
    found["ablation"] = None
    found["sets"][0]["variance_of_values"] = None
    page = write_lab_report(found, tmp_path).read_text()
    assert "true values hardly differ" in page


def test_a_second_lab_uses_the_truth_of_the_first(lab, tmp_path):
    shared = {"model": "tiny", "estimators": "constant", "shifts": "none", "cache": str(lab / "truth")}
    small = {**SMALL, "pools": 0, "max_new_tokens": 124}
    found = run_lab(LabConfig(**shared, out=str(tmp_path / "b"), **small))
    assert found["sets"][0]["tokens"] == 0
    with pytest.raises(UserError, match="holds a finished lab"):
        run_lab(LabConfig(**shared, out=str(lab), **small))


def test_an_estimator_that_gives_too_few_numbers_is_named(lab, tmp_path):
    config = LabConfig(
        model="tiny", estimators=f"{lab.parent}/mine.py:Wrong", shifts="none", cache=str(lab / "truth"),
        out=str(tmp_path / "c"), **{**SMALL, "pools": 0, "max_new_tokens": 124},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"predict gave the shape \(1,\) for"):
        run_lab(config)
    assert not (tmp_path / "c").exists()


def foreign_rows(prompts, extra=None):
    draw = np.random.default_rng(0)
    rows = []
    for i in range(prompts):
        for _ in range(2):
            reward = float(draw.random() < 0.5)
            row = {"prompt": f"{i + 10}+5=", "response": f"{i + 10}+5={i + 15}\n>{i + 15}", "reward": reward}
            row |= {"answer": str(i + 15), "features": [reward, float(draw.random())]}
            rows.append(row | (extra or {}))
    return rows


def test_rollouts_from_elsewhere_with_values_of_their_own(tmp_path):
    file = tmp_path / "rollouts.jsonl"
    rows = foreign_rows(50, {"value": 0.5, "value_samples": 8})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run_lab(
        LabConfig(
            model="tiny",
            rollouts_from=str(file),
            estimators="constant,features,poise",
            out=str(tmp_path / "lab"),
            **SMALL,
        )
    )
    assert found["sets"][0]["prompts"] == 10
    assert found["sets"][0]["tokens"] == 0
    assert found["train_rollouts"] == 80
    assert found["estimators"]["features"]["sets"]["held-out"]["prompt"]["predicted"] == 20
    assert found["sets"][0]["noise"] == pytest.approx(0.25 / 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reward": "much"}, "line 1 has the reward 'much', which is no number"),
        ({"reward": 2.0}, "has the reward 2, not within the task's 0 to 1"),
        ({"response": None}, "line 1 has no 'response'"),
        ({"split": "val"}, "has the split 'val'; train or test"),
        ({"features": None}, "some rows have other features than the rest"),
    ],
)
def test_a_wrong_row_is_named(bench, tmp_path, change, said):
    from vantage.lab.elsewhere import read_rollouts

    rows = foreign_rows(50)
    rows[0] |= change
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=said):
        read_rollouts(str(file), bench)


def test_too_few_prompts_are_said(bench, tmp_path):
    from vantage.lab.elsewhere import read_rollouts

    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in foreign_rows(9)))
    with pytest.raises(UserError, match="fewer than 8 test prompts"):
        read_rollouts(str(file), bench)
