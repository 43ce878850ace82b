"""What a gate leaves for machines: JUnit XML, annotations and the summary of GitHub, JSON for its benchmark action."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from retbench.gate_run import TIME, Row
from retbench.report.compare_table import cell_words
from retbench.report.gate_table import change_words
from retbench.report.tables import Table, to_markdown

LEVELS = {"regressed": "error", "failed": "error", "inconclusive": "warning", "new": "notice"}


def junit(rows: Sequence[Row]) -> str:
    """A test case for every metric of every cell: failures are regressions, errors did not run, the rest is skipped."""
    suite = ElementTree.Element("testsuite", name="retbench gate", tests=str(len(rows)))
    tags = {"regressed": "failure", "failed": "error", "inconclusive": "skipped", "new": "skipped"}
    counts = dict.fromkeys(("failure", "error", "skipped"), 0)
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=cell_words(row.cell), name=row.metric or "cell")
        tag = tags.get(row.verdict)
        if tag:
            counts[tag] += 1
            ElementTree.SubElement(case, tag, message=_plain(f"{row.verdict}: {change_words(row)}"))
    for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(counts[tag]))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def benchmark_json(rows: Sequence[Row]) -> str:
    """Head's numbers as benchmark-action/github-action-benchmark reads them with the tool "customSmallerIsBetter"."""
    entries = []
    for row in rows:
        if row.head is not None and row.judged is not None:
            name = f"{cell_words(row.cell)}: {row.metric}"
            unit = "ms" if row.metric == TIME else "bytes" if row.metric.endswith("_bytes") else "count"
            entry: dict[str, Any] = {"name": name, "unit": unit, "value": row.head, "extra": change_words(row)}
            entries.append(entry)
    return json.dumps(entries, indent=2, allow_nan=False) + "\n"


def annotations(rows: Sequence[Row]) -> list[str]:
    """A workflow command for every row that is not well."""
    found = []
    for row in rows:
        if row.verdict in LEVELS:
            title = _property(f"{row.verdict}, {cell_words(row.cell)}")
            found.append(f"::{LEVELS[row.verdict]} title={title}::{_data(change_words(row))}")
    return found


def write_all(rows: Sequence[Row], table: Table, folder: Path, variables: Mapping[str, str]) -> list[Path]:
    """Writes the reports into a folder, and the table to the summary of a GitHub job where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"gate.md": to_markdown([table]), "junit.xml": junit(rows), "benchmark.json": benchmark_json(rows)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if summary := variables.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(texts["gate.md"])
    return [folder / name for name in texts]


def _plain(text: str) -> str:
    """Without the control characters that XML 1.0 cannot hold."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _data(text: str) -> str:
    """Escaped as the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escaped as a property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
