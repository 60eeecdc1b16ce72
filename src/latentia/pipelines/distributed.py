"""One set of pictures made by many processes: seeds are shared out, pictures come back in order."""

from typing import Any

import torch
import torch.distributed as dist

from latentia.core.arguments import check_count
from latentia.errors import InputError
from latentia.pipelines.image_pipeline import ImagePipeline
from latentia.pipelines.sampling import SamplingPipeline

PICTURES = ("image", "mask_image")
"""Options of which a list has one entry per picture; a tensor may be a single one."""
PER_PICTURE = (
    *("class_labels", "latents", "prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds"),
    *PICTURES,
)
"""Options with one entry per picture."""


def shard_indices(n: int, rank: int, world: int) -> range:
    """Sample indices of process `rank` of `world`: consecutive, sizes differing by at most one."""
    check_count("n", n, least=0)
    check_count("world", world)
    if not 0 <= rank < world:
        raise InputError(f"rank must be between 0 and {world - 1}, got {rank}")
    return range(rank * n // world, (rank + 1) * n // world)


def rank_and_world() -> tuple[int, int]:
    """This process's place in the process group; (0, 1) when there is none."""
    return (dist.get_rank(), dist.get_world_size()) if _running() else (0, 1)


def sample_sharded(
    pipe: SamplingPipeline, n: int, *, seed: int, output_type: str = "pt", **options: Any
) -> torch.Tensor:
    """`n` pictures of `seed` as one tensor, the same on one process and on any number.

    Every process of the group must call it; each samples its share and receives all. `class_labels`, `latents`,
    `prompt`, `prompt_embeds` and their negatives, and lists of `image` and `mask_image`, may be given for all `n`, or
    one for all; `output_type` is `pt` or `latent`; `options` are passed on to the pipeline.
    """
    if output_type not in ("pt", "latent"):
        raise InputError(f"output_type must be 'pt' or 'latent' to be gathered, got {output_type!r}")
    n = check_count("n", n)
    rank, world = rank_and_world()
    # A process without a share draws picture 0 and drops it: all must know the shape and meet at the gather.
    mine = shard_indices(n, rank, world) or range(1)
    for name in PER_PICTURE:
        given = options.get(name)
        listed = isinstance(given, list | tuple) or (isinstance(given, torch.Tensor) and name not in PICTURES)
        if given is not None and listed and len(given) > 1:
            if len(given) != n:
                raise InputError(f"{name} has {len(given)} entries for {n} pictures: give one per picture")
            options[name] = given[mine.start : mine.stop]
    images = call(pipe, mine, seed=seed, output_type=output_type, **options).images
    return images if world == 1 else _gather(images, n, world)


def call(pipe: Any, rows: range, **options: Any) -> Any:
    """The pictures numbered `rows` of a seed, from a pipeline of either kind: of classes, or of texts."""
    if isinstance(pipe, ImagePipeline):
        return pipe(batch_size=len(rows), sample_indices=rows, **options)
    prompt, embeds = options.pop("prompt", None), options.get("prompt_embeds")
    if isinstance(embeds, torch.Tensor) and len(embeds) == 1:
        options["prompt_embeds"] = embeds.expand(len(rows), -1, -1)
    single = [prompt] if isinstance(prompt, str) else prompt
    texts = single if single is None or len(single) > 1 else list(single) * len(rows)
    return pipe(prompt=texts, sample_indices=rows, **options)


def _gather(mine: torch.Tensor, n: int, world: int) -> torch.Tensor:
    """Shares of all processes, padded to one size for the exchange, then in order of sample index."""
    counts = [len(shard_indices(n, rank, world)) for rank in range(world)]
    device = mine.device
    sent = mine.new_zeros(max(counts), *mine.shape[1:])
    sent[: len(mine)] = mine
    if dist.get_backend() == "gloo":
        sent = sent.cpu()
    shares = [torch.empty_like(sent) for _ in range(world)]
    dist.all_gather(shares, sent.contiguous())
    return torch.cat([share[:count] for share, count in zip(shares, counts, strict=True)]).to(device)


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
