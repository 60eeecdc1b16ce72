"""The mathematics of DPM-Solver(++) in its multistep forms, as weights of a linear combination.

Let λ = log(α/σ) grow from s to t, h = λ_t − λ_s. The solution of the diffusion ODE or SDE is an integral over λ
of the network's prediction m (x̂₀ for the `++` forms, ε̂ for the others); the multistep solver replaces m(λ) by
its Taylor polynomial from the last predictions m₀ (newest), m₁, m₂:

    x_t = c_x x_s + w₀ m₀ + w₁ m₁ + w₂ m₂ + c_z z

Lu et al., 2022 (arXiv 2206.00927, 2211.01095); the SDE forms are the same integrals with noise.
"""

from typing import NamedTuple

import numpy as np

from latentia.schedulers.spacing import Array

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
SOLVERS = ("midpoint", "heun")
THIRD_ORDERS = ("published", "corrected")


class Path(NamedTuple):
    """α, σ and λ = log(α/σ) at the n + 1 points of a run: where each step starts, and where the last one ends."""

    alpha: Array
    sigma: Array
    log_snr: Array


def make_path(sigmas: Array, flow: bool) -> Path:
    """The path of noise levels κ = σ/α, or, with `flow`, of σ on the straight line α = 1 − σ."""
    alpha = 1 - sigmas if flow else 1 / np.sqrt(sigmas**2 + 1)
    sigma = sigmas if flow else sigmas * alpha
    with np.errstate(divide="ignore"):
        return Path(alpha, sigma, np.log(alpha) - np.log(sigma))


def multistep_weights(
    algorithm: str, solver: str, order: int, path: Path, third_order: str = "published", compat: bool = False
) -> list[Array]:
    """c_x, w₀, w₁, w₂ and c_z over all steps, taken at `order` (the first `order − 1` entries are not usable).

    `third_order` picks the coefficient of the second derivative in order 3: `published`, as in the paper and every
    library, which leaves the method second-order; `corrected`, twice that, which makes it third-order.
    `compat` takes Diffusers 0.42.1's constant in the third-order `sde-dpmsolver++`, which is off by one.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        h = np.diff(path.log_snr)
        c_x, c_z, d0, d1, d2 = _taylor_weights(algorithm, solver, order, path, h, compat)
        zero = np.zeros_like(h)
        if order == 1:
            columns = [c_x, d0, zero, zero, c_z]
        elif order == 2:
            r0 = earlier(h, 1) / h
            columns = [c_x, d0 + d1 / r0, -d1 / r0, zero, c_z]
        else:
            d2 = d2 * 2 if third_order == "corrected" else d2
            r0, r1 = earlier(h, 1) / h, earlier(h, 2) / h
            newer = d1 * (1 + r0 / (r0 + r1)) + d2 / (r0 + r1)  # weight of (m₀ − m₁)/r₀
            older = d1 * r0 / (r0 + r1) + d2 / (r0 + r1)  # weight of −(m₁ − m₂)/r₁
            columns = [c_x, d0 + newer / r0, -newer / r0 - older / r1, older / r1, c_z]
    still = h == 0  # Karras levels that end at sigma_min: the last step goes nowhere
    return [np.where(still, 0.0 if k else 1.0, column) for k, column in enumerate(columns)]


def earlier(values: Array, steps: int) -> Array:
    """The entry `steps` before each; NaN where there is none."""
    return np.concatenate([np.full(min(steps, len(values)), np.nan), values[: max(len(values) - steps, 0)]])


def _taylor_weights(
    algorithm: str, solver: str, order: int, path: Path, h: Array, compat: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """(c_x, c_z, d₀, d₁, d₂): weights of the sample, the noise and m's derivatives, D_k = h^k m^(k) up to k!."""
    alpha, sigma = path.alpha[1:], path.sigma[1:]
    midpoint = solver == "midpoint" and order == 2
    zero = np.zeros_like(h)
    if algorithm == "dpmsolver++":
        e = np.expm1(-h)
        d1 = -0.5 * alpha * e if midpoint else alpha * (e / h + 1)
        return sigma / path.sigma[:-1], zero, -alpha * e, d1, -alpha * ((e + h) / h**2 - 0.5)
    if algorithm == "sde-dpmsolver++":
        e = -np.expm1(-2 * h)
        d1 = 0.5 * alpha * e if midpoint else alpha * (1 - e / (2 * h))
        d2 = alpha * ((e - 2 * h) / (2 * h) ** 2 + (-0.5 if compat else 0.5))
        return sigma / path.sigma[:-1] * np.exp(-h), sigma * np.sqrt(e), alpha * e, d1, d2
    e = np.expm1(h)
    d1 = -0.5 * sigma * e if midpoint else -sigma * (e / h - 1)
    d2 = -sigma * ((e - h) / h**2 - 0.5)
    c_x = path.alpha[1:] / path.alpha[:-1]
    if algorithm == "dpmsolver":
        return c_x, zero, -sigma * e, d1, d2
    return c_x, sigma * np.sqrt(np.expm1(2 * h)), -2 * sigma * e, 2 * d1, 2 * d2
