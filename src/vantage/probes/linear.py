"""A linear probe: standardised features, optional PCA, ridge regression with an intercept, solved in float64.

Source of the set-up: POISE, arXiv 2605.07579 Table 4 and §E.1. With Z the scaled features and y the targets,
β = (ZᵀZ + αI)⁻¹ Zᵀ(y − ȳ) and g(φ) = clip(ȳ + zᵀβ); α multiplies ‖β‖² against an unnormalised sum of squares, as in
scikit-learn. `alpha="auto"` chooses by the exact leave-one-out residuals e_i = r_i / (1 − H_ii), for which one
eigendecomposition of the smaller of ZᵀZ [P, P] and ZZᵀ [N, N] serves every α. N rows, P features, K components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vantage.probes.moments import Moments

ALPHA_GRID = tuple(10.0**k for k in range(-2, 7))
"""What `alpha="auto"` tries; without PCA the best is often 100 or more."""
SQUARED_FROM = 1e-6
"""Components whose variance is at least this share of the largest one's are exact to about 1e-10 from products of rows."""


@dataclass(frozen=True)
class Pca:
    """Principal components of a block of columns: `components_KP` has orthonormal rows."""

    mean_P: Tensor
    components_KP: Tensor

    @staticmethod
    def fit(x_NP: Tensor, components: int) -> Pca:
        """Exact PCA; keeps at most `components` directions, and none without variance (scaled to 1, it would be noise).

        The sign of a component is arbitrary.
        """
        mean_P, size = x_NP.mean(0), torch.linalg.norm(x_NP)
        x_NP = x_NP - mean_P
        rows, columns = x_NP.shape
        vectors_PK = _leading(x_NP, components)
        spread_K = torch.linalg.norm(x_NP @ vectors_PK, dim=0)
        varies_K = spread_K > max(rows, columns) * torch.finfo(x_NP.dtype).eps * size
        return Pca(mean_P, vectors_PK[:, varies_K].T.contiguous())

    def __call__(self, x_NP: Tensor) -> Tensor:
        """Coordinates [N, K]."""
        return (x_NP - self.mean_P) @ self.components_KP.T


def _leading(x_NP: Tensor, count: int) -> Tensor:
    """The first right singular vectors of centred rows, as columns [P, K]; by the smaller Gram matrix where that will do.

    With more columns than rows a vector is Xᵀu/σ, which loses digits where σ is small: then by a decomposition of X itself,
    which takes many times as long.
    """
    rows, columns = x_NP.shape
    if columns <= rows:
        vectors_PP: Tensor = torch.linalg.eigh(x_NP.T @ x_NP).eigenvectors
        return vectors_PP.flip(1)[:, :count]
    values_N, vectors_NN = torch.linalg.eigh(x_NP @ x_NP.T)
    kept_K = values_N.flip(0)[:count]
    if float(kept_K[-1]) > SQUARED_FROM * float(kept_K[0]):
        found_PK: Tensor = x_NP.T @ vectors_NN.flip(1)[:, :count]
        length_K: Tensor = torch.linalg.norm(found_PK, dim=0)
        return found_PK / length_K
    right_NP: Tensor = torch.linalg.svd(x_NP, full_matrices=False).Vh
    return right_NP[:count].T


@dataclass(frozen=True)
class Scaler:
    """Mean 0 and variance 1 (population) for each column; a constant column is only centred."""

    mean_P: Tensor
    scale_P: Tensor

    @staticmethod
    def fit(x_NP: Tensor) -> Scaler:
        """Statistics of the columns, as scikit-learn's StandardScaler takes them."""
        mean_P = x_NP.mean(0)
        variance_P = x_NP.var(0, correction=0) if len(x_NP) > 1 else torch.zeros_like(mean_P)
        return Scaler.of(mean_P, variance_P, len(x_NP))

    @staticmethod
    def of(mean_P: Tensor, variance_P: Tensor, count: int) -> Scaler:
        """From the mean and population variance of `count` rows."""
        # Rounding leaves a constant column with a variance of about (eps · mean)² instead of 0.
        eps = torch.finfo(mean_P.dtype).eps
        tiny_P = count * eps * variance_P + (count * mean_P * eps) ** 2
        scale_P = torch.where(variance_P <= tiny_P, torch.ones_like(variance_P), variance_P.sqrt())
        return Scaler(mean_P, scale_P)

    def __call__(self, x_NP: Tensor) -> Tensor:
        """Scaled columns [N, P]."""
        return (x_NP - self.mean_P) / self.scale_P


@dataclass(frozen=True)
class Ridge:
    """Coefficients on scaled features, the intercept (mean target), and what the fit says about itself."""

    beta_P: Tensor
    intercept: float
    alpha: float
    condition: float
    """Condition number of ZᵀZ + αI; NaN where it was not asked for."""


def fit_ridge(
    z_NP: Tensor,
    y_N: Tensor,
    alpha: float | Literal["auto"],
    grid: Sequence[float] = ALPHA_GRID,
    condition: bool = True,
) -> Ridge:
    """Ridge regression on centred columns, by whichever of primal and dual has the smaller matrix.

    `alpha="auto"` takes the value of `grid` with the smallest leave-one-out squared error. The solution is always by
    Cholesky, so that it is a function of the rows and α alone, however α was found. `condition=False` spares the
    eigenvalues where α is given.
    """
    rows, columns = z_NP.shape
    intercept = float(y_N.mean())
    if columns == 0:
        return Ridge(z_NP.new_zeros(0), intercept, grid[-1] if alpha == "auto" else alpha, 1.0)
    centred_N = y_N - intercept
    primal = columns <= rows
    matrix = z_NP.T @ z_NP if primal else z_NP @ z_NP.T
    eigenvalues: Tensor | None = None
    if alpha == "auto":
        alpha, eigenvalues = choose_alpha(z_NP, centred_N, matrix, grid)
    elif condition:
        eigenvalues = torch.linalg.eigvalsh(matrix).clamp(min=0)
    solution = solve(matrix, z_NP.T @ centred_N if primal else centred_N, alpha)
    number = condition_number(eigenvalues, alpha, primal)
    return Ridge(solution if primal else z_NP.T @ solution, intercept, alpha, number)


def solve(matrix: Tensor, right: Tensor, alpha: float) -> Tensor:
    """(matrix + αI)⁻¹ right by Cholesky."""
    factor = torch.linalg.cholesky(matrix + alpha * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
    return torch.cholesky_solve(right[:, None], factor).squeeze(1)


def condition_number(eigenvalues: Tensor | None, alpha: float, primal: bool = True) -> float:
    """Of ZᵀZ + αI, from the ascending eigenvalues of ZᵀZ, or of ZZᵀ, which leaves zeros out; NaN without any."""
    if eigenvalues is None:
        return math.nan
    return (float(eigenvalues[-1]) + alpha) / ((float(eigenvalues[0]) if primal else 0.0) + alpha)


def choose_alpha(z_NP: Tensor, y_N: Tensor, matrix: Tensor, grid: Sequence[float]) -> tuple[float, Tensor]:
    """The α of `grid` with the smallest mean squared leave-one-out residual, and the eigenvalues of `matrix`, ascending.

    `matrix` is ZᵀZ (primal) or ZZᵀ (dual), `y_N` centred. All α share one eigendecomposition; the leverage of a row is
    that of the ridge plus 1/N for the intercept.
    """
    primal = len(matrix) == z_NP.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    eigenvalues = eigenvalues.clamp(min=0)
    alphas_A = torch.tensor(grid, dtype=matrix.dtype, device=matrix.device)
    if primal:
        # Row n of Z·V over the singular values would be a row of U; dividing late keeps a zero eigenvalue finite.
        rows_NE, coordinates_E = z_NP @ vectors, vectors.T @ (z_NP.T @ y_N)
        shrink_EA = 1 / (eigenvalues[:, None] + alphas_A)
    else:
        rows_NE, coordinates_E = vectors, vectors.T @ y_N
        shrink_EA = eigenvalues[:, None] / (eigenvalues[:, None] + alphas_A)
    fitted_NA = rows_NE @ (shrink_EA * coordinates_E[:, None])
    rest_NA = (1 - rows_NE**2 @ shrink_EA - 1 / len(y_N)).clamp(min=1e-12)
    errors_A = (((y_N[:, None] - fitted_NA) / rest_NA) ** 2).mean(0)
    return grid[int(errors_A.argmin())], eigenvalues


@dataclass(frozen=True)
class Probe:
    """A fitted probe. Immutable: a refit makes a new one, so that a step's baselines can not see its own rewards."""

    step: int
    """Newest step among the rows it was fitted on."""
    ridge: Ridge
    blocks: Mapping[str, Pca]
    scaler: Scaler
    inner: Scaler | None
    """Scaler before PCA, only with `scale_first`."""
    columns: Mapping[str, tuple[int, int]]
    low: float
    high: float

    def to(self, device: torch.device) -> Probe:
        """The same probe with its tensors on a device."""

        def scaler(found: Scaler | None) -> Scaler | None:
            return None if found is None else Scaler(found.mean_P.to(device), found.scale_P.to(device))

        outer = scaler(self.scaler)
        assert outer is not None
        return replace(
            self,
            ridge=replace(self.ridge, beta_P=self.ridge.beta_P.to(device)),
            blocks={k: Pca(b.mean_P.to(device), b.components_KP.to(device)) for k, b in self.blocks.items()},
            scaler=outer,
            inner=scaler(self.inner),
        )

    def raw(self, x_NP: Tensor) -> Tensor:
        """Predictions before the clip [N], float64."""
        z_NK = self._transform(x_NP.double())
        return self.ridge.intercept + z_NK @ self.ridge.beta_P

    def __call__(self, x_NP: Tensor) -> Tensor:
        """Predicted expected reward [N], clipped to the reward range, float64."""
        return self.raw(x_NP).clamp(self.low, self.high)

    def _transform(self, x_NP: Tensor) -> Tensor:
        if self.inner is not None:
            x_NP = self.inner(x_NP)
        x_NP = _project(x_NP, self.blocks, self.columns)
        return self.scaler(x_NP) if self.inner is None else x_NP


def _project(x_NP: Tensor, blocks: Mapping[str, Pca], columns: Mapping[str, tuple[int, int]]) -> Tensor:
    parts = [blocks[k](x_NP[:, a:b]) if k in blocks else x_NP[:, a:b] for k, (a, b) in columns.items()]
    return torch.cat(parts, dim=1)


def fit_probe(
    x_NP: Tensor,
    y_N: Tensor,
    *,
    columns: Mapping[str, tuple[int, int]] | None = None,
    components: Mapping[str, int] | None = None,
    alpha: float | Literal["auto"] = "auto",
    scale_first: bool = False,
    low: float = 0.0,
    high: float = 1.0,
    step: int = 0,
    condition: bool = True,
) -> Probe:
    """Fit scaler, PCA and ridge on features `x_NP` and targets `y_N`, in float64 whatever the input.

    `columns` names blocks of columns (start, end); `components` says how many principal components a block keeps
    (a block without an entry, or with 0, stays as it is). The official order is PCA, then scaler, then ridge
    (so every kept component counts alike); `scale_first` is scaler, then PCA, then ridge on unscaled components.
    """
    x_NP, y_N = x_NP.double(), y_N.double()
    columns = columns or {"all": (0, x_NP.shape[1])}
    inner = Scaler.fit(x_NP) if scale_first else None
    x_NP = inner(x_NP) if inner else x_NP
    wanted = {name: k for name, k in (components or {}).items() if k > 0}
    blocks = {name: Pca.fit(x_NP[:, slice(*columns[name])], k) for name, k in wanted.items()}
    z_NK = _project(x_NP, blocks, columns)
    scaler = Scaler.fit(z_NK)
    ridge = fit_ridge(z_NK if scale_first else scaler(z_NK), y_N, alpha, condition=condition)
    return Probe(step, ridge, blocks, scaler, inner, dict(columns), low, high)


def fit_probe_to_moments(
    moments: Moments,
    rows: Callable[[], tuple[Tensor, Tensor]],
    *,
    columns: Mapping[str, tuple[int, int]],
    alpha: float | Literal["auto"] = "auto",
    low: float = 0.0,
    high: float = 1.0,
    step: int = 0,
    condition: bool = True,
) -> Probe:
    """What `fit_probe` without PCA gives, from the moments of the rows, for at least as many rows as features.

    `rows` makes features [N, P] and targets [N], which only `alpha="auto"` asks for (its leave-one-out errors).
    """
    variance_P = moments.scatter_PP.diagonal() / moments.count
    scaler = Scaler.of(moments.mean_P, variance_P, moments.count)
    matrix = moments.scatter_PP / (scaler.scale_P[:, None] * scaler.scale_P)
    right_P = moments.cross_P / scaler.scale_P
    eigenvalues: Tensor | None = None
    if alpha == "auto":
        x_NP, y_N = rows()
        alpha, eigenvalues = choose_alpha(scaler(x_NP.double()), y_N.double() - moments.target, matrix, ALPHA_GRID)
    elif condition:
        eigenvalues = torch.linalg.eigvalsh(matrix).clamp(min=0)
    ridge = Ridge(solve(matrix, right_P, alpha), moments.target, alpha, condition_number(eigenvalues, alpha))
    return Probe(step, ridge, {}, scaler, None, dict(columns), low, high)
