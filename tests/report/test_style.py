"""Colours and markers."""

import pytest

from models.catalogue import paper_systems, peers
from retbench.report.style import KNOWN, looks, named, plain


def test_known_systems_look_the_same_in_every_company() -> None:
    alone, together = looks(["retnet"]), looks(["rwkv", "retnet", "transformer"])

    assert alone["retnet"] == together["retnet"] == KNOWN["retnet"]


def test_unknown_systems_get_distinct_looks_that_depend_on_names_alone() -> None:
    names = [f"system-{number}" for number in range(30)]
    chosen = looks(iter([*names, *KNOWN]))

    assert len(set(chosen.values())) == len(chosen)
    assert chosen == looks([*KNOWN, *reversed(names)])


@pytest.mark.parametrize(
    "systems",
    [
        ["retnet", *(name for name in paper_systems() if "transformer" in name), "lstm", "rwkv", "h3", "hyena"],
        [name for name in paper_systems() if name.startswith("retnet")],
    ],
)
def test_systems_of_one_figure_have_distinct_colours(systems: list[str]) -> None:
    chosen = looks(systems)

    assert len({look.colour for look in chosen.values()}) == len(systems)


def test_a_peer_has_the_colour_of_its_twin_and_a_marker_of_its_own() -> None:
    for peer in peers().values():
        shown = [KNOWN[name] for name in (peer.twin, *peer.rows)]

        assert len({look.colour for look in shown}) == 1
        assert len({look.marker for look in shown}) == len(shown)


def test_text_of_records_is_no_formula() -> None:
    assert plain("a $x$\nb") == r"a \$x\$ b"
    assert named("x" * 90) == "x" * 37 + "..."
