"""Predicted bytes of every cell before anything runs; the prediction itself needs torch and happens in a child."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from models.catalogue import peer_of
from retbench import isolate
from retbench.devices import Device
from retbench.errors import UsageError
from retbench.isolate import Outcome
from retbench.quantities import format_duration
from retbench.spec import Cell
from retbench.timing import TRIVIAL_S

Prediction = dict[str, int]

TIMEOUT_S = 600.0  # a cell
START_UP_S = 5.0  # a child's imports and weights
COMPARISON_S = 5.0  # of a peer with its twin, and the imports of both
SKIPPING_S = 0.001
STEPS = 20  # steps at full depth that a good decode measurement takes, all depths and warm-up together
TRAINING_STEPS = 8  # optimizer steps that a good measurement takes
MARGIN = 1.15  # a prefill is planned for when this many times its time is there


def predict(cells: Sequence[Cell]) -> tuple[list[Prediction], list[str]]:
    """A prediction for every cell, that of its twin for a peer's; empty where there is none, and in words why not.

    Raises UsageError for a model that cannot be, as ``describe``.
    """
    return _predictions(cells, {"task": "predict"})


def estimate(cells: Sequence[Cell], memory_bytes: int) -> tuple[list[Prediction], list[str]]:
    """What every cell would need, and how far it could go in so many bytes; otherwise as ``predict``."""
    return _predictions(cells, {"task": "estimate", "memory_bytes": memory_bytes})


def _predictions(cells: Sequence[Cell], task: dict[str, Any]) -> tuple[list[Prediction], list[str]]:
    outcome = _asked({**task, "cells": [_predictable(cell).to_dict() for cell in cells]})
    predictions = [message["predicted"] for message in outcome.messages]
    problems = [message["problem"] for message in outcome.messages if message["problem"]]
    if outcome.status != "ok":
        problems.append(f"the prediction ended early ({outcome.status}: {outcome.reason})")
    return predictions + [{}] * (len(cells) - len(predictions)), problems


def describe(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What the model of every cell is (``measure.describe``); raises UsageError for one that cannot be."""
    outcome = _asked({"task": "describe", "cells": [_predictable(cell).to_dict() for cell in cells]})
    if outcome.status != "ok":
        raise UsageError(f"the models cannot be described ({outcome.status}): {outcome.reason}")
    return [message["facts"] for message in outcome.messages]


def _asked(request: dict[str, Any]) -> Outcome:
    """A child's answer."""
    outcome = isolate.run_worker(request, threads=1, timeout_s=TIMEOUT_S * len(request["cells"]))
    for message in outcome.messages:
        if "bad_input" in message:
            raise UsageError(message["bad_input"])
    return outcome


def _predictable(cell: Cell) -> Cell:
    """The cell itself or, for a peer that this Python cannot import, that of our system that computes the same."""
    peer = peer_of(cell.system)
    return replace(cell, system=peer.twin) if peer else cell


def needed_bytes(cell: Cell, prediction: Prediction) -> int:
    """What must be free for the cell to run at all: complexity runs at what lengths it can.

    Ranks on a CPU share its memory; on GPUs each has one of its own.
    """
    ranks = cell.training.ranks if cell.training and cell.device == "cpu" else 1
    return 0 if cell.workload == "complexity" else ranks * prediction.get("peak_memory_bytes", 0)


@dataclass(frozen=True)
class Share:
    """What a cell gets of the time: seconds in all, those for one prefill, and why its prefill gets none.

    ``expected_s``: what it should take however little it gets, since no cell does less than its fewest steps.
    """

    budget_s: float
    prefill_s: float
    skip_prefill: str | None
    expected_s: float = 0.0


def in_order(cells: Sequence[Cell], predictions: Mapping[Cell, Prediction], device: Device) -> list[Cell]:
    """The cells as they should run: a setting's together, the cheap ones of them first, so that these get done."""
    places: dict[Cell, int] = {}
    for cell in cells:
        places.setdefault(cell.setting, len(places))

    def key(cell: Cell) -> tuple[int, float]:
        return places[cell.setting], sum(_cost(cell, predictions.get(cell, {}), device))

    return sorted(cells, key=key)


def together(cells: Sequence[Cell], predictions: Mapping[Cell, Prediction], free_bytes: int) -> list[Cell]:
    """The first of the cells that are left, and those that one child measures in turn with it.

    These are optimizer steps of one setting. Models and optimizers of all of them stay in memory, and beside them
    there must be room for what the largest step adds. Limits of memory and several ranks are of one cell alone; so is
    compiled code, since a compiler that fails forgets the code of the others.
    """
    first = cells[0]
    if first.training is None or first.training.ranks > 1 or first.mem_limit_bytes is not None or first.compile:
        return [first]
    group = list(takewhile(lambda cell: cell.setting == first.setting, cells))
    known = [predictions.get(cell, {}) for cell in group]
    if not all("optimizer_bytes" in prediction for prediction in known):
        return [first]
    kept = [prediction["weights_bytes"] + prediction["optimizer_bytes"] for prediction in known]
    added = [prediction["peak_memory_bytes"] - nbytes for prediction, nbytes in zip(known, kept, strict=True)]
    return group if sum(kept) + max(added) <= free_bytes else [first]


def share(cells: Sequence[Cell], predictions: Mapping[Cell, Prediction], device: Device, left_s: float) -> Share:
    """The share of the first of the cells that are left, in proportion to what each is expected to take.

    Every cell gets its decode steps; prefills are added from the cheapest on, as long as the time lasts.
    """
    costs = [_cost(cell, predictions.get(cell, {}), device) for cell in cells]
    total = sum(decode_s for decode_s, _ in costs)
    affordable = TRIVIAL_S
    for prefill_s in sorted(prefill_s for _, prefill_s in costs):
        if total + prefill_s > left_s:
            break
        total += prefill_s
        affordable = max(affordable, prefill_s)
    decode_s, prefill_s = costs[0]
    if prefill_s <= affordable:
        both_s = decode_s + prefill_s
        return Share(max(left_s, 0) * both_s / total, prefill_s, None, both_s)
    reason = (
        f"would take about {format_duration(prefill_s / MARGIN)} (model), too long for the time left: raise --budget"
    )
    return Share(max(left_s, 0) * decode_s / total, 0.0, reason, decode_s)


def budget_together(
    count: int, cells: Sequence[Cell], predictions: Mapping[Cell, Prediction], device: Device, left_s: float
) -> float:
    """Seconds for the first ``count`` of the cells that are left: the sum of their shares."""
    orders = [[cells[at], *cells[:at], *cells[at + 1 :]] for at in range(count)]
    return sum(share(order, predictions, device, left_s).budget_s for order in orders)


def _cost(cell: Cell, prediction: Prediction, device: Device) -> tuple[float, float]:
    """Rough seconds of decode with start-up, and of prefill; every byte allocated is written and read again.

    What does not fit in memory will be skipped in a moment and takes no time from the others.
    """
    start_up_s = START_UP_S + (COMPARISON_S if peer_of(cell.system) else 0.0)
    if not prediction:
        return start_up_s, 0.0
    free = device.free_bytes()
    if needed_bytes(cell, prediction) > free:
        return SKIPPING_S, 0.0
    bytes_per_s, flops_per_s = device.bytes_per_s * cell.threads, device.flops_per_s * cell.threads
    if cell.workload in ("frontier", "complexity"):
        return start_up_s, 0.0
    if cell.workload == "train_step":
        step_s = prediction["step_flops"] / flops_per_s + prediction["step_moved_bytes"] / bytes_per_s
        return start_up_s + TRAINING_STEPS * step_s, 0.0
    step_s = (prediction["step_bytes"] + 2 * prediction["step_allocated_bytes"]) / bytes_per_s
    flops = 2 * prediction["parameters"] * cell.batch_size * cell.seq_len
    prefill_s = flops / flops_per_s + 2 * prediction["prefill_allocated_bytes"] / bytes_per_s
    if prediction["prefill_peak_memory_bytes"] > free:
        prefill_s = 0.0
    return start_up_s + STEPS * step_s, MARGIN * prefill_s
