"""Our models behind lm-eval's interface: what it gets from texts is what the model gives for their tokens."""

import itertools

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from models import build
from models.language_model import LanguageModel
from retbench.evaluate.lm import ContractLM
from retbench.evaluate.scoring import Scorer
from retbench.generate import generate
from retbench.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build("retnet", "tiny", vocab_size=256).double()


def lm_of(model: LanguageModel, max_length: int = 128) -> ContractLM:
    return ContractLM(Scorer(model, max_length), ByteTokenizer())


def requests(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
    return [Instance(kind, {}, arguments=some, idx=at) for at, some in enumerate(arguments)]


def loglikelihood(model: LanguageModel, ids: list[int], start: int) -> float:
    """Of the ids from ``start`` on."""
    with torch.no_grad():
        values = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    return sum(values[at - 1, ids[at]].item() for at in range(start, len(ids)))


def test_a_continuation_begins_with_the_blanks_of_its_context(model: LanguageModel) -> None:
    ((value, _),) = lm_of(model).loglikelihood(requests("loglikelihood", ("The sky is ", "blue")))

    assert value == pytest.approx(loglikelihood(model, list(b"The sky is blue"), len("The sky is")))


def test_an_empty_context_is_the_end_of_a_text_where_the_tokenizer_has_no_bos(model: LanguageModel) -> None:
    ((value, _),) = lm_of(model).loglikelihood(requests("loglikelihood", ("", "blue")))

    assert value == pytest.approx(loglikelihood(model, list(b"\0blue"), 1))


def test_a_rolling_loglikelihood_counts_every_token_once_in_windows(model: LanguageModel) -> None:
    text = "The quick brown fox"
    whole, cut = (lm_of(model, length).loglikelihood_rolling(requests("r", (text,), ("fox",))) for length in (128, 8))

    assert whole == pytest.approx([loglikelihood(model, list(f"\0{t}".encode()), 1) for t in (text, "fox")])
    assert cut[1] == pytest.approx(whole[1])
    assert cut[0] == pytest.approx(rolling(model, list(f"\0{text}".encode()), 8))


def rolling(model: LanguageModel, ids: list[int], length: int) -> float:
    """Full windows, the last of them moved back so that it is full too."""
    total, start = 0.0, 1
    while start < len(ids):
        end = min(start + length, len(ids))
        first = max(min(start - 1, end - 1 - length), 0)
        total += loglikelihood(model, ids[first:end], start - first)
        start = end
    return total


def test_generation_ends_before_a_stop_string_or_at_its_length(model: LanguageModel) -> None:
    ids = list(itertools.islice(generate(model, list(b"Once")), 12))
    text = ByteTokenizer().decode(ids)
    stop = text[5:7]
    made = lm_of(model).generate_until(
        requests("generate_until", ("Once", {"until": [stop], "max_gen_toks": 12}), ("Once", {"max_gen_toks": 12}))
    )

    assert made == [text[: text.find(stop)], text]


def test_each_request_keeps_its_own_length_and_stops(model: LanguageModel) -> None:
    whole = ByteTokenizer().decode(list(itertools.islice(generate(model, list(b"Once")), 12)))
    asked = [
        ("Once", {"until": whole[4], "max_new_tokens": 12, "temperature": 0.7, "do_sample": False}),
        ("Once", {"until": ["", whole[6:9], "never"], "max_gen_toks": 12}),
        ("Once", {"until": None, "max_gen_toks": 3}),
    ]

    assert lm_of(model).generate_until(requests("generate_until", *asked)) == [
        whole[: whole.find(whole[4])],
        whole[: whole.find(whole[6:9])],
        whole[:3],
    ]


def test_a_context_gives_way_to_what_is_generated(model: LanguageModel) -> None:
    options = {"max_gen_toks": 6}
    (cut,) = lm_of(model, 10).generate_until(requests("generate_until", ("It was Once", options)))
    (short,) = lm_of(model).generate_until(requests("generate_until", ("Once", options)))

    assert cut == short
    with pytest.raises(ValueError, match="leave no room for a context in 6"):
        lm_of(model, 6).generate_until(requests("generate_until", ("Once", options)))


def test_what_was_cut_is_kept_and_progress_is_told(model: LanguageModel) -> None:
    told: list[tuple[int, int]] = []
    lm = ContractLM(Scorer(model, 16), ByteTokenizer(), lambda done, total: told.append((done, total)))
    lm.loglikelihood(requests("loglikelihood", ("x" * 30, " yes"), ("short", " no")))

    assert [score.truncated for score in lm.scores] == [30 + 4 - 1 - 16, 0]
    assert told[-1] == (2, 2)
