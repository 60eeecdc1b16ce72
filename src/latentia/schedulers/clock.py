"""Where in a schedule a timestep stands, found without waiting for the device.

A timestep that a loop takes from `scheduler.timesteps` is a view into that tensor: its memory address says its
position, also on a GPU, also when the same value occurs twice. Any other number is looked up by value.
"""

import torch

from latentia.errors import InputError


class Clock:
    """An inference schedule's timesteps and the position of each; never changed after it is made."""

    __slots__ = ("address", "extent", "item", "last", "times", "timesteps", "whole")

    def __init__(self, timesteps: torch.Tensor, times: list[float], last: dict[float, int] | None = None) -> None:
        self.timesteps = timesteps
        self.times = times
        self.last = {time: i for i, time in enumerate(times)} if last is None else last
        self.whole = not timesteps.is_floating_point()
        self.address = timesteps.data_ptr()
        self.item = timesteps.element_size()
        self.extent = self.item * len(times)

    def __reduce__(self) -> tuple[type["Clock"], tuple[torch.Tensor, list[float]]]:
        return Clock, (self.timesteps, self.times)  # an address is true of one tensor only, not of its copies

    def locate(self, timestep: object, expected: int) -> int:
        """Position of `timestep`; `expected` settles which one when a value occurs twice (otherwise the last).

        Raises `InputError` for a number that is not in the schedule, for an integer where timesteps are
        fractional (it is mistaken for one too easily: an index), and for more than one timestep.
        """
        if isinstance(timestep, torch.Tensor):
            if timestep.numel() != 1:
                raise InputError(f"step takes one timestep for the whole batch, got shape {tuple(timestep.shape)}")
            offset = timestep.data_ptr() - self.address
            if 0 <= offset < self.extent:
                return offset // self.item
            timestep = timestep.item()
        if not self.whole and not isinstance(timestep, float):
            raise InputError(
                f"this scheduler's timesteps are floats, got the integer {timestep!r}: "
                "pass an element of scheduler.timesteps, not its index"
            )
        if 0 <= expected < len(self.times) and self.times[expected] == timestep:
            return expected
        found = self.last.get(timestep)  # type: ignore[call-overload]
        if found is None:
            raise InputError(
                f"timestep {timestep!r} is not in this schedule of {len(self.times)} "
                f"({self._few()}): pass an element of scheduler.timesteps"
            )
        return int(found)

    def _few(self) -> str:
        shown = [f"{time:g}" for time in self.times[:3]]
        return ", ".join(shown if len(self.times) <= 3 else [*shown, f"… {self.times[-1]:g}"])


def listed_positions(
    times: torch.Tensor, listed: torch.Tensor, current: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(position, found) in `listed` of each entry of `times`; `current` wins, else the last, where several match."""
    same = times.reshape(-1, 1) == listed.reshape(1, -1)
    position = same.shape[1] - 1 - same.flip(1).to(torch.uint8).argmax(1)
    if current is not None and current < same.shape[1]:
        position = torch.where(same[:, current], current, position)
    return position.reshape(times.shape), same.any(1).reshape(times.shape)
