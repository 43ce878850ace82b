"""The reader of the paper's numbers."""

from pathlib import Path

import pytest

from retbench.report.paper import QUANTITIES, PaperError, inference_paper, read_paper

FILE = Path(__file__).parents[2] / "experiments" / "inference.toml"


def edited(folder: Path, old: str, new: str) -> Path:
    """The project's file with one place changed."""
    text = FILE.read_text(encoding="utf-8")
    assert old in text, "the test no longer fits the file"
    path = folder / "inference.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_every_quantity_has_a_claim_bars_and_a_panel_with_both_systems() -> None:
    paper = inference_paper()

    for quantity in QUANTITIES:
        assert paper.claims[quantity].ratio.value > 1
        assert paper.bars[quantity].retnet > 0
        assert {curve.system for curve in paper.panels[quantity].curves} == {"retnet", "transformer"}


def test_the_claims_agree_with_the_bars_and_the_curves_they_summarise() -> None:
    paper = inference_paper()

    for quantity in QUANTITIES:
        claim, bars = paper.claims[quantity], paper.bars[quantity]
        of_bars = max(bars.transformer, bars.retnet) / min(bars.transformer, bars.retnet)
        assert claim.ratio.value == pytest.approx(of_bars, rel=0.1)
    memory = paper.panels["memory"]
    transformer, retnet = memory.curve("transformer"), memory.curve("retnet")
    assert transformer and retnet and memory.weights
    assert min(retnet.y) > memory.weights
    assert transformer.at(8192) / retnet.at(8192) == pytest.approx(paper.claims["memory"].ratio.value, rel=0.02)


def test_a_ratio_is_the_claim_under_its_conditions_and_of_the_figure_elsewhere() -> None:
    paper = inference_paper()
    claimed, of_figure = paper.ratio("latency", 8192, 8), paper.ratio("latency", 4096, 1)

    assert claimed == paper.claims["latency"].ratio and claimed.how == "read"
    assert of_figure is not None and of_figure.how == "estimated" and of_figure.value > 1
    assert paper.ratio("memory", 2048, 8).how == "digitized"
    assert paper.ratio("throughput", 2048, 8).value > 1
    assert paper.ratio("memory", 2048, 1) is None
    assert paper.ratio("latency", 300, 8) is None


def test_the_setting_says_what_the_paper_does_not_state() -> None:
    words = inference_paper().setting.words

    assert words.endswith("batch 8 inferred")
    assert words.startswith("6.7B, A100-80GB;")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[setting]", "[setting", "inference.toml: "),
        ("ratio = 3.4", 'ratio = "3.4"', "headline: memory: ratio must be a number, not '3.4'"),
        ("ratio = 3.4\n", "", "headline: memory: ratio is missing"),
        (
            '70 % saved"\nhow = "read"',
            '70 % saved"\nhow = "guessed"',
            "how must be one of read, digitized, estimated, not 'guessed'",
        ),
        ('source = "figure1"', 'source = "figure9"', "sources: figure9 is missing"),
        ("[21.42, ", "[", "figure6: memory: values: transformer has 6 values for 7 points of the x axis"),
        ("[90.3, ", "[true, ", "throughput: values: transformer must be a list of numbers"),
        ("[90.3, ", '["90.3", ', "throughput: values: transformer must be a list of numbers"),
        ("{ 8192 = [27.5, 27.5] }", "{ long = [27.5, 27.5] }", "keys must be lengths, not long"),
        ('["dtype", "batch_size"]', '["type"]', "inferred names type, which is not a field"),
        ("[figure1.latency]", "[figure1.delay]", "figure1: latency is missing"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_and_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(PaperError) as caught:
        read_paper(edited(tmp_path, old, new))

    assert str(caught.value).startswith("inference.toml: ")
    assert message in str(caught.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(PaperError, match=r"^nothing\.toml: "):
        read_paper(tmp_path / "nothing.toml")
