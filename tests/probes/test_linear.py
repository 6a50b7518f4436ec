"""The probe against the sheet (T2, T3, C2, C3, C4), scikit-learn, and brute-force leave-one-out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vantage.probes.linear import ALPHA_GRID, Pca, Scaler, fit_probe, fit_ridge


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(found: Tensor, wanted: Any, tolerance: float) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def random_data(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Columns of very different scale and offset; binary targets that depend on some of them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, columns), generator=draw, dtype=torch.float64)
    score = x[:, 0] - 0.5 * x[:, -1] + 0.7 * torch.randn(rows, generator=draw, dtype=torch.float64)
    scale = torch.logspace(-1, 1, columns, dtype=torch.float64)
    return x * scale + 3 * scale.flip(0), (score > 0).double()


# --- the sheet's numbers --------------------------------------------------------------------------------------------

T2_X = f64([[1, 2, 0.5], [2, 0, 1.5], [0, 1, -1], [3, 1, 0], [1, -1, 2], [-1, 0, 1]])
T2_Y = f64([1, 0, 0, 1, 1, 0])
T2_QUERY = f64([[0.5, 0.5, 0.5], [4, 3, -2], [-2, 1, 0]])
T2_CASES = {
    0.01: ([0.214507678626114, 0.213973292105958, 0.221209261470217],
           [0.379530343601363, 0.958931301821367, -0.0362916516042699]),
    1.0: ([0.196859066700897, 0.140489537717368, 0.146434269350894],
          [0.399004902155755, 0.928269926815687, 0.0169014994829368]),
    100.0: ([0.0145585026842103, 0.0050126880631146, 0.00493031588065086],
            [0.493528140667096, 0.533585850066158, 0.465453385945244]),
}  # fmt: skip


@pytest.mark.parametrize("alpha", T2_CASES)
def test_t2_scaler_ridge_intercept_and_clip(alpha: float) -> None:
    beta, raw = T2_CASES[alpha]
    probe = fit_probe(T2_X, T2_Y, alpha=alpha)
    assert_close(probe.scaler.mean_P, [1, 0.5, 2 / 3], 1e-12)
    assert_close(probe.scaler.scale_P, [1.29099444873581, 0.957427107756338, 0.986013297183269], 1e-12)
    assert probe.ridge.intercept == pytest.approx(0.5, abs=1e-15)
    assert probe.ridge.alpha == alpha
    assert_close(probe.ridge.beta_P, beta, 1e-12)
    assert_close(probe.raw(T2_QUERY), raw, 1e-12)
    assert_close(probe(T2_QUERY), [min(max(p, 0), 1) for p in raw], 1e-12)


def test_t2_raw_space_coefficients() -> None:
    probe = fit_probe(T2_X, T2_Y, alpha=0.01)
    at = probe.raw(torch.cat([torch.zeros((1, 3), dtype=torch.float64), torch.eye(3, dtype=torch.float64)]))
    assert float(at[0]) == pytest.approx(0.0725344004151771, abs=1e-12)
    assert_close(at[1:] - at[0], [0.166156933390511, 0.223487814761574, 0.224347138220288], 1e-12)


def t3_features(rows: Sequence[int]) -> Tensor:
    """P [4 columns], Q [5 columns] and u [3 columns] of the sheet's T3."""
    found = []
    for i in rows:
        p = [math.sin(0.7 * i * k) * c for k, c in zip((1, 2, 3, 4), (4, 2, 1, 0.5))]
        q = [math.cos(0.3 * i * k) * c for k, c in zip((1, 2, 3, 4, 5), (5, 3, 2, 1, 0.5))]
        found.append([*p, *q, 0.5 + 0.1 * math.sin(i), 0.4 + 0.1 * math.cos(i), 0.2 + 0.02 * i])
    return f64(found)


T3_X, T3_QUERY = t3_features(range(1, 13)), t3_features((13, 14))
T3_Y = f64([1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 0])
T3_COLUMNS = {"prompt": (0, 4), "response": (4, 9), "entropy": (9, 12)}
T3_KEEP = {"prompt": 2, "response": 3}
T3_CASES = {
    0.01: ([-3.266030053547, -7.384227722629], [0, 0], 0.182332474954762, 3.99281866786711),
    1.0: ([0.1311702712782, -0.3436350007981], [0.1311702712782, 0], 0.383551614443011, 0.531972775273761),
    100.0: (
        [0.5125853690678, 0.5126426389508],
        [0.5125853690678, 0.5126426389508],
        0.487361921169036,
        0.0247135207685726,
    ),
}
T3_TRAIN = [
    0.6737787032716, 0.2452319536803, 0.4015229774454, 0.6332366349318, 0.6909143266231, 0.6952532084024,
    0.7261817653566, 0.6000630433703, 0.3028749829156, 0.1802758614339, 0.3745158397885, 0.4761507027805,
]  # fmt: skip


@pytest.mark.parametrize("alpha", T3_CASES)
def test_t3_pca_by_block_then_scaler_then_ridge(alpha: float) -> None:
    raw, clipped, error, norm = T3_CASES[alpha]
    probe = fit_probe(T3_X, T3_Y, columns=T3_COLUMNS, components=T3_KEEP, alpha=alpha)
    assert_close(probe.raw(T3_QUERY), raw, 1e-9)
    assert_close(probe(T3_QUERY), clipped, 1e-9)
    assert float((probe(T3_X) - T3_Y).abs().mean()) == pytest.approx(error, abs=1e-10)
    assert float(probe.ridge.beta_P.norm()) == pytest.approx(norm, abs=1e-10)
    scale = [2.853268002003, 1.455889625724, 3.63671574362, 2.01034291637, 1.286110858707]
    scale += [0.07238791128713, 0.06882152298269, 0.06904105059069]
    assert_close(probe.scaler.scale_P, scale, 1e-11)


def test_t3_train_predictions() -> None:
    probe = fit_probe(T3_X, T3_Y, columns=T3_COLUMNS, components=T3_KEEP, alpha=1.0)
    assert_close(probe(T3_X), T3_TRAIN, 1e-12)


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        ((0, 4), [9.884010294158, 5.043349603933, 2.449319828937, 1.161418027279]),
        ((4, 9), [12.59795288127, 6.964032143578, 4.455218702893, 2.247031107629, 1.10850451792]),
    ],
)
def test_t3_components_are_the_singular_directions(block: tuple[int, int], wanted: list[float]) -> None:
    x = T3_X[:, slice(*block)]
    pca = Pca.fit(x, len(wanted))
    assert_close(pca(x).norm(dim=0), wanted, 1e-10)
    assert_close(pca.components_KP @ pca.components_KP.T, torch.eye(len(wanted)), 1e-12)


@pytest.mark.parametrize(
    ("alpha", "wanted"), [(0.01, [-2.610377130159, -3.549221530907]), (100.0, [0.5227480559844, 0.4968594748897])]
)
def test_t3_without_pca(alpha: float, wanted: list[float]) -> None:
    for components in (None, {}, {"prompt": 0, "response": 0}):
        probe = fit_probe(T3_X, T3_Y, columns=T3_COLUMNS, components=components, alpha=alpha)
        assert_close(probe.raw(T3_QUERY), wanted, 1e-9)


C2_X, C2_Y = f64([[1, 2], [2, 0], [3, 1], [4, 5], [0, -1]]), f64([0, 1, 1, 0, 1])
C2_CASES = {
    0.01: ([0.384276745684, -0.696860928081], [0.53280699612, -0.546710081764, -1.500207070643]),
    1.0: ([0.159317742321, -0.440251603598], [0.528044280443, -0.360494899067, -0.608812676362]),
    10.0: ([-0.01377018242, -0.132512307355], [0.5565193061, 0.136317851147, 0.323447118075]),
}


@pytest.mark.parametrize("alpha", C2_CASES)
def test_c2_two_columns(alpha: float) -> None:
    beta, raw = C2_CASES[alpha]
    probe = fit_probe(C2_X, C2_Y, alpha=alpha)
    query = f64([[2.5, 2], [6, 8], [0, 6]])
    assert_close(probe.scaler.mean_P, [2, 1.4], 1e-12)
    assert_close(probe.scaler.scale_P, [math.sqrt(2), 2.059126028197], 1e-12)
    assert_close(probe.ridge.beta_P, beta, 1e-11)
    assert probe.ridge.intercept == pytest.approx(0.6, abs=1e-15)
    assert_close(probe.raw(query), raw, 1e-11)
    assert_close(probe(query), [min(max(p, 0), 1) for p in raw], 1e-11)


def test_c3_more_columns_than_rows() -> None:
    x = f64([[1, 0, 2, 0, 1], [0, 1, 1, 3, 0], [2, 1, 0, 1, 1]])
    probe = fit_probe(x, f64([1, 0, 1]), alpha=0.01)
    scale = [0.816496580928, 0.471404520791, 0.816496580928, 1.247219128925, 0.471404520791]
    beta = [0.155318235708, -0.061691011925, -0.024233134342, -0.148313674757, 0.165355043756]
    assert_close(probe.scaler.scale_P, scale, 1e-11)
    assert_close(probe.ridge.beta_P, beta, 1e-11)
    assert_close(probe.raw(torch.ones((1, 5))), [0.779606703448], 1e-11)


def test_c4_pca_then_scaler_then_ridge() -> None:
    x = f64([[2, 0, 1], [0, 1, 3], [1, 1, 0], [3, 2, 2], [1, 4, 1], [0, 0, 2]])
    probe = fit_probe(x, f64([1, 0, 1, 1, 0, 0]), components={"all": 2}, alpha=0.01)
    assert_close(Pca.fit(x, 2)(x).var(0), [2.438835730827, 1.389631176713], 1e-11)
    raw = [1.111114337326, -0.189730074465, 0.838569868414, 0.908187167361, 0.134536724473, 0.197321976892]
    assert_close(probe.raw(x), raw, 1e-11)
    assert_close(probe(x), [1, 0, *raw[2:]], 1e-11)
    assert_close(probe.raw(f64([[1, 2, 1.5]])), [0.337237064524], 1e-11)


# --- against scikit-learn -------------------------------------------------------------------------------------------


def sklearn_predictions(
    x: Tensor,
    y: Tensor,
    query: Tensor,
    columns: Mapping[str, tuple[int, int]],
    keep: Mapping[str, int],
    alpha: float,
    scale_first: bool,
) -> np.ndarray:
    """PCA by block inside a ColumnTransformer, before or after StandardScaler, then Ridge."""
    pytest.importorskip("sklearn")
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = []
    for name, (start, end) in columns.items():
        step = PCA(keep[name], svd_solver="full") if keep.get(name) else "passthrough"
        parts.append((name, step, list(range(start, end))))
    blocks = ColumnTransformer(parts)
    order = (StandardScaler(), blocks) if scale_first else (blocks, StandardScaler())
    pipeline = make_pipeline(*order, Ridge(alpha=alpha)).fit(x.numpy(), y.numpy())
    return pipeline.predict(query.numpy())


@pytest.mark.parametrize("spread", [1, 5])
def test_components_of_wide_features_are_scikit_learns_whatever_their_spread(spread: int) -> None:
    """By products of rows where variances are alike, by a decomposition where they differ by ten orders."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    x, _ = random_data(30, 80, seed=5)
    x = x / x.std(0) * torch.logspace(0, -spread, 80, dtype=torch.float64)
    wanted = decomposition.PCA(12, svd_solver="full").fit(x.numpy())
    found = Pca.fit(x, 12)
    signs = (found.components_KP * torch.from_numpy(wanted.components_)).sum(1).sign()
    assert_close(found.components_KP * signs[:, None], wanted.components_, 1e-8)
    assert_close(found.components_KP @ found.components_KP.T, torch.eye(12), 1e-9)


BLOCKS = {"prompt": (0, 9), "response": (9, 20), "entropy": (20, 23)}


@pytest.mark.parametrize("scale_first", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0, 1e4])
@pytest.mark.parametrize(
    ("rows", "keep"),
    [
        (80, {"prompt": 4, "response": 6}),  # more rows than columns
        (80, {"response": 5}),  # one block without PCA
        (80, {"prompt": 9, "response": 11}),  # all components
        (7, {"prompt": 3, "response": 5}),  # fewer rows than columns of a block
        (15, {}),  # no PCA, more columns than rows
    ],
)
def test_equal_to_scikit_learn(rows: int, keep: dict[str, int], alpha: float, scale_first: bool) -> None:
    x, y = random_data(rows, 23, seed=rows)
    query, _ = random_data(31, 23, seed=99)
    probe = fit_probe(x, y, columns=BLOCKS, components=keep, alpha=alpha, scale_first=scale_first)
    theirs = sklearn_predictions(x, y, query, BLOCKS, keep, alpha, scale_first)
    assert_close(probe.raw(query), theirs, 1e-8)


@pytest.mark.parametrize("scale_first", [False, True])
@pytest.mark.parametrize("constant", [0.0, 0.5, 0.1, 1e4 / 3])
def test_a_constant_column_is_only_centred_as_in_scikit_learn(constant: float, scale_first: bool) -> None:
    x, y = random_data(40, 23, seed=5)
    x[:, 21] = constant
    x[:, 9] = constant
    query, _ = random_data(10, 23, seed=6)
    keep = {"prompt": 4, "response": 5}
    probe = fit_probe(x, y, columns=BLOCKS, components=keep, alpha=1.0, scale_first=scale_first)
    theirs = sklearn_predictions(x, y, query, BLOCKS, keep, 1.0, scale_first)
    assert_close(probe.raw(query), theirs, 1e-8)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -7.3, 1e-9, 1e9 / 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 48, 1000])
def test_a_constant_column_has_scale_one(constant: float, rows: int) -> None:
    scaler = Scaler.fit(torch.full((rows, 1), constant, dtype=torch.float64))
    assert float(scaler.scale_P) == 1.0
    assert float(scaler.mean_P) == pytest.approx(constant, rel=1e-14)


def test_a_constant_column_has_no_influence_on_predictions() -> None:
    x, y = random_data(40, 6, seed=8)
    with_constant = torch.cat([x, torch.full((40, 1), 1 / 3, dtype=torch.float64)], dim=1)
    query, _ = random_data(9, 6, seed=9)
    plain, padded = fit_probe(x, y, alpha=0.01), fit_probe(with_constant, y, alpha=0.01)
    for value in (1 / 3, 0.0, 5.0):
        asked = torch.cat([query, torch.full((9, 1), value, dtype=torch.float64)], dim=1)
        assert_close(padded.raw(asked), plain.raw(query), 1e-9)


def test_a_tiny_but_varying_column_is_scaled() -> None:
    column = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None] * 1e-12
    assert_close(Scaler.fit(column)(column).var(0, correction=0), [1.0], 1e-12)


# --- directions that do not vary ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_first", [False, True])
@pytest.mark.parametrize(("rows", "asked"), [(6, 6), (6, 32)])
def test_components_beyond_the_rank_of_few_rows_change_nothing(rows: int, asked: int, scale_first: bool) -> None:
    # N rows, once centred, span N − 1 directions. A further component is rounding noise: standardised, it would be
    # blown up from 1e-16 to 1 in the fit, and any new row would be off by a factor of 1e16.
    x, y = random_data(rows, 20, seed=2)
    query, _ = random_data(11, 20, seed=3)
    most = fit_probe(x, y, components={"all": rows - 1}, alpha=1.0, scale_first=scale_first)
    more = fit_probe(x, y, components={"all": asked}, alpha=1.0, scale_first=scale_first)
    assert_close(more.raw(query), most.raw(query), 1e-8)


@pytest.mark.parametrize("rows", [10, 200])
def test_components_beyond_the_rank_of_a_block_change_nothing(rows: int) -> None:
    # Siblings share the prompt's states: 5 distinct prompts span 4 directions, however many rollouts there are.
    prompts, _ = random_data(5, 12, seed=1)
    own, y = random_data(rows, 3, seed=4)
    x = torch.cat([prompts.repeat(rows // 5, 1), own], dim=1)
    fresh, _ = random_data(7, 15, seed=5)
    columns = {"prompt": (0, 12), "entropy": (12, 15)}
    exact = fit_probe(x, y, columns=columns, components={"prompt": 4}, alpha=1.0)
    asked = fit_probe(x, y, columns=columns, components={"prompt": 8}, alpha=1.0)
    assert_close(asked.raw(fresh), exact.raw(fresh), 1e-8)


@pytest.mark.parametrize("scale_first", [False, True])
def test_a_block_that_never_varies_adds_nothing(scale_first: bool) -> None:
    # A template's last tokens at the embedding layer are the same in every prompt.
    own, y = random_data(30, 3, seed=4)
    constant = torch.linspace(0.1, 7.7, 12, dtype=torch.float64)
    x = torch.cat([constant.expand(30, 12), own], dim=1)
    columns = {"prompt": (0, 12), "entropy": (12, 15)}
    with_block = fit_probe(x, y, columns=columns, components={"prompt": 4}, alpha=1.0, scale_first=scale_first)
    without = fit_probe(own, y, alpha=1.0)
    fresh, _ = random_data(7, 3, seed=5)
    asked = torch.cat([(constant + 1e-3).expand(7, 12), fresh], dim=1)
    assert_close(with_block.raw(asked), without.raw(fresh), 1e-6)


# --- ridge ----------------------------------------------------------------------------------------------------------


def brute_ridge(z: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, float]:
    """Minimise ‖y − c − Zβ‖² + α‖β‖² over c and β at once, by the normal equations of [Z, 1]."""
    rows, columns = z.shape
    design = torch.cat([z, torch.ones((rows, 1), dtype=z.dtype)], dim=1)
    penalty = torch.diag(torch.tensor([alpha] * columns + [0.0], dtype=z.dtype))
    solution = torch.linalg.solve(design.T @ design + penalty, design.T @ y)
    return solution[:-1], float(solution[-1])


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("rows", "columns"), [(30, 5), (6, 6), (7, 20)])
def test_ridge_minimises_the_penalised_squares_with_a_free_intercept(rows: int, columns: int, alpha: float) -> None:
    x, y = random_data(rows, columns, seed=rows + columns)
    z = Scaler.fit(x)(x)
    ridge = fit_ridge(z, y, alpha)
    beta, intercept = brute_ridge(z, y, alpha)
    assert_close(ridge.beta_P, beta, 1e-9)
    assert ridge.intercept == pytest.approx(intercept, abs=1e-11)


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_primal_and_dual_agree(alpha: float) -> None:
    # Which one is solved depends on the shape; zero columns flip it without changing the problem, and so do zero rows'
    # worth of weight: 12 × 8 is primal, the same data with 10 columns of zeros is dual.
    x, y = random_data(12, 8, seed=3)
    z = Scaler.fit(x)(x)
    primal = fit_ridge(z, y, alpha)
    dual = fit_ridge(torch.cat([z, torch.zeros((12, 10), dtype=torch.float64)], dim=1), y, alpha)
    assert_close(dual.beta_P[:8], primal.beta_P, 1e-12)
    assert dual.beta_P[8:].tolist() == [0.0] * 10
    assert dual.intercept == primal.intercept


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("rows", "columns"), [(30, 5), (7, 20), (9, 9)])
def test_condition_is_that_of_the_penalised_gram_matrix(rows: int, columns: int, alpha: float) -> None:
    x, y = random_data(rows, columns, seed=7)
    z = Scaler.fit(x)(x)
    matrix = z.T @ z + alpha * torch.eye(columns, dtype=torch.float64)
    assert fit_ridge(z, y, alpha).condition == pytest.approx(float(torch.linalg.cond(matrix)), rel=1e-8)


# --- leave-one-out --------------------------------------------------------------------------------------------------


def left_out_errors(z: Tensor, y: Tensor, alpha: float) -> Tensor:
    """Refit N times without one row, intercept included, the scaling of all rows kept; error at the row left out."""
    rows, columns = z.shape
    design = torch.cat([z, torch.ones((rows, 1), dtype=z.dtype)], dim=1)
    kept = ~torch.eye(rows, dtype=torch.bool)
    designs = design.expand(rows, -1, -1)[kept].reshape(rows, rows - 1, columns + 1)
    targets = y.expand(rows, -1)[kept].reshape(rows, rows - 1, 1)
    penalty = torch.diag(torch.tensor([alpha] * columns + [0.0], dtype=z.dtype))
    fits = torch.linalg.solve(designs.mT @ designs + penalty, designs.mT @ targets).squeeze(2)
    return y - (design * fits).sum(1)


def closed_form_errors(z: Tensor, y: Tensor, alpha: float, intercept_leverage: bool = True) -> Tensor:
    """e_i = r_i/(1 − H_ii), H = 11ᵀ/N + Z(ZᵀZ + αI)⁻¹Zᵀ for centred Z; the first term is the fitted intercept's."""
    rows, columns = z.shape
    hat = z @ torch.linalg.solve(z.T @ z + alpha * torch.eye(columns, dtype=z.dtype), z.T)
    leverage = hat.diagonal() + (1 / rows if intercept_leverage else 0)
    residual = y - y.mean() - hat @ (y - y.mean())
    return residual / (1 - leverage)


SHAPES = [(20, 4), (12, 11), (6, 6), (7, 15), (5, 30)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_closed_form_is_exact_only_with_the_intercepts_share_of_the_leverage(rows: int, columns: int) -> None:
    x, y = random_data(rows, columns, seed=rows)
    z = Scaler.fit(x)(x)
    for alpha in (0.01, 1.0, 100.0):
        brute = left_out_errors(z, y, alpha)
        assert_close(closed_form_errors(z, y, alpha), brute, 1e-8)
        assert float((closed_form_errors(z, y, alpha, intercept_leverage=False) - brute).abs().max()) > 1e-3


FINE_GRID = tuple(10 ** (k / 8) for k in range(-16, 33, 2))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("seed", range(6))
def test_auto_chooses_the_alpha_of_brute_force_leave_one_out(rows: int, columns: int, seed: int) -> None:
    x, y = random_data(rows, columns, seed=seed)
    z = Scaler.fit(x)(x)
    errors = [float((left_out_errors(z, y, a) ** 2).mean()) for a in FINE_GRID]
    best = FINE_GRID[errors.index(min(errors))]
    found = fit_ridge(z, y, "auto", FINE_GRID)
    assert found.alpha == best
    assert_close(found.beta_P, fit_ridge(z, y, best).beta_P, 1e-12)


def test_the_fine_grid_tells_the_exact_error_from_the_one_without_the_intercepts_leverage() -> None:
    # Guards the test above: if both gave the same choice everywhere, it could not fail.
    differs = 0
    for rows, columns in SHAPES:
        for seed in range(6):
            x, y = random_data(rows, columns, seed=seed)
            z = Scaler.fit(x)(x)
            choices = [
                min(FINE_GRID, key=lambda a, z=z, y=y, k=keep: float((closed_form_errors(z, y, a, k) ** 2).mean()))
                for keep in (True, False)
            ]
            differs += choices[0] != choices[1]
    assert differs > 5


@pytest.mark.parametrize("scale_first", [False, True])
def test_auto_through_the_whole_probe_is_brute_force_on_the_transformed_features(scale_first: bool) -> None:
    x, y = random_data(25, 23, seed=12)
    keep = {"prompt": 3, "response": 4}
    probe = fit_probe(x, y, columns=BLOCKS, components=keep, alpha="auto", scale_first=scale_first)
    scaled = Scaler.fit(x)(x) if scale_first else x
    parts = [
        Pca.fit(scaled[:, a:b], keep[k])(scaled[:, a:b]) if k in keep else scaled[:, a:b]
        for k, (a, b) in BLOCKS.items()
    ]
    z = torch.cat(parts, dim=1)
    z = z if scale_first else Scaler.fit(z)(z)
    errors = [float((left_out_errors(z, y, a) ** 2).mean()) for a in ALPHA_GRID]
    assert probe.ridge.alpha == ALPHA_GRID[errors.index(min(errors))]
    fixed = fit_probe(x, y, columns=BLOCKS, components=keep, alpha=probe.ridge.alpha, scale_first=scale_first)
    assert_close(probe.raw(x), fixed.raw(x), 1e-12)


def test_auto_takes_a_weak_penalty_for_a_clean_signal_and_a_strong_one_for_noise() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((200, 10), generator=draw, dtype=torch.float64)
    noise = torch.rand(200, generator=draw, dtype=torch.float64)
    assert fit_probe(x, x[:, 0], alpha="auto").ridge.alpha == min(ALPHA_GRID)
    assert fit_probe(x, noise, alpha="auto").ridge.alpha >= 100


# --- small and odd inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, "auto"])
@pytest.mark.parametrize("scale_first", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("components", [None, {"all": 4}])
def test_few_rows_and_many_features_give_finite_predictions(
    rows: int, components: dict[str, int] | None, scale_first: bool, alpha: Any
) -> None:
    x, y = random_data(rows, 50, seed=rows)
    query, _ = random_data(20, 50, seed=77)
    probe = fit_probe(x, y, components=components, scale_first=scale_first, alpha=alpha)
    assert probe.raw(query).isfinite().all()
    assert math.isfinite(probe.ridge.condition)
    assert probe.ridge.alpha in (0.01, *ALPHA_GRID)


@pytest.mark.parametrize("alpha", [0.01, "auto"])
@pytest.mark.parametrize("components", [None, {"all": 3}])
def test_one_row_predicts_its_own_target_everywhere(alpha: Any, components: dict[str, int] | None) -> None:
    probe = fit_probe(f64([[1, 2, 3, 4, 5]]), f64([0.75]), alpha=alpha, components=components)
    assert_close(probe.raw(f64([[1, 2, 3, 4, 5], [-9, 8, 7, 0, 100]])), [0.75, 0.75], 1e-15)


@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("rows", [4, 60])
@pytest.mark.parametrize("alpha", [0.01, "auto"])
def test_equal_targets_are_predicted_everywhere(target: float, rows: int, alpha: Any) -> None:
    x, _ = random_data(rows, 10, seed=rows)
    query, _ = random_data(9, 10, seed=50)
    probe = fit_probe(x, torch.full((rows,), target, dtype=torch.float64), alpha=alpha)
    assert_close(probe.raw(query), [target] * 9, 1e-12)


def test_identical_rows_with_different_targets_predict_the_mean() -> None:
    x = f64([[0.1, 7.0, -3.3]]).expand(4, 3)
    probe = fit_probe(x, f64([1, 0, 0, 1]), alpha="auto")
    assert_close(probe.raw(f64([[0.1, 7.0, -3.3], [0.2, 6.0, -3.0]])), [0.5, 0.5], 1e-12)


def test_float32_features_are_fitted_and_predicted_in_float64() -> None:
    x, y = random_data(40, 6, seed=1)
    narrow = x.float()
    probe = fit_probe(narrow, y.float(), alpha=0.01)
    assert probe(narrow).dtype == torch.float64
    assert probe.ridge.beta_P.dtype == torch.float64
    assert_close(probe.raw(narrow), fit_probe(narrow.double(), y, alpha=0.01).raw(narrow.double()), 0)


def test_predictions_are_clipped_to_the_reward_range() -> None:
    x, y = f64([[0.0], [1.0], [2.0], [3.0]]), f64([-2, -1, 1, 2])
    probe = fit_probe(x, y, alpha=1e-6, low=-1.5, high=1.0)
    assert float(probe.raw(f64([[100.0]]))) > 10
    assert probe(f64([[100.0], [-100.0]])).tolist() == [1.0, -1.5]
    inside = f64([[1.2], [1.8]])
    assert torch.equal(probe(inside), probe.raw(inside))


def test_the_default_range_is_zero_to_one() -> None:
    probe = fit_probe(f64([[0.0], [1.0], [2.0]]), f64([-1, 0.5, 2]), alpha=1e-6)
    assert probe(f64([[-5.0], [5.0]])).tolist() == [0.0, 1.0]


def test_a_prediction_does_not_depend_on_the_other_rows_it_is_asked_with() -> None:
    x, y = random_data(30, 23, seed=2)
    probe = fit_probe(x, y, columns=BLOCKS, components={"prompt": 3}, alpha=1.0)
    query, _ = random_data(8, 23, seed=3)
    alone = torch.cat([probe(query[i : i + 1]) for i in range(8)])
    assert_close(probe(query), alone, 1e-14)


def test_the_order_of_rows_does_not_matter() -> None:
    x, y = random_data(30, 23, seed=2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    keep = {"prompt": 3, "response": 4}
    first = fit_probe(x, y, columns=BLOCKS, components=keep, alpha="auto")
    second = fit_probe(x[order], y[order], columns=BLOCKS, components=keep, alpha="auto")
    assert first.ridge.alpha == second.ridge.alpha
    assert_close(first.raw(x), second.raw(x), 1e-9)


# --- immutability ---------------------------------------------------------------------------------------------------


def test_a_probe_can_not_be_changed() -> None:
    x, y = random_data(20, 23, seed=2)
    probe = fit_probe(x, y, columns=BLOCKS, components={"prompt": 3}, alpha=1.0, step=7)
    assert probe.step == 7
    for part, name in (
        (probe, "step"),
        (probe.ridge, "intercept"),
        (probe.scaler, "mean_P"),
        (probe.blocks["prompt"], "mean_P"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, None)


def test_a_probe_keeps_its_predictions_when_its_training_data_are_overwritten_and_another_is_fitted() -> None:
    x, y = random_data(20, 23, seed=2)
    query, _ = random_data(5, 23, seed=3)
    columns, keep = dict(BLOCKS), {"prompt": 3}
    probes = [
        fit_probe(x, y, columns=columns, components=keep, alpha=1.0, scale_first=scale_first)
        for scale_first in (False, True)
    ]
    before = [probe(query).clone() for probe in probes]
    x.zero_()
    y.fill_(1)
    fit_probe(x, y, columns=columns, components=keep, alpha=1.0)
    columns.clear()
    keep.clear()
    for probe, wanted in zip(probes, before):
        assert torch.equal(probe(query), wanted)


def test_fitting_and_predicting_leave_their_inputs_alone() -> None:
    x, y = random_data(20, 23, seed=2)
    x_before, y_before = x.clone(), y.clone()
    probe = fit_probe(x, y, columns=BLOCKS, components={"prompt": 3}, alpha="auto", scale_first=True)
    probe(x)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)
