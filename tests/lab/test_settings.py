import pytest

from vantage.cli import main
from vantage.errors import UserError
from vantage.lab.protocol import ValueEstimator, load_estimator
from vantage.lab.settings import LabConfig, check_out, check_regressor, names


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"estimators": "pois"}, "no estimator 'pois', did you mean 'poise'?"),
        ({"estimators": "poise,poise"}, "'poise' comes twice"),
        ({"estimators": "poise:3"}, "no estimator 'poise:3'"),
        ({"estimators": "vineppo:many"}, "vineppo:K needs a number"),
        ({"prompts": 7}, "--prompts is 7: intervals are over prompts and need at least 8"),
        ({"continuations": 1}, "--continuations is 1"),
        ({"candidates": 1}, "--candidates is 1"),
        ({"train_rollouts": 31}, "nothing is learned from fewer than 32"),
        ({"windows": (0,)}, "--windows has 0"),
        ({"regressors": ("rigde",)}, "no regressor 'rigde', did you mean 'ridge'?"),
        ({"rollouts": 0}, "--rollouts is 0"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(settings, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        LabConfig(model="tiny", **settings)


def test_quick_fills_in_what_was_not_given():
    found = LabConfig(model="tiny", quick=True, prompts=50).resolved()
    assert found.prompts == 50
    assert found.continuations == 16
    assert LabConfig(model="tiny").resolved().continuations == 64


def test_names_and_regressors():
    assert names("poise, vineppo:9,a/b.py:Mine") == ["poise", "vineppo:9", "a/b.py:Mine"]
    assert check_regressor("mlp-3x64") == ("mlp", 3.0, 64)
    assert check_regressor("ridge-0.01") == ("ridge", 0.01, 0)
    for wrong in ("ridge-0", "mlp-0x4", "mlp-3", "lasso-1"):
        with pytest.raises(UserError, match="no regressor"):
            check_regressor(wrong)


def test_a_finished_lab_is_not_written_over(tmp_path):
    (tmp_path / "truth").mkdir()
    assert check_out(str(tmp_path)) == tmp_path
    (tmp_path / "other").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        check_out(str(tmp_path))
    (tmp_path / "lab.json").touch()
    with pytest.raises(UserError, match="finished lab; give another folder, and --cache"):
        check_out(str(tmp_path))


def test_the_command_line_says_a_mistake_in_one_line(capsys, tmp_path):
    assert main(["lab"]) == 2
    assert main(["lab", "tiny", "--task", "sumz"]) == 2
    assert main(["lab", "tiny", "--estimators", "nothing.py:Mine", "--out", str(tmp_path / "x")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "MODEL|RUN" in lines[0]
    assert "did you mean 'sums'?" in lines[1]
    assert "there is no file 'nothing.py'" in lines[-1]
    assert not (tmp_path / "x").exists()


def test_help_names_the_flags(capsys):
    assert main(["lab", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--estimators", "--ablate", "--rollouts-from", "--shifts", "--quick", "MODEL|RUN"):
        assert flag in text


def test_an_estimator_of_the_users_need_not_be_a_subclass(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "class Plain:\n    def fit(self, rollouts, bench): self.seen = len(rollouts)\n"
        "    def predict(self, states): return [0.25] * len(states)\n"
        "class Broken:\n    def __init__(self, size): pass\n    def fit(self): pass\n    def predict(self): pass\n"
        "class Nothing: pass\n"
    )
    found = load_estimator(f"{file}:Plain")
    assert isinstance(found, ValueEstimator)
    assert found.name == "Plain"
    found.fit([1, 2], None)
    assert found.predict([0, 0]).tolist() == [0.25, 0.25]
    with pytest.raises(UserError, match=r"Broken\(\) fails: TypeError"):
        load_estimator(f"{file}:Broken")
    with pytest.raises(UserError, match="no class with fit and predict"):
        load_estimator(f"{file}:Nothing")


def test_a_run_says_its_task_its_start_and_its_beta(tmp_path):
    from vantage.lab.command import what_of_run

    (tmp_path / "config.yaml").write_text(
        "model: tiny:tools\ntask: tools\nalgo: vimpo\nvimpo:\n  beta: 0.002\n", encoding="utf-8"
    )
    task, origin, shifts = what_of_run(LabConfig(model=str(tmp_path)))
    assert task == "tools"
    assert (origin.reference, origin.beta) == ("tiny:tools", 0.002)
    assert shifts
    assert all(shift.startswith("tools:") for shift in shifts)
    assert origin.critic is None
    (tmp_path / "config.yaml").write_text("model: tiny\ntask: sums\nalgo: genac\n", encoding="utf-8")
    assert what_of_run(LabConfig(model=str(tmp_path)))[1].critic is None  # it has not been saved yet
    (tmp_path / "critic").mkdir()
    assert what_of_run(LabConfig(model=str(tmp_path)))[1].critic == str(tmp_path / "critic")
    task, origin, shifts = what_of_run(LabConfig(model="tiny", shifts="none", reference="other"))
    assert (task, origin.reference, origin.beta, shifts) == ("sums", "other", None, [])
    with pytest.raises(UserError, match="no task 'sumz'"):
        what_of_run(LabConfig(model="tiny", shifts="sumz"))
