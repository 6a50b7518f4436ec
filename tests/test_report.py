from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from vantage.errors import UserError
from vantage.report import MAX_SAMPLES, write_report

pytestmark = pytest.mark.figures

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a synthetic run directory of `steps` steps and returns its path."""

    def make(name: str = "run", steps: int = 12, samples: list[dict[str, Any]] | None = None, **config: Any) -> Path:
        run = tmp_path / name
        run.mkdir(parents=True)
        settings = {"model": "tiny", "task": "sums", "algo": "poise", "seed": 0, "steps": 12, **config}
        settings["versions"] = {"vantage": "0.1.0", "torch": "2.13.0"}
        (run / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        lines = [json.dumps(metric_row(step)) + "\n" for step in range(steps + 1)]
        (run / "metrics.jsonl").write_text("".join(lines))
        if samples is not None:
            (run / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        return run

    return make


def metric_row(step: int) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step}
    if step % 4 == 0:
        accuracy = 0.4 + 0.02 * step
        row |= {"eval/accuracy": accuracy, "eval/accuracy_low": accuracy - 0.03, "eval/accuracy_high": accuracy + 0.03}
    if step:
        row |= {"reward/mean": 0.5, "value/mae": 0.4, "value/variance_reduction": 0.25, "poise/ridge": 1.0}
        row |= {"time/step": 10.0, "time/rollout": 6.0, "time/value": 1.0, "tokens/generated": 1000}
        row |= {"tokens/value_extra": 50}
    return row


def sample(step: int = 0, **changes: Any) -> dict[str, Any]:
    row = {"step": step, "prompt": "17+5=", "response": "17+5=22\n>22", "reward": 1.0, "value": 0.5}
    return {**row, "advantage": 0.5, "length": 11, "finish_reason": "stop", **changes}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its visible text."""

    def __init__(self, html: Path) -> None:
        super().__init__()
        self.source = html.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str, kind: str = "") -> int:
        return sum(name == tag and kind in (attributes.get("class") or "") for name, attributes in self.tags)


def test_a_run_gets_a_page_and_a_picture_for_each_plot(make_run: MakeRun) -> None:
    run = make_run()
    files = write_report([run])
    assert files.html == run / "report.html"
    names = ["learning_curve", "reward", "value_error", "variance_reduction", "time", "algorithm_poise"]
    assert [path.relative_to(run).as_posix() for path in files.plots] == [f"plots/{name}.png" for name in names]
    for path in files.plots:
        with Image.open(path) as image:
            assert image.width >= 900
            assert image.height >= 400
    page = Page(files.html)
    assert page.count("figure") == page.count("figcaption") == len(names)
    assert page.count("svg") == len(names)


def test_the_headline_says_what_was_run_and_what_came_out(make_run: MakeRun) -> None:
    page = Page(write_report([make_run()]).html)
    text = " ".join(page.text.split())
    assert "poise on sums" in text
    assert "12 of 12 training steps" in text
    assert "0.400→0.640+0.240" in text
    assert "95 % interval 0.370–0.430 before, 0.610–0.670 after" in text
    assert "2 min 00 s" in text
    assert "12 k" in text
    assert "600 more for values" in text
    assert "0.250" in text


def test_the_page_asks_for_nothing_outside_itself_and_runs_no_script(make_run: MakeRun) -> None:
    page = Page(write_report([make_run(samples=[sample(response="see https://example.org/")])]).html)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not page.count("script") + page.count("link") + page.count("iframe")
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in page.tags)


def test_plots_follow_the_theme_and_their_ids_are_unique(make_run: MakeRun) -> None:
    page = Page(write_report([make_run()]).html)
    assert "prefers-color-scheme: dark" in page.source
    body = page.source.split("</style>")[1]
    assert "var(--series-0)" in body
    assert not re.search(r"(?:fill|stroke): #(?!fff)", body)  # every colour of a figure is a variable of the theme
    used = set(re.findall(r"var\((--[\w-]+)\)", body))
    assert all(f"{variable}:" in page.source for variable in used)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r"(?:href=\"|url\()#([\w-]+)", body))
    assert targets
    assert targets <= set(ids)


@pytest.mark.parametrize("field", ["prompt", "response", "finish_reason"])
def test_hostile_samples_are_text_not_markup(make_run: MakeRun, field: str) -> None:
    attack = "</div></td><script>alert(1)</script><img src=x onerror=alert(1)>"
    page = Page(write_report([make_run(samples=[sample(**{field: attack})])]).html)
    assert not page.count("script") + page.count("img")
    assert attack in page.text


def test_hostile_chat_messages_and_settings_are_text_not_markup(make_run: MakeRun) -> None:
    attack = "<script>alert(1)</script>"
    chat = [{"role": attack, "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": attack}]}]
    run = make_run(f"{attack.replace('/', '')} $x_1", samples=[sample(prompt=chat)], model=attack, note=attack)
    page = Page(write_report([run, make_run("other")], run.parent / "out").html)
    assert not page.count("script")
    assert page.text.count(attack) >= 4


def test_hidden_characters_are_written_out_and_lone_surrogates_do_not_stop_the_report(make_run: MakeRun) -> None:
    page = Page(write_report([make_run(samples=[sample(response="a\x00b\u202ec\ud800d\x1b[0m")])]).html)
    assert "a[U+0000]b[U+202E]c[U+D800]d[U+001B][0m" in page.text


def test_whitespace_of_completions_is_kept(make_run: MakeRun) -> None:
    page = Page(write_report([make_run(samples=[sample(response="\n  two\n\n    four\ttab ")])]).html)
    assert "\n  two\n\n    four\ttab " in page.text
    assert re.search(r"\.text \{[^}]*pre-wrap", page.source)


def test_samples_are_those_of_the_first_and_last_step_and_not_too_many(make_run: MakeRun) -> None:
    samples = [sample(step, prompt=f"p{step}.{index}=") for step in (0, 4, 8) for index in range(50)]
    page = Page(write_report([make_run(samples=samples)]).html)
    assert page.count("div", "response") == MAX_SAMPLES
    assert "p0.0=" in page.text
    assert "p8.19=" in page.text
    assert "p4.0=" not in page.text
    assert "first 20 of 50" in page.text


def test_missing_numbers_of_a_sample_are_dashes_and_negative_ones_have_a_minus(make_run: MakeRun) -> None:
    row = sample(value=None, reward=None, advantage=-0.25, finish_reason=None)
    page = Page(write_report([make_run(samples=[row])]).html)
    cells = re.findall(r'<td class="(?:num|finish)">([^<]*)</td>', page.source)
    assert cells == ["–", "–", "−0.250", "11", "–"]


def test_a_very_long_response_keeps_its_beginning_and_its_end(make_run: MakeRun) -> None:
    text = "start " + "x" * 50_000 + " answer 42"
    page = Page(write_report([make_run(samples=[sample(response=text)])]).html)
    assert "start x" in page.text
    assert "x answer 42" in page.text
    assert "44,016 characters left out" in page.text


def test_a_run_with_step_0_only_still_yields_a_report(make_run: MakeRun) -> None:
    run = make_run(steps=0, samples=[sample()])
    files = write_report([run])
    assert files.plots == ()
    page = Page(files.html)
    assert "Held-out accuracy before training" in page.text
    assert "0.400" in page.text
    assert "No curves yet" in page.text
    assert not page.count("figure")


def test_a_run_that_has_written_its_configuration_only_yields_a_report(make_run: MakeRun) -> None:
    run = make_run()
    (run / "metrics.jsonl").unlink()
    assert "no evaluation yet" in Page(write_report([run]).html).text


def test_a_torn_last_line_is_tolerated(make_run: MakeRun) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "reward/me')
    assert "12 of 12 training steps" in " ".join(Page(write_report([run]).html).text.split())


def test_versions_and_commit_stand_apart_from_the_settings(make_run: MakeRun) -> None:
    page = Page(write_report([make_run(git_commit="3f9ac1e")]).html)
    terms = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page.source))
    assert terms == {"vantage": "0.1.0", "torch": "2.13.0", "git commit": "3f9ac1e"}
    settings = re.search(r'<div class="yaml">(.*?)</div>', page.source, re.DOTALL)
    assert settings is not None
    assert "seed: 0" in settings.group(1)
    assert "3f9ac1e" not in settings.group(1)


def test_an_algorithm_with_options_is_called_by_its_name(make_run: MakeRun) -> None:
    own = make_run("own", algo="ideas/mine.py:Mine", task="ideas/maze.py:Maze", steps=0)
    assert "Mine on Maze" in Page(write_report([own]).html).text
    page = Page(write_report([make_run(algo={"name": "grpo", "scale": True})]).html)
    assert "grpo on sums" in page.text
    assert "scale: true" in page.text  # the configuration is shown in full


def test_several_runs_share_one_report_with_a_legend_and_a_table(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("poise/seed-0"), make_run("grpo/seed-0", algo="grpo", samples=[sample()])]
    files = write_report(runs, tmp_path / "both")
    assert files.html == tmp_path / "both" / "report.html"
    assert all(path.parent == tmp_path / "both" / "plots" for path in files.plots)
    page = Page(files.html)
    assert "poise, grpo on sums" in page.text
    assert page.text.count("poise/seed-0") >= 2  # `seed-0` alone would not tell the runs apart
    body = page.source.split("</style>")[1]
    assert "var(--series-0)" in body
    assert "var(--series-1)" in body
    assert not (runs[0] / "report.html").exists()


def test_several_runs_go_to_a_folder_called_report_unless_told_otherwise(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run("a", steps=0), make_run("b", steps=0)]
    monkeypatch.chdir(tmp_path)
    assert write_report(runs).html.resolve() == tmp_path / "report" / "report.html"


def test_mistakes_are_reported_before_anything_is_written(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    out = tmp_path / "out"
    with pytest.raises(UserError, match="none given"):
        write_report([])
    with pytest.raises(UserError, match="does not exist"):
        write_report([run, tmp_path / "absent"], out)
    assert not out.exists()
    out.touch()
    with pytest.raises(UserError, match="is a file"):
        write_report([run], out)


def test_the_same_run_gives_the_same_page(make_run: MakeRun) -> None:
    run = make_run(samples=[sample()])
    first = write_report([run]).html.read_bytes()
    assert write_report([run]).html.read_bytes() == first
