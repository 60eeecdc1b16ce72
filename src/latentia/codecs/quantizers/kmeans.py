"""k-means over vectors that several processes may hold: where a codebook starts."""

import torch

from latentia.codecs.quantizers.nearest import nearest_codes
from latentia.codecs.quantizers.processes import same_for_all, sum_over_processes


def draw(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the rows (N, d), all different ones as long as there are enough; the first process draws for all."""
    n = len(vectors)
    if count <= n:
        rows = torch.randperm(n, device=vectors.device)[:count]
    else:
        rows = torch.cat(
            [torch.randperm(n, device=vectors.device), torch.randint(n, (count - n,), device=vectors.device)]
        )
    return same_for_all(vectors[rows])


def assigned(vectors: torch.Tensor, indices: torch.Tensor, num_codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of the vectors (N, d) have each code (K,), and their sums (K, d); over all processes, in float32."""
    counts = torch.bincount(indices, minlength=num_codes).to(vectors.dtype)
    sums = vectors.new_zeros(num_codes, vectors.shape[1]).index_add_(0, indices, vectors)
    sum_over_processes(counts, sums)
    return counts, sums


@torch.no_grad()
def kmeans(vectors: torch.Tensor, num_codes: int, iterations: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's algorithm from random vectors; a cluster that loses all its vectors restarts at a random one.

    Args:
        vectors: (N, d) floats, N ≥ 1; each process its own.
        num_codes: K.
        iterations: assignments and means.

    Returns:
        means (K, d) and the number of vectors in each (K,), the same in every process.
    """
    means = draw(vectors, num_codes)
    counts = vectors.new_ones(num_codes)
    for _ in range(iterations):
        counts, sums = assigned(vectors, nearest_codes(vectors, means), num_codes)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], draw(vectors, num_codes))
    return means, counts
