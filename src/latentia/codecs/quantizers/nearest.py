"""Nearest code of a vector, exactly: fast products find the candidates, differences in double precision decide.

‖z − e‖² = ‖z‖² + 2·(½‖e‖² − z·e): the bracket is one matrix product, and leaving ‖z‖² out keeps it precise where all
codes are small, as they are at the start. What rounding may still have swapped is compared once more, so that
a vector's code depends neither on the batch it stands in, nor on the machine's matrix product.
"""

import torch

SCORES_AT_ONCE = {"cpu": 2**17, "cuda": 2**26}
"""Scores (vectors × codes) held at once; on the CPU they stay in its cache."""
ELEMENTS_AT_ONCE = 2**22
"""Elements of the differences held at once while candidates are compared."""


@torch.no_grad()
def nearest_codes(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """argmin_k ‖z − e_k‖² of every row, the first k of equally near ones.

    Computed in float32 at least, outside autocast, in memory that grows neither with the number of vectors nor with
    that of codes alone.

    Args:
        z: (N, d).
        codes: (K, d), K ≥ 1.

    Returns:
        (N,) int64 in 0 … K − 1, for rows that are not finite too.
    """
    dtype = torch.promote_types(torch.promote_types(z.dtype, codes.dtype), torch.float32)
    z, codes = z.to(dtype), codes.to(dtype)
    device = "cpu" if z.is_meta else z.device.type  # meta tensors have no autocast to leave
    with torch.autocast(device, enabled=False):
        half_norms = codes.square().sum(1) * 0.5  # (K,)
        at_once = SCORES_AT_ONCE.get(device, 2**24)
        rows = z.split(max(1, at_once // len(codes)))
        return torch.cat([_nearest(row, codes, half_norms) for row in rows])


def _nearest(z: torch.Tensor, codes: torch.Tensor, half_norms: torch.Tensor) -> torch.Tensor:
    scores = torch.addmm(half_norms, z, codes.t(), alpha=-1)  # (n, K)
    best, index = scores.min(1)
    if z.is_meta:
        return index  # shapes and operations are counted, there is nothing to decide
    reach = best + _slack(z, half_norms)
    runner_up = scores.scatter_(1, index[:, None], float("inf")).amin(1)
    (doubtful,) = (runner_up <= reach).nonzero(as_tuple=True)
    if len(doubtful):
        near = (scores[doubtful] <= reach[doubtful, None]).scatter_(1, index[doubtful, None], True)
        index[doubtful] = _decide(z[doubtful], codes, near)
    return index


def _slack(z: torch.Tensor, half_norms: torch.Tensor) -> torch.Tensor:
    """(n,): twice the largest error of a score, from d + 1 rounded terms and from inputs rounded by the product."""
    error = (z.shape[1] + 2) * torch.finfo(z.dtype).eps
    if z.dtype == torch.float32:
        error += _input_rounding()
    largest = half_norms.amax()
    return 2 * error * (z.square().sum(1).sqrt() * (2 * largest).sqrt() + largest)


def _input_rounding() -> float:
    """Relative error that matrix products of float32 are allowed to make by rounding their inputs."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for single backends: unknown here, so the worst
        precision = "medium"
    return {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[precision]


def _decide(z: torch.Tensor, codes: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """The first nearest among the candidates `near` (n, K) of each row of z, by differences."""
    wide = torch.float32 if z.device.type == "mps" else torch.float64  # MPS knows no float64
    row, code = near.nonzero(as_tuple=True)
    pieces = zip(*(part.split(max(1, ELEMENTS_AT_ONCE // z.shape[1])) for part in (row, code)))
    distance = torch.cat([(z[r].to(wide) - codes[k].to(wide)).square_().sum(1) for r, k in pieces])
    smallest = distance.new_full((len(z),), float("inf")).scatter_reduce_(0, row, distance, "amin")
    among = distance <= smallest[row]
    return code.new_full((len(z),), len(codes)).scatter_reduce_(0, row[among], code[among], "amin")
