"""Locks between processes on a file or folder, which end with whoever holds them; without them on Windows, for all."""

import sys
from io import IOBase

if sys.platform != "win32":
    import fcntl


def lock(file: IOBase | int, shared: bool = False) -> None:
    """Waits until nobody else has it locked or, ``shared``, none but those that share it."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def try_lock(file: IOBase | int) -> bool:
    """Whether nobody else had it locked: now it is, for this process."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
