import pytest

from vantage.lab.bench import Bench
from vantage.lab.settings import LabConfig

SMALL = {
    "prompts": 8, "continuations": 3, "train_rollouts": 32, "shift_prompts": 8, "pools": 4, "candidates": 3, "resamples": 20,
    "states": 3, "quick": True,
}  # fmt: skip


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """The embedded policy on `sums`, with few of everything."""
    folder = tmp_path_factory.mktemp("lab")
    config = LabConfig(model="tiny", out=str(folder / "out"), cache=str(folder / "truth"), **SMALL)
    return Bench.of(config.resolved(), "sums")


@pytest.fixture(scope="session")
def train(bench):
    """Rollouts to learn from."""
    return bench.training()


@pytest.fixture(scope="session")
def test_states(bench):
    """States of rollouts on held-out prompts."""
    return bench.states(bench.held_out(None, 8))
