"""The tables of learning experiments: perplexity over seeds, paired differences, by position, by context."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean, stdev
from typing import Any

from retbench.record import Record
from retbench.report.conditions import measured_words
from retbench.report.learning_scores import (
    baseline_words,
    by_system,
    corpora_of,
    difference,
    documents_of,
    learning_of,
    main_setting,
    perplexity,
    score_of,
)
from retbench.report.numbers import ABSENT, length, significant
from retbench.report.tables import Column, Detail, Entry, Table, shortened
from retbench.report.trained import fate
from retbench.spec import Learning
from retbench.statistics import Interval

Paper = Mapping[str, Any]  # of the experiment's .toml

SAME = "not distinguishable"
EMPTY = Entry(None, ABSENT)


def learning_tables(records: Sequence[Record], paper: Paper, title: str, bases: Sequence[str]) -> list[Table]:
    """Of the setting that was trained longest; ``bases`` are what all systems are compared with, the main one first."""
    shown = main_setting(records)
    if not shown:
        return [Table("perplexity", title, (Column("system", "system"),), (), ("no records",))]
    conditions = (*_conditions(shown[0]), *_failures(shown), measured_words(shown))
    main = _perplexity(shown, paper["table"], title, conditions)
    others = [_differences(shown, bases, conditions), _positions(shown, conditions)]
    others.append(_contexts(shown, paper.get("contexts", {}), conditions))
    return [main, *(table for table in others if table.rows)]


def _perplexity(records: Sequence[Record], paper: Paper, title: str, conditions: tuple[str, ...]) -> Table:
    """A row a system: mean and standard deviation over seeds, beside the paper's."""
    corpora = corpora_of(records[0])
    columns = [
        Column("system", "system", justify="left"),
        Column("parameters", "para\N{SOFT HYPHEN}\nmeters"),
        Column("seeds", "seeds"),
    ]
    for corpus, head in zip(corpora, ["in domain", *corpora[1:]], strict=True):
        columns += [
            Column(f"perplexity {corpus}", f"{head}\nperplexity"),
            Column(f"perplexity_sd {corpus}", "its sd", detail="data"),
            Column(f"bits_per_byte {corpus}", "bits a\nbyte"),
        ]
    for corpus in paper["corpora"]:
        detail: Detail = "terminal" if corpus == paper["corpora"][0] else "page"
        columns.append(Column(f"paper {corpus}", f"paper,\n{corpus}", detail=detail))
    rows = []
    for system, runs in by_system(records).items():
        theirs = paper["perplexity"].get(system, [None] * len(paper["corpora"]))
        seeds = Entry(len(runs), str(len(runs)))
        became = fate([record for record in records if record.cell.system == system])
        ours = [entry for corpus in corpora for entry in _mean_entries(runs, corpus, became)]
        rows.append((Entry(system, system), _parameters(runs), seeds, *ours, *map(_number, theirs)))
    cell = records[0].cell
    notes = (
        f"perplexity: a token of {_scored(learning_of(records[0]))}; mean ± standard deviation over seeds, which set "
        "the weights and the order of the data; systems of one seed read the same",
        f"read in windows of {cell.seq_len} tokens that slide by half, the first {learning_of(records[0]).excerpt} "
        "tokens of each document",
        *_matched(records),
        *baseline_words(records),
        f"paper ({paper['source']}): {paper['setting']}, another corpus and tokenizer: its order can be compared, "
        "not its numbers",
        *conditions,
    )
    return Table("perplexity", title, tuple(columns), tuple(rows), notes)


def _differences(records: Sequence[Record], bases: Sequence[str], conditions: tuple[str, ...]) -> Table:
    """Loss of each system minus that of each base, with an interval, and in words what it says."""
    systems = by_system(records)
    known = [base for base in bases if systems.get(base)]
    columns = [Column("corpus", "corpus", justify="left"), Column("system", "system", justify="left")]
    for base in known:
        columns += [
            Column(f"minus {base}", f"minus {base}\nnats", "nats"),
            Column(f"minus {base} low", "low", "nats", detail="data"),
            Column(f"minus {base} high", "high", "nats", detail="data"),
            Column(f"verdict {base}", "which is", justify="left"),
        ]
    rows = []
    for corpus in corpora_of(records[0]) if known else []:
        for system, runs in systems.items():
            of = partial(documents_of, corpus=corpus)
            found = [None if system == base else difference(runs, systems[base], of) for base in known]
            if any(found):
                entries = [entry for one in found for entry in _difference_entries(one)]
                rows.append((Entry(corpus, corpus), Entry(system, system), *entries))
    notes = (
        "mean loss of a token minus that of the other system, nats (95 %); below 0 is better; Student's interval "
        "over seeds and documents, both paired",
        f"{SAME}: the interval holds 0",
        *conditions,
    )
    return Table("differences", "Differences, paired over documents", tuple(columns), tuple(rows), notes, ("corpus",))


def _positions(records: Sequence[Record], conditions: tuple[str, ...]) -> Table:
    """In domain, by the position in a document: in windows, and with the state carried where it keeps its size."""
    corpus = learning_of(records[0]).corpus
    found = {
        (system, how): [score_of(run, corpus, how)["positions"] for run in runs]
        for system, runs in by_system(records).items()
        for how in ("windows", "carried")
        if runs and all(score_of(run, corpus, how) for run in runs)
    }
    firsts = sorted({first for scores in found.values() for first in scores[0]}, key=int)
    columns = (
        Column("system", "system", justify="left"),
        Column("reading", "reading", justify="left"),
        *(Column(f"perplexity_from_{first}", f"from\n{first}") for first in firsts),
    )
    rows = []
    for (system, how), scores in found.items():
        pairs = [[positions[first] for positions in scores if first in positions] for first in firsts]
        values = [_number(perplexity(some) if some else None) for some in pairs]
        rows.append((Entry(system, system), Entry(how, how), *values))
    notes = (
        "perplexity in domain from one position to the next, seeds together; windows: of the trained length; carried: "
        "with the state of all that came before, beyond the trained length too",
        *conditions,
    )
    return Table("positions", "By the position in a document", columns, tuple(rows), notes)


def _contexts(records: Sequence[Record], paper: Paper, conditions: tuple[str, ...]) -> Table:
    """Table 8's protocol: the same tokens given contexts of several lengths."""
    lengths, printed = learning_of(records[0]).contexts, paper.get("lengths", [])
    columns = (
        Column("system", "system", justify="left"),
        *(Column(f"perplexity_at_{context}", f"context\n{length(context)}") for context in lengths),
        *(Column(f"paper_at_{context}", f"paper,\n{length(context)}") for context in printed),
    )
    rows = []
    for system, runs in by_system(records).items():
        pairs = [[pair for run in runs for pair in run.notes["contexts"].get(str(context), [])] for context in lengths]
        if all(pairs):
            theirs = paper["perplexity"].get(system, [None] * len(printed)) if printed else []
            rows.append((Entry(system, system), *(_number(perplexity(some)) for some in pairs), *map(_number, theirs)))
    notes = (
        f"in domain, the last 128 of every {max(lengths)} tokens given contexts of each length, seeds together; "
        f"trained on sequences of {records[0].cell.seq_len}: longer contexts are beyond what the models have seen",
        *((f"paper ({paper['source']}): {paper['setting']}",) if printed else ()),
        *conditions,
    )
    return Table("contexts", "Perplexity by the length of the context", columns, tuple(rows), notes)


def _mean_entries(runs: Sequence[Record], corpus: str, became: str) -> list[Entry]:
    """Perplexity, its standard deviation, and bits a byte; without a run that came to its end what ``became`` of it."""
    if not runs:
        return [Entry(None, became, failed=True), EMPTY, EMPTY]
    scores = [score_of(run, corpus) for run in runs]
    values = [perplexity(score["documents"]) for score in scores]
    bits = mean(sum(nats for nats, _ in score["documents"]) / math.log(2) / score["bytes"] for score in scores)
    spread = stdev(values) if len(values) > 1 else None
    text = f"{mean(values):.2f}" + ("" if spread is None else f" ±{significant(spread, 2)}")
    return [Entry(mean(values), text), Entry(spread, significant(spread, 2)), Entry(bits, f"{bits:.3f}")]


def _difference_entries(found: Interval | None) -> list[Entry]:
    if found is None:
        return [EMPTY, EMPTY, EMPTY, Entry(None, "")]
    words = SAME if found.low <= 0 <= found.high else "better" if found.high < 0 else "worse"
    ends = [Entry(end, f"{end:+.3f}") for end in (found.low, found.high)]
    text = f"{found.value:+.3f} ({ends[0].text} to {ends[1].text})"
    return [Entry(found.value, text), *ends, Entry(words, words)]


def _parameters(runs: Sequence[Record]) -> Entry:
    count = runs[0].metrics.get("parameters") if runs else None
    return EMPTY if count is None else Entry(count, f"{count / 1e6:.2f}M")


def _number(value: float | None) -> Entry:
    return EMPTY if value is None else Entry(value, f"{value:.2f}")


def _matched(records: Sequence[Record]) -> tuple[str, ...]:
    """How far the parameters of the systems lie apart."""
    counts = [record.metrics["parameters"] for record in records if "parameters" in record.metrics]
    return (f"parameters of the systems differ by {max(counts) / min(counts) - 1:.1%} at most",) if counts else ()


def _conditions(record: Record) -> tuple[str, ...]:
    cell, learning = record.cell, learning_of(record)
    batch = cell.batch_size * (cell.training.grad_accumulation if cell.training else 1)
    return (
        f"{cell.size}{f' of {cell.n_layers} layers' if cell.n_layers else ''}, trained from scratch on "
        f"{learning.tokens:,} tokens of {learning.corpus} by {learning.tokenizer} (vocabulary {cell.vocab_size}), "
        f"{_distinct(learning)}{batch} sequences of {cell.seq_len} a step, learning rate up to "
        f"{learning.learning_rate:g}",
        f"data {learning.data[0][:12]}, tokenizer {learning.vocabulary[:12]}",
    )


def _scored(learning: Learning) -> str:
    """Which documents were scored."""
    if learning.documents is None:
        return "held-out documents"
    others = ", of the other corpora all that were not trained on" if learning.others else ""
    return f"documents, in domain the held-out ones{others}: each text once, {learning.documents} of a corpus at most"


def _distinct(learning: Learning) -> str:
    """How often it reads what, where the tokens are not all different ones."""
    if not learning.distinct_tokens or learning.distinct_tokens >= learning.tokens:
        return ""
    return (
        f"{learning.distinct_tokens:,} of them distinct, read {learning.tokens / learning.distinct_tokens:.1f} times, "
    )


def _failures(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(
        f"{record.cell.system} seed {record.cell.seed}: {record.status}, {shortened(record.reason)}"
        for record in records
        if record.reason
    )
