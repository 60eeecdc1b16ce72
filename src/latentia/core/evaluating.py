"""Networks in evaluation mode while they sample or measure, and back as they were afterwards."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
_held: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()
"""Network → how many running calls hold it, and which of its parts were training before the first."""


@contextmanager
def evaluating(networks: Iterable[object]) -> Iterator[None]:
    """Switch dropout and its like off inside the block.

    Several threads may hold one network; the last to leave restores it, so a preview in the middle of a
    training run changes nothing. What is no `nn.Module` has no modes and is passed over.
    """
    modules = [network for network in networks if isinstance(network, nn.Module)]
    for network in modules:
        _hold(network)
    try:
        yield
    finally:
        for network in modules:
            _release(network)


def _hold(network: nn.Module) -> None:
    with _lock:
        count, parts = _held.get(network, (0, []))
        if count == 0:
            parts = [part for part in network.modules() if part.training]
            for part in parts:
                part.training = False
        _held[network] = count + 1, parts


def _release(network: nn.Module) -> None:
    with _lock:
        count, parts = _held.pop(network)
        if count > 1:
            _held[network] = count - 1, parts
            return
        for part in parts:
            part.training = True
