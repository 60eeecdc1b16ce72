"""log p(x | c) by integrating the flow from the picture to noise (Song et al. 2021; Lipman et al. 2023).

dx/dt = v(x, t),   d log p_t(x(t))/dt = −div v   ⇒   log p_0(x) = log N(x(1); 0, I) + ∫₀¹ div v(x(t), t) dt
"""

import math
from collections.abc import Callable

import torch

from latentia.core.arguments import check_count, check_number
from latentia.core.rng import Generators, randn

Flow = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x_t (B, ...), t (B,)) → v of x_t's shape."""


def log_likelihood(
    flow: Flow,
    x: torch.Tensor,
    steps: int = 50,
    probes: int | None = 1,
    generator: Generators = None,
    start: float = 1e-3,
    rho: float = 2.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log density of `x` (B, ...) under the flow, in nats, and the noise x(1) that it came from.

    The midpoint rule on t_i = start + (1 − start)·(i/steps)^rho, two evaluations of the flow a step; its error falls
    with 1/steps².

    Args:
        flow: v = z − x at (x_t, t); of a codec `lambda x, t: model.velocity(x, t, code)`.
        x: the pictures, taken to be at time `start`: x₀-prediction cannot say v at 0, and pixels of 8 bits have no
            density there either.
        steps: of the integration.
        probes: random ±1 vectors with which the divergence is estimated (Hutchinson); unbiased, the same ones at all
            times. None: exact, one backward pass for each element of a picture.
        generator: of the probes; one for each picture makes the estimate independent of its batch.

    Raises `InputError` for numbers out of range.
    """
    check_count("steps", steps)
    check_number("start", start, 0, 1)
    check_number("rho", rho, low=0, open_low=True)
    vectors = _probes(x, probes, generator)
    times = start + (1 - start) * (torch.arange(steps + 1, dtype=torch.float64) / steps) ** rho
    change = torch.zeros(len(x), dtype=torch.float64)
    for t, after in zip(times.tolist(), times[1:].tolist()):
        width = after - t
        with torch.no_grad():
            middle = x + width / 2 * flow(x, x.new_full((len(x),), t))
        v, divergence = _with_divergence(flow, middle, x.new_full((len(x),), t + width / 2), vectors)
        x = x + width * v
        change += width * divergence.double().cpu()
    size = x[0].numel()
    prior = -0.5 * (x.double().flatten(1).square().sum(1).cpu() + size * math.log(2 * math.pi))
    return prior + change, x


def bits_per_dimension(log_density: torch.Tensor, size: int, levels: float = 127.5) -> torch.Tensor:
    """Nats of pictures in [-1, 1] with `size` elements → bits for each 8-bit value: −log₂ p / size + log₂ levels."""
    return -log_density / (size * math.log(2)) + math.log2(levels)


def _probes(x: torch.Tensor, probes: int | None, generator: Generators) -> list[torch.Tensor] | None:
    if probes is None:
        return None
    check_count("probes", probes)
    drawn = randn((len(x), probes, *x.shape[1:]), generator, x.device, x.dtype)
    return list(torch.where(drawn > 0, 1.0, -1.0).to(x.dtype).unbind(1))


def _with_divergence(
    flow: Flow, x: torch.Tensor, t: torch.Tensor, probes: list[torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """v and its divergence (B,), by products of vectors with the Jacobian."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = flow(x, t)
        directions = _basis(x) if probes is None else probes
        total = sum((torch.autograd.grad(v, x, e, retain_graph=True)[0] * e).flatten(1).sum(1) for e in directions)
    assert isinstance(total, torch.Tensor)
    return v.detach(), total if probes is None else total / len(directions)


def _basis(x: torch.Tensor) -> list[torch.Tensor]:
    rows = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return [row.view(1, *x.shape[1:]).expand_as(x) for row in rows]
