"""The claims ledger: verdicts from intervals, the right baseline, and every claim of the file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.claims import ledger, paper_claims
from models.catalogue import systems
from retbench.record import Record
from retbench.registry import experiments
from retbench.report.claims import ClaimError, read_claims
from retbench.report.claims_settings import TABLE_3
from retbench.report.claims_table import claims_table
from retbench.report.tables import to_markdown
from retbench.report.verdicts import judge
from retbench.spec import Training
from tests.models.helpers import repeatable
from tests.report.factory import SYSTEMS, cell, failed, record, sweep
from tests.report.test_learning_tables import learnt
from tests.report.test_training_tables import in_turn, trained

CLAIMS = {claim.name: claim for claim in paper_claims()}
LATENCY = CLAIMS["latency"]
REQUIRED = """
    throughput memory latency latency-over-length memory-over-length latency-over-batch
    training-memory training-speed training-speed-flash training-memory-flash
    parallel-training constant-inference linear-memory recurrent-form chunkwise-form
    better-above-2b zero-shot four-shot better-than-variants context-512 context-2048
    gate group-norm decay multi-scale-decay head-dimension
"""


def decoded(system: str, tpot_ms: float, spread: float = 0.0, **other: Any) -> Record:
    low, high = tpot_ms * (1 - spread), tpot_ms * (1 + spread)
    metrics = {"tpot_ms": tpot_ms, "tpot_ms_low": low, "tpot_ms_high": high}
    return record(cell(system, **other), metrics=metrics)


@given(st.floats(1, 1e3), st.floats(1, 1e3), st.floats(0, 0.3), st.floats(1, 30))
@repeatable
def test_a_verdict_is_that_of_the_whole_interval(mine: float, theirs: float, spread: float, bound: float) -> None:
    claim = replace(LATENCY, against=("transformer",), above=bound)
    found = judge(claim, [decoded("retnet", mine, spread), decoded("transformer", theirs, spread)])

    low, high = theirs * (1 - spread) / (mine * (1 + spread)), theirs * (1 + spread) / (mine * (1 - spread))
    expected = "supported" if low > bound else "not supported" if high < bound else "undecided"
    assert found.ours is not None
    assert found.ours.value == pytest.approx(theirs / mine)
    if min(abs(low - bound), abs(high - bound)) > 1e-9 * bound:
        assert found.verdict == expected


def test_the_strongest_baseline_decides_and_the_naive_one_stands_beside() -> None:
    found = judge(
        LATENCY, [decoded("retnet", 10), decoded("transformer", 40), decoded("transformer-concat-cache", 200)]
    )

    assert (found.strongest, found.naive) == ("transformer", "transformer-concat-cache")
    assert found.ours is not None
    assert found.ours.value == pytest.approx(4)
    assert found.verdict == "not supported"
    assert found.by_baseline is not None
    assert found.by_baseline["transformer-concat-cache"].value == pytest.approx(20)


def test_the_naive_baseline_alone_decides_nothing() -> None:
    found = judge(LATENCY, [decoded("retnet", 10), decoded("transformer-concat-cache", 200)])

    assert found.verdict == "not run"


def test_a_claim_that_names_its_baseline_is_not_judged_by_another() -> None:
    records = [step("retnet", 600.0), step("transformer-flash", 500.0)]

    assert judge(CLAIMS["training-speed"], records).verdict == "not run"
    assert judge(CLAIMS["training-speed-flash"], records).verdict == "supported"
    assert judge(CLAIMS["training-memory-flash"], records).verdict == "not supported"


def step(system: str, tokens_per_s: float, **other: Any) -> Record:
    """An optimizer step at the paper's length."""
    return replace(trained(system, tokens_per_s, **{"seq_len": 8192, **other}), experiment="training")


def test_steps_in_turn_decide_in_pairs_so_that_the_pace_of_the_machine_cancels() -> None:
    records = [step("retnet", 600.0), step("transformer", 580.0)]  # tokens/s whose intervals overlap
    paired = [in_turn(one, step_ns) for one, step_ns in zip(records, (1000, 1100), strict=True)]
    apart = [in_turn(one, 1000, group) for one, group in zip(records, ("a/0", "b/0"), strict=True)]
    claim = replace(CLAIMS["training-speed"], above=1.0)
    found, overlapping = judge(claim, paired), judge(claim, apart)

    assert (found.verdict, overlapping.verdict) == ("supported", "undecided")
    assert found.ours is not None
    assert (found.ours.low, found.ours.high) == pytest.approx((1.1, 1.1))


def test_a_plain_step_decides_whatever_was_measured_last() -> None:
    plain = [step("retnet", 900.0, chunk_size=512), step("transformer", 100.0)]
    block = [step(system, 300.0, training=Training("block"), chunk_size=chunk)
             for system, chunk in (("retnet", 512), ("transformer", None))]  # fmt: skip
    orders = ([*plain, *block], [*block, *plain], [plain[0], *block, plain[1]])
    found = [judge(CLAIMS["training-speed"], records) for records in orders]
    alone = judge(CLAIMS["training-speed"], [plain[0], *block])

    assert [one.ours and one.ours.value for one in found] == [9.0] * 3
    assert alone.ours is not None and alone.ours.value == 1
    assert "length 8192, chunks of 512, cpu" in to_markdown([claims_table([found[0]])])
    assert "length 8192, checkpointed blocks, chunks of 512, cpu" in to_markdown([claims_table([alone])])


def test_the_papers_chunk_size_decides_and_another_stands_apart() -> None:
    base, paper = step("transformer", 100.0), step("retnet", 900.0, chunk_size=512)
    others = [step("retnet", 100.0 + n, chunk_size=n) for n in (128, 256)]
    orders = ([base, paper, *others], [*others, paper, base])
    last = judge(CLAIMS["training-speed"], [base, *others])

    assert [judge(CLAIMS["training-speed"], records).verdict for records in orders] == ["supported"] * 2
    assert {one.cell.chunk_size for one in last.records} == {None, 256}


def test_lengths_below_the_papers_decide_nothing_about_what_grows_with_them() -> None:
    short = [step(system, speed, seq_len=4096) for system, speed in (("retnet", 900.0), ("transformer", 100.0))]
    found = judge(CLAIMS["training-speed"], short)

    assert (found.verdict, found.reason) == ("undecided", "only length 8192 and more can decide")
    assert all(claim.from_length == 8192 for claim in CLAIMS.values() if claim.experiment == "training")
    records = sweep(lengths=(1024,))
    for name in ("throughput", "memory", "latency"):
        assert judge(CLAIMS[name], records).reason == found.reason


def test_a_length_that_can_decide_goes_before_a_larger_model_that_cannot() -> None:
    whole = [step(system, speed) for system, speed in (("retnet", 900.0), ("transformer", 100.0))]
    large = [replace(one, cell=replace(one.cell, size="1.3b", seq_len=4096)) for one in whole]

    assert judge(CLAIMS["training-speed"], [*large, *whole]).verdict == "supported"


def test_bytes_decide_without_an_interval() -> None:
    records = [record(cell(name), metrics={"peak_memory_bytes": size})
               for name, size in (("retnet", 250), ("transformer", 1000), ("transformer-flash", 900))]  # fmt: skip
    found = judge(CLAIMS["memory"], records)

    assert found.ours is not None
    assert found.ours.value == found.ours.low == pytest.approx(1 - 250 / 900)
    assert found.verdict == "supported"


def test_the_largest_setting_decides_and_other_conditions_are_not_mixed() -> None:
    small = [decoded("retnet", 10, seq_len=1024), decoded("transformer", 10, seq_len=1024)]
    large = [decoded("retnet", 10), decoded("transformer", 200), decoded("transformer", 1, dtype="fp32")]
    found = judge(LATENCY, [*large, *small])

    assert found.verdict == "supported"
    assert {one.cell.seq_len for one in found.records} == {8192}


def test_growth_over_length_and_batch_are_of_the_system_itself() -> None:
    records = sweep(SYSTEMS, batches=(1, 8))
    length, batch = judge(CLAIMS["latency-over-length"], records), judge(CLAIMS["latency-over-batch"], records)

    assert length.verdict == "supported"
    assert length.by_baseline is not None
    assert length.by_baseline["transformer"].value > 2
    assert batch.verdict == "not supported"
    assert judge(CLAIMS["memory-over-length"], records).verdict == "supported"
    assert judge(CLAIMS["latency-over-batch"], sweep(batches=(8,))).verdict == "not run"


def test_losses_are_compared_document_by_document_and_seed_by_seed() -> None:
    losses = {"retnet": 1.5, "retnet-no-gate": 1.6, "retnet-no-groupnorm": 1.5}
    records = [
        learnt(system, seed, loss, experiment="ablation") for system, loss in losses.items() for seed in range(3)
    ]
    better, same, absent = (judge(CLAIMS[name], records) for name in ("gate", "group-norm", "decay"))

    assert better.ours is not None
    assert better.ours.value == pytest.approx(0.1)
    assert better.ours.high - better.ours.low < 1e-9, "the spread of documents and seeds is in both"
    assert [one.verdict for one in (better, same, absent)] == ["supported", "not supported", "not run"]


def test_losses_at_a_context_are_those_of_table_8() -> None:
    records = [learnt(system, seed, loss, experiment="perplexity")
               for system, loss in (("retnet", 1.5), ("transformer-flash", 1.4)) for seed in range(2)]  # fmt: skip
    found = judge(CLAIMS["context-512"], records)

    assert found.ours is not None
    assert found.ours.value == pytest.approx(-0.1)
    assert found.verdict == "not supported"


def test_one_seed_decides_no_loss() -> None:
    seeds = {"retnet": (0, 1), "retnet-no-gate": (1,)}
    records = [learnt(system, seed, 1.5, experiment="ablation") for system, own in seeds.items() for seed in own]
    found = judge(CLAIMS["gate"], records)

    assert (found.verdict, found.reason) == ("undecided", "one seed does not tell how far others would lie apart")
    assert "1,966,080 tokens, 1 seed, " in to_markdown([claims_table([found])])


VARIANTS = CLAIMS["better-than-variants"]


def variants(losses: dict[str, tuple[float, ...]]) -> list[Record]:
    """Runs of RetNet, and of each baseline by the nats a token by which its seeds 0, 1, ... are worse."""
    runs = {"retnet": (0.0, 0.0), **losses}
    return [
        learnt(system, seed, 1.5 + loss, experiment="perplexity")
        for system, own in runs.items()
        for seed, loss in enumerate(own)
    ]


def test_each_baseline_must_be_worse_not_the_strongest_alone() -> None:
    narrow = dict.fromkeys(VARIANTS.against, (0.05, 0.05))
    wide, better = {**narrow, "rwkv": (-0.02, 0.14)}, {**narrow, "h3": (-0.1, -0.1)}
    supported, open_, lost = (judge(VARIANTS, variants(losses)) for losses in (narrow, wide, better))

    assert (supported.verdict, supported.reason) == ("supported", "the whole interval is above 0, of each baseline")
    assert (open_.verdict, open_.strongest, open_.decided_by) == ("undecided", "linear-transformer", "rwkv")
    assert (lost.verdict, lost.decided_by) == ("not supported", "h3")
    assert " nats (" in (text := to_markdown([claims_table([open_])]))
    assert "against rwkv, only a part of the interval is above 0" in text


def test_a_baseline_that_was_not_measured_leaves_a_claim_on_each_undecided() -> None:
    worse, better = (0.05, 0.05), (-0.1, -0.1)
    two = judge(VARIANTS, variants({"rwkv": worse, "hyena": worse}))
    three = judge(VARIANTS, variants({"linear-transformer": worse, "rwkv": worse, "hyena": worse}))

    assert (two.verdict, two.reason) == ("undecided", "linear-transformer and h3 were not measured")
    assert (three.verdict, three.reason) == ("undecided", "h3 was not measured")
    assert judge(VARIANTS, variants({"rwkv": better})).verdict == "not supported"


def test_the_seeds_that_count_are_those_of_the_baseline_that_decides() -> None:
    found = judge(VARIANTS, variants({**dict.fromkeys(VARIANTS.against, (0.09, 0.09)), "hyena": (0.05,)}))
    assert (found.verdict, found.decided_by) == ("undecided", "hyena")
    assert found.reason == "one seed does not tell how far others would lie apart"

    strongest = replace(VARIANTS, judged="strongest")
    records = variants({"rwkv": (0.05, 0.05), "h3": (0.09, 0.09)})
    kept = [one for one in records if (one.cell.system, one.cell.seed) not in (("rwkv", 0), ("h3", 1))]
    assert judge(strongest, kept).verdict == "undecided"
    assert judge(strongest, records).verdict == "supported"


def answered(system: str, task: str, right: int, asked: int = 100, **other: Any) -> Record:
    """The answers of a checkpoint, named a unless ``system`` names it; as many of them right."""
    documents = [{"doc": number, "acc": float(number < right)} for number in range(asked)]
    name = system if ":" in system else f"{system}:a"
    of = cell(name, size="checkpoint", workload="evaluate", task=task, num_fewshot=0, weights=f"of {name}")
    return record(replace(of, **other), experiment="evaluate", notes={"documents": documents})


def test_tasks_of_table_3_alone_decide_accuracy_and_only_all_of_them() -> None:
    substitute = [answered("retnet", "cloze", 90), answered("transformer", "cloze", 10)]
    copa = [answered("retnet", "copa", 10), answered("transformer", "copa", 90)]
    papers = [answered(system, task, right) for task in sorted(TABLE_3 - {"copa"})
              for system, right in (("retnet", 10), ("transformer", 90))]  # fmt: skip
    sets = (substitute, copa, [*copa, *papers[:-1]], [*substitute, *copa, *papers])
    alone, one, six, every = (judge(CLAIMS["zero-shot"], records) for records in sets)

    assert (alone.verdict, alone.reason) == ("undecided", "only tasks of Table 3 can decide, not cloze")
    assert (one.verdict, one.reason) == ("undecided", "both were asked only 1 of the 7 tasks of Table 3")
    assert six.reason == "both were asked only 6 of the 7 tasks of Table 3", "the last one only by one of them"
    assert every.ours is not None
    assert every.ours.value == pytest.approx(-80)
    assert every.verdict == "not supported"
    text = to_markdown([claims_table([every])])
    assert "at retnet:a and transformer:a, batch 8, length 8192, asked boolq, copa, hellaswag, " in text
    assert "documents of each" not in text


def test_answers_of_two_checkpoints_are_those_of_neither() -> None:
    records = [
        *(answered("retnet:a", task, right) for task, right in (("copa", 50), ("boolq", 60))),
        answered("retnet:b", "copa", 100),
        *(answered("transformer", task, 50) for task in ("copa", "boolq")),
    ]
    found = judge(CLAIMS["zero-shot"], records)
    again = judge(CLAIMS["zero-shot"], [*records, answered("retnet:b", "boolq", 100)])
    newer = judge(CLAIMS["zero-shot"], [*records, *(answered("retnet:a", task, 0, weights="new") for task in TABLE_3)])

    assert found.ours is not None and again.ours is not None and newer.ours is not None
    assert found.ours.value == pytest.approx(5), "of a, which was asked more"
    assert again.ours.value == pytest.approx(50), "of b, the last of equals"
    assert newer.ours.value == pytest.approx(-50), "of the last weights under one name"
    assert "at retnet:a and transformer:a, " in to_markdown([claims_table([found])])


def test_all_documents_decide_rather_than_the_first_ones() -> None:
    limited = [answered(system, task, right, 10, limit=10) for task in ("copa", "boolq")
               for system, right in (("retnet", 9), ("transformer", 1))]  # fmt: skip
    whole = [answered("retnet", "copa", 50), answered("transformer", "copa", 50)]
    part, both = (judge(CLAIMS["zero-shot"], records) for records in (limited, [*limited, *whole]))

    assert part.ours is not None and both.ours is not None
    assert both.ours.value == 0
    assert "asked boolq, copa, the first 10 documents of each" in to_markdown([claims_table([part])])
    assert "documents of each" not in to_markdown([claims_table([both])])


def test_an_evaluation_that_failed_is_the_reason_of_not_run() -> None:
    dead = failed(answered("retnet", "copa", 0).cell, "oom", "too large")

    assert "oom, too large" in judge(CLAIMS["zero-shot"], [replace(dead, experiment="evaluate")]).reason


def test_sizes_that_the_claim_is_not_about_decide_nothing() -> None:
    records = [learnt(system, 0, loss, experiment="scaling") for system, loss in (("retnet", 1), ("transformer", 2))]
    found = judge(CLAIMS["better-above-2b"], records)

    assert (found.verdict, found.reason) == ("undecided", "only 2.7b and larger can decide")


def test_what_failed_is_the_reason_of_not_run() -> None:
    found = judge(LATENCY, [failed(cell("retnet"), "oom", "too large")])

    assert found.verdict == "not run"
    assert "oom, too large; retbench inference makes the records" in found.reason


def test_every_claim_names_what_exists_and_is_not_run_without_records() -> None:
    assert [claim.name for claim in paper_claims()] == REQUIRED.split()
    for claim in CLAIMS.values():
        assert {claim.system, *claim.against} <= set(systems())
        assert claim.experiment in experiments()
        assert claim.command.startswith("retbench ")
        assert judge(claim, []).verdict == "not run"


def test_the_ledger_holds_the_command_of_the_records_that_decide() -> None:
    (table,) = ledger([*sweep(batches=(1, 8)), *sweep(lengths=(512,))])
    names = [column.name for column in table.columns]
    rows = {row[0].text: dict(zip(names, row, strict=True)) for row in table.rows}

    assert rows["latency"]["command"].text == (
        f"retbench inference --systems {','.join(SYSTEMS)} --size small --seq-len 8192 --batch-size 8 --dtype bf16 "
        "--device cpu --threads 2 --seed 0"
    )
    assert rows["gate"]["command"].text == "retbench ablation"
    assert "machine lab-2c, torch 2.13.0+cpu, commit 0123456789ab (dirty)" in rows["latency"]["conditions"].text


def test_the_ledger_says_verdict_reason_conditions_and_what_the_paper_leaves_open() -> None:
    table = claims_table([judge(claim, sweep(batches=(1, 8))) for claim in paper_claims()])
    text = to_markdown([table])

    row = next(row for row in table.rows if row[0].text == "latency")
    assert [entry.text for entry in row[1:3]] == ["15.6×", row[2].text]
    assert "not supported" in [entry.text for entry in row]
    assert "at small, batch 8, length 8192, cpu" in text
    assert "A100-80GB" in text
    assert "its bars in Figure 1 are 377.4 / 22.6 = 16.7" in text
    assert all(entry.text for row in table.rows for entry in row[:8])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measure": "guess"}, "latency: measure must be one of"),
        ({"judged": "all"}, "latency: judged must be one of"),
        ({"judged": "each", "measure": "value"}, "latency: value compares with no baseline"),
        ({"above": None}, "latency: above or at_most must be given"),
        ({"against": ()}, "latency: advantage needs against"),
    ],
)
def test_a_claim_that_nothing_can_decide_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ClaimError, match=words):
        replace(LATENCY, **change)


def test_a_file_with_an_unknown_or_missing_field_names_the_claim(tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    path.write_text('[inference.claims.speed]\nsays = "x"\nthreshold = 3\n', encoding="utf-8")
    with pytest.raises(ClaimError, match="speed: unknown threshold"):
        read_claims(path)
    path.write_text('[inference.claims.speed]\nsays = "x"\n', encoding="utf-8")
    with pytest.raises(ClaimError, match=r"speed: .*missing"):
        read_claims(path)
