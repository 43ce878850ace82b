"""Work that a copy of this process does while this one goes on with its own."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from retbench.worker import die_with_parent


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """``work`` runs in a fork while the block does, and both have ended after it; without safe forks, after the block.

    What it changes in memory is lost, its files stay. Raises the OSError that it raised, ChildProcessError where the
    fork died. A block that fails ends it.
    """
    if sys.platform != "linux":  # the frameworks of macOS do not survive a fork
        yield
        work()
        return
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(work, sender, os.getpid()), daemon=True)
    process.start()
    sender.close()
    try:
        yield
        try:
            failure = receiver.recv()
        except EOFError:
            process.join()
            words = f"the process that worked beside this one ended with {process.exitcode}"
            raise ChildProcessError(words) from None
        if failure is not None:
            raise failure
    finally:
        process.kill()
        process.join()
        receiver.close()


def _tell(work: Callable[[], None], sender: Connection, parent: int) -> None:
    """Sends the OSError of ``work``, or None; ends with its parent, kill -9 too."""
    die_with_parent()
    if os.getppid() != parent:  # it had died before
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    failure = None
    try:
        work()
    except OSError as error:
        failure = error
    sender.send(failure)
