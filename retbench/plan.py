"""Predicted bytes of every cell before anything runs; the prediction itself needs torch and happens in a child."""

from collections.abc import Sequence
from dataclasses import asdict

from retbench import isolate
from retbench.spec import Cell

Prediction = dict[str, int]

TIMEOUT_S = 600.0


def predict(cells: Sequence[Cell]) -> tuple[list[Prediction], list[str]]:
    """A prediction for every cell, empty where there is none, and in words why not."""
    request = {"task": "predict", "cells": [asdict(cell) for cell in cells]}
    outcome = isolate.run_worker(request, threads=1, timeout_s=TIMEOUT_S)
    predictions = [message["predicted"] for message in outcome.messages]
    problems = [message["problem"] for message in outcome.messages if message["problem"]]
    if outcome.status != "ok":
        problems.append(f"the prediction ended early ({outcome.status}: {outcome.reason})")
    return predictions + [{}] * (len(cells) - len(predictions)), problems
