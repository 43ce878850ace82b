"""Peers, other projects' models as rows of a sweep: installed into environments of their own, checked, found again."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from models.catalogue import Peer, peer_of, peers
from retbench import isolate
from retbench.errors import UsageError
from retbench.plan import Share
from retbench.registry import choose
from retbench.spec import Cell
from retbench.venvs import Venv

CHECK_S = 300.0


def venv_of(peer: Peer) -> Venv:
    return Venv(peer.name, peer.requirements, peer.dependencies, peer.stubs)


def find_peers(names: Sequence[str]) -> list[Peer]:
    """The peers of these names; raises UsageError for one that is unknown or not installed."""
    chosen = dict.fromkeys(name for text in names for name in choose(text, peers(), "peer"))
    missing = [name for name in chosen if not venv_of(peers()[name]).installed]
    if missing:
        raise UsageError(f"--peer {missing[0]}: not installed; run: retbench peers install {' '.join(missing)}")
    return [peers()[name] for name in chosen]


def interpreter(row: str) -> str:
    """The Python that measures a row: the peer's or, for a system of ours, this one."""
    peer = peer_of(row)
    return str(venv_of(peer).python) if peer else sys.executable


def install(peer: Peer) -> None:
    """Installs a peer and measures each of its rows, small; raises UsageError and leaves nothing where that fails."""
    venv_of(peer).install(check=partial(_check, peer))


def describe(peer: Peer) -> str:
    """What it is and whether it is installed."""
    state = "installed" if venv_of(peer).installed else f"not installed: retbench peers install {peer.name}"
    return f"{peer.summary}; {state}"


def installation(peer: Peer) -> str:
    """What an installation consists of, in words."""
    stubs = [f"{module} ({', '.join(names)})" for module, names in peer.stubs.items()]
    parts = [", ".join(peer.requirements) + ("" if peer.dependencies else " without its dependencies")]
    return "; ".join([*parts, f"stubs of {', '.join(stubs)}"] if stubs else parts)


def _check(peer: Peer, python: Path) -> None:
    """Measures every row, which compares it with its twin first."""
    for row in peer.rows:
        cell = Cell(row, "tiny", "decode", seq_len=16, batch_size=1, dtype="fp32", device="cpu", threads=1)
        request = {"task": "measure", "cell": cell.to_dict(), "predicted": {}, **asdict(Share(1.0, 0.0, None))}
        outcome = isolate.run_worker(request, 1, CHECK_S, str(python))
        if outcome.status != "ok":
            raise UsageError(f"{peer.name} is not installed: {row} does not run ({outcome.status}): {outcome.reason}")
