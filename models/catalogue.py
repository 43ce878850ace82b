"""Finds the systems and the peers by reading the files of this folder; loads no torch.

A file is a system's when it assigns a literal to ``SYSTEMS``: name -> summary and config overrides. It then also
defines ``MODEL``, the class that ``build`` calls. A file of ``peers`` assigns a literal to ``PEER``, see ``Peer``.
Nothing else has to be registered.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """A row of the paper or the twin of a peer: the module that defines it and the config fields that make it."""

    name: str
    summary: str
    module: str
    overrides: dict[str, object]
    model_types: tuple[str, ...] = ()  # of published checkpoints that load as this system
    twin_of: str | None = None  # the peer that computes the same function


@dataclass(frozen=True)
class Peer:
    """Another project's model: what to install, the rows that it gives, and our system that computes the same."""

    name: str
    summary: str
    module: str
    requirements: tuple[str, ...]  # pinned
    dependencies: bool  # whether those of the requirements are installed too
    stubs: dict[str, tuple[str, ...]]  # module -> names that the project imports and a measurement never calls
    rows: dict[str, str]  # name -> summary
    twin: str


@cache
def systems() -> dict[str, System]:
    """All systems by name: the paper's rows in the order of the files and of their literals, then the peers' twins."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        for name, entry in _literal(path, "SYSTEMS").items():
            overrides, model_types = entry.get("config", {}), entry.get("model_types", ())
            found[name] = System(name, entry["summary"], f"models.{path.stem}", overrides, tuple(model_types))
    for path, entry in _peer_files():
        twin = entry["twin"]
        base = found[twin["system"]]
        overrides = {**base.overrides, **twin["config"]}
        found[twin["name"]] = System(twin["name"], twin["summary"], base.module, overrides, twin_of=_peer_name(path))
    return found


@cache
def peers() -> dict[str, Peer]:
    """All peers by name, in the order of the files."""
    return {
        _peer_name(path): Peer(
            name=_peer_name(path),
            summary=entry["summary"],
            module=f"models.peers.{path.stem}",
            requirements=tuple(entry["requirements"]),
            dependencies=entry["dependencies"],
            stubs={module: tuple(names) for module, names in entry["stubs"].items()},
            rows=entry["rows"],
            twin=entry["twin"]["name"],
        )
        for path, entry in _peer_files()
    }


def paper_systems() -> dict[str, System]:
    """The rows of the paper alone."""
    return {name: system for name, system in systems().items() if system.twin_of is None}


def peer_of(row: str) -> Peer | None:
    """The peer that gives a row, None for a system of ours."""
    return next((peer for peer in peers().values() if row in peer.rows), None)


def _peer_files() -> list[tuple[Path, dict[str, Any]]]:
    literals = ((path, _literal(path, "PEER")) for path in sorted((HERE / "peers").glob("*.py")))
    return [(path, literal) for path, literal in literals if literal]


def _peer_name(path: Path) -> str:
    return path.stem.replace("_", "-")


def _literal(path: Path, name: str) -> dict[str, Any]:
    """The value of ``name = {...}`` in a file, empty when there is none."""
    source = path.read_text(encoding="utf-8")
    if f"\n{name} = " not in source:
        return {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            value: dict[str, Any] = ast.literal_eval(node.value)
            return value
    return {}
