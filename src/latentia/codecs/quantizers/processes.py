"""What processes that train side by side must agree on: sums of statistics, and draws that one makes for all."""

import torch
import torch.distributed as dist


def several() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(*tensors: torch.Tensor) -> None:
    """Add up each tensor over all processes, in place and in one message; every process must call.

    The tensors are floats of one dtype on one device.
    """
    if not several():
        return
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(joined)
    for tensor, part in zip(tensors, joined.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over all processes, with the gradient of this process's own share.

    Under DDP, which averages gradients, that is the gradient of a loss of the mean. Every process must call.
    """
    if not several():
        return tensor
    mean = tensor.detach().clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size() + (tensor - tensor.detach())


def same_for_all(tensor: torch.Tensor) -> torch.Tensor:
    """The first process's tensor, in all of them (in place); every process must call."""
    if several():
        dist.broadcast(tensor, src=0)
    return tensor
