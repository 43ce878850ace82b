"""Requests shared out over ranks: all of them, once, whole documents, evenly; several processes give what one gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build
from models.checkpoint import save_checkpoint
from retbench.environment import ROOT
from retbench.evaluate import shares
from tests.evaluate.test_evaluate import records, write
from tests.models.helpers import repeatable

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(requests=st.lists(st.tuples(tokens, tokens), max_size=30), count=st.integers(1, 4))
@settings(repeatable)
def test_every_request_is_on_one_rank_beside_those_of_its_context(
    requests: list[tuple[list[int], list[int]]], count: int
) -> None:
    parts = shares.by_prefix(requests, count)
    ranks = {at: rank for rank, part in enumerate(parts) for at in part}
    families = {tuple(context): len(context) for context, _ in requests}
    for context, end in requests:
        families[tuple(context)] += len(end)  # what reading it costs
    loads = [sum(families[context] for context in {tuple(requests[at][0]) for at in part}) for part in parts]

    assert sorted(at for part in parts for at in part) == list(range(len(requests)))
    assert len({(tuple(requests[at][0]), rank) for at, rank in ranks.items()}) == len(families)
    assert max(loads) <= sum(loads) / count + max(families.values(), default=0)


@given(lengths=st.lists(st.integers(1, 9), max_size=20), count=st.integers(1, 4))
@settings(repeatable)
def test_lengths_are_shared_out_evenly(lengths: list[int], count: int) -> None:
    parts = shares.by_length(lengths, count)

    assert sorted(at for part in parts for at in part) == list(range(len(lengths)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_has_everything_in_order() -> None:
    tenfold = shares.shared([3, 1, 2], shares.by_length([3, 1, 2], 1), lambda some: [10 * one for one in some])

    assert tenfold == [30, 10, 20]
    assert (shares.rank(), shares.world(), shares.gathered("all")) == (0, 1, ["all"])


@pytest.mark.slow
def test_two_processes_give_the_records_of_one(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    save_checkpoint(build("retnet", "tiny", vocab_size=256), tmp_path / "tiny")
    numbers = [{"query": f"{n} + {n} =", "choices": [str(2 * n), str(n)], "label": 0} for n in range(23)]
    write(tmp_path, "sums", "validation", *numbers)
    write(tmp_path, "sums", "train", *numbers[:5])
    found = []
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        command = [sys.executable, "-m", "retbench", "evaluate", "--checkpoint", str(tmp_path / "tiny")]
        command += ["--tasks", "substitute", "--data-dir", str(tmp_path), "--num-fewshot", "0,2", "--dtype", "fp32"]
        command += ["--nproc", str(count), "--threads", "1"]
        variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=variables, cwd=tmp_path / str(count)
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Table 3, measured") == 1
        found.append(records(tmp_path / str(count)))

    for one, two in zip(*found, strict=True):
        assert (one.key, one.cell.num_fewshot) == (two.key, two.cell.num_fewshot)
        assert (one.notes["ranks"], two.notes["ranks"]) == (1, 2)
        assert two.metrics["acc_percent"] == one.metrics["acc_percent"]
        assert two.metrics["plain_tokens"] == one.metrics["plain_tokens"]
        for mine, theirs in zip(one.notes["documents"], two.notes["documents"], strict=True):
            assert mine["doc"] == theirs["doc"]
            assert mine["loglikelihoods"] == pytest.approx(theirs["loglikelihoods"], abs=1e-5)
