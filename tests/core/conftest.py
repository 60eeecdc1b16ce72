import os
from collections.abc import Callable

import pytest

CALLS = ("replace", "fsync", "unlink", "open")
KILLED = 9


def died_at(step: int, action: Callable[[], object]) -> bool:
    """Run `action` in a forked child that exits hard just before system call `step`; False when it finished first."""
    child = os.fork()
    if child == 0:
        count = 0

        def arm(name: str) -> None:
            real = getattr(os, name)

            def call(*args: object, **kwargs: object) -> object:
                nonlocal count
                if count == step:
                    os._exit(KILLED)
                count += 1
                return real(*args, **kwargs)

            setattr(os, name, call)

        try:
            for name in CALLS:
                arm(name)
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), "the action failed instead of dying"
    return code == KILLED


@pytest.fixture
def crash() -> Callable[[int, Callable[[], object]], bool]:
    return died_at
