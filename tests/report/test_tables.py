"""The neutral table and its renderings."""

import csv
import json
from io import BytesIO, StringIO, TextIOWrapper

import pytest

from retbench.report.tables import Column, Entry, Format, Table, render

HOSTILE = "=cmd|'/c calc'!A1\nnew | line \x1b[31m [red]x[/red] `tick` <b>*"


def table(name: str = "main", title: str = "Title", word: str = "plain", notes: tuple[str, ...] = ("note",)) -> Table:
    return Table(
        name=name,
        title=title,
        columns=(
            Column("system", "system", justify="left"),
            Column("batch_size", "batch"),
            Column("tpot_ms", "TPOT\nms", "ms"),
            Column("state_bytes", "state\nMiB", "bytes", detail="page"),
            Column("reason", "reason", detail="data"),
        ),
        rows=(
            (Entry(word, word), Entry(1, "1"), Entry(1.25, "1.25"), Entry(2**20, "1.0"), Entry(None, "-")),
            (Entry("b", "b"), Entry(8, "8"), Entry(float("nan"), "oom", True), Entry(None, "-"), Entry(word, word)),
        ),
        footnotes=notes,
        section=("batch_size",),
    )  # fmt: skip


def rendered(fmt: Format, *tables: Table, width: int | None = None) -> str:
    out = StringIO()
    render(tables, fmt, out, width)
    return out.getvalue()


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_sections_under_one_header_with_aligned_columns() -> None:
    lines = rendered("table", table(), width=15).splitlines()

    assert lines == [
        "Title",
        "       TPOT",
        "system   ms",
        "",
        "batch 1",
        "plain  1.25",
        "",
        "batch 8",
        "b       oom",
        "",
        "- note",
    ]


def test_a_word_that_is_broken_over_two_lines_is_whole_where_there_is_room() -> None:
    columns = (Column("parameters", "para\N{SOFT HYPHEN}\nmeters"), Column("cache", "concat-\ncache"))
    broken = Table("t", "Title", columns, ((Entry(1, "1"), Entry(2, "2")),), ())

    assert rendered("table", broken, width=80).splitlines()[1:3] == [" para- concat-", "meters   cache"]
    assert "| parameters | concat-cache |" in rendered("md", broken)


def test_a_wide_terminal_shows_the_columns_of_a_page_too() -> None:
    assert "state" in rendered("table", table(), width=100)
    assert "state" not in rendered("table", table(), width=15)
    assert "reason" not in rendered("table", table(), width=200)


def test_a_first_column_that_is_too_wide_folds_at_its_hyphens() -> None:
    lines = rendered("table", table(word="transformer-concat-cache"), width=24).splitlines()

    assert lines[5:7] == ["transformer-concat-", "cache               1.25"]


def test_what_cannot_fit_runs_over_and_is_never_cut() -> None:
    text = rendered("table", table(word="x" * 50), width=20)

    assert "x" * 50 in text
    assert "1.25" in text


def test_plain_streams_get_no_colour_codes_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    text = rendered("table", table())

    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_terminal_gets_colour_and_no_control_characters_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    render(table(word="a\x1b[2Jb"), "table", out, 80)

    assert "\x1b[1m" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()


def test_a_stream_of_a_narrow_encoding_still_gets_its_table() -> None:
    raw = BytesIO()
    stream = TextIOWrapper(raw, encoding="ascii")
    render(table(title="± 2 ×"), "table", stream, 80)
    stream.flush()

    assert raw.getvalue().startswith(b"? 2 ?\n")


def test_markdown_escapes_hostile_names() -> None:
    text = rendered("md", table(title=HOSTILE, word=HOSTILE, notes=(HOSTILE,)))
    body = [line for line in text.splitlines() if line.startswith("|")]

    assert len(body) == 4
    for line in body:
        assert line.replace("\\|", "").count("|") == 5, "four columns have five borders"
    assert "\x1b" not in text
    assert "\\<b\\>" in text and "\\[red\\]" in text and "\\`tick\\`" in text


def test_markdown_joins_the_lines_of_a_header() -> None:
    lines = rendered("md", table()).splitlines()

    assert lines[0] == "### Title"
    assert lines[2] == "| system | batch | TPOT ms | state MiB |"
    assert lines[3] == "| :--- | ---: | ---: | ---: |"
    assert lines[-1] == "- note"


def test_csv_defuses_formulas_and_keeps_one_line_a_row() -> None:
    text = rendered("csv", table(word=HOSTILE), table(name="second"))
    body = list(csv.DictReader(StringIO(text)))

    assert len(text.splitlines()) == 3, "the first table alone, a line a row"
    assert body[0]["system"].startswith("'=cmd|")
    assert body[0]["tpot_ms"] == "1.25"
    assert body[1]["tpot_ms"] == "" and body[1]["batch_size"] == "8"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", " ="])
def test_csv_quotes_every_start_of_a_formula(start: str) -> None:
    body = list(csv.DictReader(StringIO(rendered("csv", table(word=f"{start}1+1")))))

    assert body[0]["system"].startswith("'")


def test_json_holds_raw_numbers_by_the_name_of_the_table() -> None:
    data = json.loads(rendered("json", table(word=HOSTILE), table(name="second")))

    assert list(data) == ["main", "second"]
    assert data["main"]["columns"][2] == {"name": "tpot_ms", "unit": "ms"}
    assert data["main"]["rows"][0] == {
        "system": HOSTILE, "batch_size": 1, "tpot_ms": 1.25, "state_bytes": 2**20, "reason": None,
    }  # fmt: skip
    assert data["main"]["rows"][1]["tpot_ms"] is None, "not a number is null"


def test_a_footnote_that_tables_share_is_said_once() -> None:
    pair = (table(notes=("shared", "first")), table(name="second", notes=("shared", "second")))

    assert rendered("table", *pair).count("shared") == 1
    assert rendered("md", *pair).count("shared") == 1
    assert rendered("json", *pair).count("shared") == 2


@pytest.mark.parametrize("fmt", ["table", "md", "csv", "json"])
def test_an_empty_table_renders_its_title_and_footnotes(fmt: Format) -> None:
    text = rendered(fmt, Table("empty", "Nothing", (), (), ("because",)))

    assert ("Nothing" in text and "because" in text) or fmt == "csv"
    assert text.endswith("\n")
