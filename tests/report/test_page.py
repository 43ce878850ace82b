"""The page: what is in it, that nothing of a record can run in it, and that the same records give the same bytes."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from experiments.claims import EXHIBITS as LEDGER
from experiments.inference import EXHIBITS
from retbench.record import Record
from retbench.report.draw import draw
from retbench.report.exhibit import Drawn, Exhibit
from retbench.report.page import page
from retbench.report.tables import Column, Entry, Table
from retbench.report.web.sources import Behind, Sources
from tests.report.factory import cell, failed, record, sweep

HOSTILE = """"'</style><script>alert(1)</script>$x"""  # short: it has to fit beside an axis
LONG = f"{HOSTILE}`</script><img src=x onerror=alert(1)>&amp;${{script}}$policy"
SHOWN = [exhibit for exhibit in EXHIBITS if exhibit.name in ("figure6", "frontier")]
DEAD = failed(cell("transformer"), "oom", "too large")


class Parts(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def having(self, name: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.elements if name in attributes]


def html(records: Sequence[Record]) -> str:
    return page(draw(SHOWN, records))


@cache
def shared() -> str:
    """A page of two lengths and a failed cell."""
    return html([one for one in sweep(lengths=(1024, 8192)) if one.cell != DEAD.cell] + [DEAD])


def sources(text: str) -> list[list[object]]:
    found = re.search(r'<script type="application/json" id="sources">(.*?)</script>', text)
    assert found
    data: list[list[object]] = json.loads(found[1])
    return data


def test_the_same_records_give_the_same_bytes() -> None:
    shared.cache_clear()
    first = shared()
    shared.cache_clear()

    assert shared() == first


def test_a_hostile_record_adds_no_element_and_no_attribute() -> None:
    pages = []
    for name, words in (("a", "b"), (HOSTILE, LONG)):
        environment = {**record().environment, "cpu": words, "machine": name, words: words}
        odd = replace(cell("transformer", batch_size=1), system=name, size=name)
        dead = replace(failed(odd, "oom", words), environment=environment, created_at=words)
        whole = replace(sweep(("rwkv",))[1], environment=environment)
        whole = replace(whole, cell=replace(whole.cell, system=name, size=name))
        pages.append(Parts(page(draw(SHOWN, [whole, dead]), [words])))

    names = [[(tag, sorted(attributes)) for tag, attributes in one.elements] for one in pages]
    assert names[0] == names[1]
    assert any(LONG in words for words in pages[1].words)
    assert sum(tag == "script" for tag, _ in pages[1].elements) == 2


def test_the_policy_allows_the_two_texts_of_the_page_and_nothing_else() -> None:
    text = shared()
    policy = next(one["content"] for one in Parts(text).having("http-equiv"))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)

    assert style and script
    for kind, found in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not Parts(text).having("style"), "a style attribute would need unsafe-inline"


def test_nothing_is_loaded() -> None:
    parts = Parts(shared())
    addresses = [one[name] for name in ("src", "href") for one in parts.having(name)]

    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_every_id_is_there_once_and_every_reference_leads_to_one() -> None:
    parts = Parts(shared())
    ids = [one["id"] for one in parts.having("id")]
    wanted = [one["href"].removeprefix("#") for one in parts.having("href")]
    wanted += [one["aria-labelledby"] for one in parts.having("aria-labelledby")]

    assert len(set(ids)) == len(ids)
    assert set(wanted) <= set(ids)


def test_rows_and_lines_say_whose_they_are() -> None:
    small, tiny = sweep(("retnet", "rwkv")), [replace(one, cell=replace(one.cell, size="tiny")) for one in sweep()]
    other = [replace(one, environment={**one.environment, "machine": "other"}) for one in sweep(("rwkv",))]
    parts = Parts(html([*small, *tiny, *other]))
    rows = [attributes for tag, attributes in parts.elements if tag == "tr" and "data-system" in attributes]
    lines = [one for one in parts.having("data-label") if one["class"].startswith("series")]

    assert {(one["data-system"], one.get("data-size")) for one in rows} >= {("rwkv", "small"), ("retnet", "tiny")}
    assert {one.get("data-machine") for one in rows} >= {"lab-2c", "other"}
    assert {"other", "lab-2c"} <= {one.get("data-machine") for one in lines}
    assert all("data-system" in one for one in lines)


def test_every_row_leads_to_the_command_and_the_environment_of_its_records() -> None:
    there = {**record().environment, "torch": "2.9"}
    records = [*sweep(("retnet",), batches=(1,)), *(replace(one, environment=there) for one in sweep(("rwkv",)))]
    text = html(records)
    parts, known = Parts(text), sources(text)
    rows = [at for at, (tag, one) in enumerate(parts.elements) if tag == "tr" and one.get("data-system") == "retnet"]
    number = next(one["data-source"] for _, one in parts.elements[rows[0] :] if "data-source" in one)
    command, environments, count, *_ = known[int(number)]

    assert "--systems retnet " in str(command)
    assert "--batch-size 1 " in str(command)
    assert count == 1
    assert [f"environment-{at}" for at in environments] == ["environment-0"]  # type: ignore[attr-defined]
    assert all(int(one["data-source"]) < len(known) for one in parts.having("data-source"))


def test_tables_of_a_machine_lead_to_its_records_alone() -> None:
    there = [replace(one, environment={**one.environment, "machine": "other"}) for one in sweep(("rwkv",))]
    headline = [exhibit for exhibit in EXHIBITS if exhibit.name == "figure1"]
    (one,) = draw(headline, [*sweep(("rwkv",)), *there])
    slope = next(table for table in one.tables if table.name == "slope-other")
    behind = Behind(slope, one, found := Sources())
    scope, number = behind.row(slope.rows[0])

    assert (scope.system, scope.machine) == ("rwkv", "other")
    assert list(found.sources)[number].records == len(there)


def test_failed_cells_are_words_in_tables_figures_and_their_data() -> None:
    text = shared()

    assert '<span class="status">oom</span>' in text
    assert ">× oom</text>" in text
    assert re.search(r'<th scope="row">8</th>.*?<td class="n" data-system="transformer"[^>]*>oom</td>', text)


def test_raw_samples_and_notes_are_not_in_the_page() -> None:
    few = sweep(("retnet",))
    many = [replace(one, samples={"step_ns": [987_654_321] * 40}, notes={"long": "x" * 9999}) for one in few]

    assert html(many) == html(few)


def test_what_was_not_run_says_which_command_makes_it() -> None:
    text = shared()

    assert "not run: no records; retbench inference --frontier makes them" in text


def test_a_model_is_counted_as_no_machine() -> None:
    measured = sweep(("retnet",), batches=(1,))
    predicted = [replace(one, environment={"machine": "model"}) for one in sweep(("lstm",))]

    assert "1 record of 1 system on 1 machine. Measured" in html(measured)
    assert "1 record of 1 system on 1 machine, and 2 predictions of a model. " in html([*measured, *predicted])


def test_verdicts_are_counted_at_the_top() -> None:
    columns = (Column("claim", "claim", justify="left"), Column("verdict", "verdict", justify="left"))
    verdicts = ("supported", "supported", "not supported", "undecided", "not run")
    table = Table("claims", "Claims", columns, tuple((Entry("a", "a"), Entry(one, one)) for one in verdicts))
    exhibit = Exhibit("claims", "Claims", "claims", "retbench report", lambda _: [table], lambda _: {}, sums_up=True)
    text = page([Drawn(exhibit, tuple(sweep()), (table,))])

    counted = re.findall(r'<b>(\d+)</b> <span class="verdict \w+">([\w ]+)</span>', text)
    assert counted == [("2", "supported"), ("1", "not supported"), ("1", "undecided"), ("1", "not run")]


def test_a_claim_has_its_words_reason_and_command() -> None:
    (ledger,) = draw(LEDGER, sweep())
    text = page([ledger])
    words = " ".join(Parts(text).words)

    for name in ("says", "reason", "command"):
        at = next(place for place, column in enumerate(ledger.tables[0].columns) if column.name == name)
        assert all(row[at].text in words for row in ledger.tables[0].rows)
    assert text.count('<li><div><span class="verdict') == len(ledger.tables[0].rows) > 5


def test_a_figure_of_other_shapes_stays_a_picture() -> None:
    def image(_: Sequence[Record]) -> dict[str, Figure]:
        figure = Figure()
        figure.subplots().imshow([[1, 2], [3, 4]])
        return {"image": figure}

    exhibit = Exhibit("image", "Image", "inference", "retbench inference", lambda _: [], image)
    text = page(draw([exhibit], sweep()))

    assert '<img alt="Image" src="data:image/svg+xml;base64,' in text


@pytest.mark.parametrize(
    "records", [[record()], [failed(cell(), "skipped", "no room")], sweep(("brand-new",), batches=(1,))]
)
def test_odd_records_make_a_page(records: list[Record]) -> None:
    assert html(records).endswith("</html>")
