"""Runs the cells of an experiment, alone or in turn, and stores a record of each, whatever becomes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from models.catalogue import peer_of
from retbench import isolate, plan
from retbench.devices import Device
from retbench.environment import capture, sha256
from retbench.isolate import Outcome
from retbench.peers import interpreter
from retbench.plan import Prediction, Share
from retbench.quantities import format_bytes
from retbench.record import Record
from retbench.spec import Cell
from retbench.store import Store, latest
from retbench.timing import Deadline

START_UP_S = 30.0  # what a child may need beyond its budget before it counts as hanging
OVERRUN = 3.0
HANGING_S = 600.0  # the same for cells measured together, which make their rounds whatever the budget

Execute = Callable[[dict[str, Any], int, float, str], Outcome]  # request, threads, seconds, Python


class Listener(Protocol):
    """Told of every step of a sweep, to show it."""

    def started(self, cell: Cell, left_s: float, others: int = 0) -> None:
        """A child measures the cell, and so many others in turn with it."""

    def finished(self, record: Record, reused: bool) -> None: ...

    def mended(self, problem: str) -> None: ...


@dataclass(frozen=True)
class Sweep:
    """The cells of one experiment on one device, and where their records go."""

    experiment: str
    cells: Sequence[Cell]
    device: Device
    environment: dict[str, Any]
    store: Store

    @classmethod
    def prepare(cls, experiment: str, cells: Sequence[Cell], device: Device, store: Store) -> "Sweep":
        return cls(experiment, cells, device, capture(device, cells[0].threads), store)

    def key(self, cell: Cell) -> str:
        """What makes a record reusable: the same request, measured code and environment."""
        environment = self.environment
        return sha256([self.experiment, cell.to_dict(), environment["code"], environment["fingerprint"]])

    def measured(self, records: Sequence[Record]) -> dict[Cell, Record]:
        """The cells that have an ok record already."""
        known = latest(records)
        return {
            cell: known[key] for cell in self.cells if (key := self.key(cell)) in known and known[key].status == "ok"
        }

    def run(
        self,
        known: dict[Cell, Record],
        predictions: dict[Cell, Prediction],
        deadline: Deadline,
        listener: Listener,
        execute: Execute = isolate.run_worker,
    ) -> list[Record]:
        """A record for every cell, in order; each new one is on disk before the next child starts.

        The time is shared out over the cells that are left; one that ends early leaves more to the others. Cells that
        ``plan.together`` puts into one child are measured alone after it if they were not ok there.
        """
        records = dict(known)

        def keep(cell: Cell, record: Record) -> None:
            records[cell] = record
            for problem in self.store.append(record):
                listener.mended(problem)
            listener.finished(record, reused=False)

        for record in known.values():
            listener.finished(record, reused=True)
        todo = plan.in_order([cell for cell in self.cells if cell not in known], predictions, self.device)
        while todo:
            group = plan.together(todo, predictions, self.device.free_bytes())
            if len(group) > 1:
                listener.started(group[0], deadline.left_s, len(group) - 1)
                budget_s = plan.budget_together(len(group), todo, predictions, self.device, deadline.left_s)
                for cell, outcome in zip(group, self._in_turn(group, budget_s, execute), strict=True):
                    if outcome.status == "ok":
                        keep(cell, self._record(cell, outcome, predictions[cell]))
            alone = [cell for cell in group if cell not in records]
            todo = alone + todo[len(group) :]
            for cell in alone:
                listener.started(cell, deadline.left_s)
                share = plan.share(todo, predictions, self.device, deadline.left_s)
                keep(cell, self._measure(cell, predictions.get(cell, {}), share, execute))
                todo = todo[1:]
        return [records[cell] for cell in self.cells]

    def run_together(
        self,
        cells: Sequence[Cell],
        predictions: Mapping[Cell, Prediction],
        budget_s: float,
        execute: Execute = isolate.run_worker,
    ) -> list[Record]:
        """Records of cells that one child measures in turn; what it had finished when it died is kept."""
        records = []
        for cell, outcome in zip(cells, self._in_turn(cells, budget_s, execute), strict=True):
            records.append(self._record(cell, outcome, predictions.get(cell, {})))
            self.store.append(records[-1])
        return records

    def _in_turn(self, cells: Sequence[Cell], budget_s: float, execute: Execute) -> list[Outcome]:
        """What came of each cell that one child measures in turn: ok where its times came, else how the child ended."""
        request = {"task": "rounds", "cells": [cell.to_dict() for cell in cells], "budget_s": budget_s}
        timeout_s = HANGING_S + OVERRUN * budget_s
        outcome = execute(request, cells[0].threads, timeout_s, interpreter(cells[0].system))
        found = []
        for at in range(len(cells)):
            parts = [
                {name: part[name] for name in part if name != "at"} for part in outcome.messages if part["at"] == at
            ]
            timed = any("samples" in part for part in parts)
            found.append(Outcome("ok", None, parts) if timed else replace(outcome, messages=parts))
        return found

    def _measure(
        self,
        cell: Cell,
        predicted: Prediction,
        share: Share,
        execute: Execute,
    ) -> Record:
        needed, free = plan.needed_bytes(cell, predicted), self.device.free_bytes()
        if needed > free:
            ranks = needed // predicted["peak_memory_bytes"]
            together = f" for {ranks} ranks" if ranks > 1 else ""
            reason = f"predicted to need {format_bytes(needed)}{together}, {format_bytes(free)} are free"
            return self._record(cell, Outcome("skipped", reason, []), predicted)
        request = {"task": "measure", "cell": cell.to_dict(), "predicted": predicted, **asdict(share)}
        timeout_s = START_UP_S + OVERRUN * max(share.budget_s, share.expected_s)
        return self._record(cell, execute(request, cell.threads, timeout_s, interpreter(cell.system)), predicted)

    def _record(self, cell: Cell, outcome: Outcome, predicted: Prediction) -> Record:
        parts = _merge(outcome.messages)
        if peer_of(cell.system):
            predicted = {}  # it is of the twin: enough to share out time, no prediction of the peer
        if predicted:
            parts["metrics"] |= {"predicted_peak_memory_bytes": predicted["peak_memory_bytes"]}
            parts["metrics"] |= _residuals(parts["metrics"], predicted)
            for entry in parts["contexts"].values():
                entry |= _residuals_at(entry, predicted)
        return Record(
            experiment=self.experiment,
            cell=replace(cell, **parts["cell"]),
            status=outcome.status,
            reason=outcome.reason,
            key=self.key(cell),
            created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            environment=self.environment,
            metrics=parts["metrics"],
            contexts=list(parts["contexts"].values()),
            samples=parts["samples"],
            warmup=parts["warmup"],
            predicted=predicted,
            notes=parts["notes"],
        )


def _residuals(metrics: Mapping[str, Any], predicted: Prediction) -> dict[str, int]:
    """Measured less predicted bytes of every peak that was both."""
    names = {"peak_memory_bytes": "residual_bytes", "prefill_peak_memory_bytes": "prefill_residual_bytes"}
    return {
        residual: metrics[peak] - predicted[peak]
        for peak, residual in names.items()
        if peak in metrics and peak in predicted
    }


def _residuals_at(entry: Mapping[str, Any], predicted: Prediction) -> dict[str, int]:
    """Predictions and residuals of the peaks of one context."""
    known = {name: f"{name}_at_{entry['context']}" for name in entry}
    found = {name: predicted[key] for name, key in known.items() if key in predicted}
    residuals = {name.replace("peak_memory", "residual"): entry[name] - nbytes for name, nbytes in found.items()}
    return {f"predicted_{name}": nbytes for name, nbytes in found.items()} | residuals


def _merge(messages: Sequence[dict[str, Any]]) -> dict[str, dict[Any, Any]]:
    """The parts that a child sent, joined by field; contexts by their context."""
    merged: dict[str, dict[Any, Any]] = {
        name: {} for name in ("cell", "metrics", "contexts", "samples", "warmup", "notes")
    }
    for message in messages:
        for name, part in message.items():
            if name == "contexts":
                for entry in part:
                    merged[name].setdefault(entry["context"], {}).update(entry)
            else:
                merged[name].update(part)
    return merged
