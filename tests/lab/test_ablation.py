import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge
from sklearn.preprocessing import StandardScaler

from vantage.errors import UserError
from vantage.lab.ablation import fit_regressor, grid_of, lasso, pooled
from vantage.lab.bench import Bench


def made(rows=120, columns=6, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, columns)) * np.arange(1, columns + 1) + 3
    y = np.clip(0.5 + 0.1 * (x[:, 0] - 3) - 0.02 * (x[:, 2] - 3) + draw.normal(0, 0.1, rows), 0, 1)
    return torch.from_numpy(x), torch.from_numpy(y), np.repeat(np.arange(rows // 2), 2).astype(float)


def test_lasso_is_that_of_scikit_learn():
    x, y, _ = made()
    z = torch.from_numpy(StandardScaler().fit_transform(x.numpy()))
    for alpha in (0.003, 0.03, 0.1):
        theirs = Lasso(alpha=alpha, tol=1e-12, max_iter=100_000).fit(z.numpy(), y.numpy())
        np.testing.assert_allclose(lasso(z, y - y.mean(), alpha, 3000).numpy(), theirs.coef_, atol=1e-7)


def test_ridge_with_a_penalty_is_that_of_scikit_learn():
    x, y, group = made()
    scaler = StandardScaler().fit(x.numpy())
    theirs = Ridge(alpha=10).fit(scaler.transform(x.numpy()), y.numpy()).predict(scaler.transform(x.numpy()))
    np.testing.assert_allclose(fit_regressor("ridge-10", x, y, group)(x).numpy(), np.clip(theirs, 0, 1), atol=1e-9)


@pytest.mark.parametrize("name", ["ridge", "lasso", "mlp-1x16"])
def test_every_regressor_beats_the_mean_on_new_rows(name):
    x, y, group = made(400)
    fresh, truth, _ = made(400, seed=1)
    found = fit_regressor(name, x, y, group)(fresh)
    assert found.min() >= 0
    assert found.max() <= 1
    assert float(((found - truth) ** 2).mean()) < 0.8 * float(truth.var())


def test_a_network_depends_on_its_seed_alone():
    x, y, group = made()
    one, other = (fit_regressor("mlp-2x8", x, y, group, seed=3)(x) for _ in range(2))
    assert torch.equal(one, other)


def test_pooled_features_are_those_of_poise(bench, train):
    """The grid's features at POISE's layer and window are what its estimator reads."""
    from vantage.estimators.poise import Poise, PoiseEstimator
    from vantage.update import PolicyUpdate

    few = train.of_prompts(range(3))
    estimator = PoiseEstimator(Poise(), bench.setup(2))
    estimator.update_policy = False
    theirs = PolicyUpdate(bench.policy, estimator, bench.train).run(few.batch(1, (0.0, 1.0))).reads["features"]
    mine = pooled(few, bench, [estimator.layer], [10])
    np.testing.assert_allclose(mine.of("full", estimator.layer, 10).numpy(), theirs.double().numpy(), atol=1e-5)
    assert mine.of("length", estimator.layer, 10).flatten().tolist() == [len(ids) for ids in few.response_ids]


def test_layers_that_there_are_not_are_refused(bench):
    from dataclasses import replace

    other = Bench(
        replace(bench.config, layers=(9,)), bench.train, bench.policy, bench.engine, bench.work, bench.sampling,
        bench.splitter, bench.cache,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"--layers has 9, this model has layers 0 \(embeddings\) to 4"):
        grid_of(other)
    assert grid_of(bench)[0] == [0, 1, 2, 3, 4]
    assert math.prod(len(part) for part in grid_of(bench)) == 5 * 4 * 6
