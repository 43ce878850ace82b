"""Prefill in segments of positions: the same as the training form, whatever the segment, and no copy of the prompt."""

# B batch, T positions, V vocabulary

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import language_model, systems
from models.language_model import segments
from models.retnet import Form
from tests.models.helpers import (
    FORMS,
    Reading,
    ends,
    error,
    in_form,
    random_model,
    random_tokens,
    read,
    readings,
    repeatable,
    shared_model,
)


@pytest.mark.parametrize("system", systems())
@given(reading=readings, segment=st.integers(1, 30))
@repeatable
def test_prefill_in_segments_and_steps_equal_the_training_form(system: str, reading: Reading, segment: int) -> None:
    batch_size, pieces, steps = reading
    tokens = random_tokens(batch_size, sum(pieces) + steps)
    model = shared_model(system, torch.float64)
    with torch.no_grad():
        expected = model(tokens)

    with patch.object(language_model, "SEGMENT", segment):
        actual = read(model, tokens, pieces)

    assert error(actual, expected[:, ends(pieces, tokens.shape[1])]) < 1e-10


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 64])
@pytest.mark.parametrize("form", FORMS)
def test_segments_need_not_be_whole_chunks(form: Form, chunk_size: int) -> None:
    model = random_model("retnet")
    tokens = random_tokens(2, 23)
    with torch.no_grad():
        expected = in_form(model, "recurrent")(tokens)

    with patch.object(language_model, "SEGMENT", 5):
        actual = read(in_form(model, form, chunk_size), tokens, [16])

    assert error(actual, expected[:, ends([16], 23)]) < 1e-10


def test_segments_of_a_model_without_group_norm_keep_the_row_scales_of_their_positions() -> None:
    model = random_model("retnet-no-groupnorm")
    tokens = random_tokens(2, 23)
    expected = model(tokens).detach()

    with patch.object(language_model, "SEGMENT", 4):
        actual = read(model, tokens, [9, 10])

    assert error(actual, expected[:, ends([9, 10], 23)]) < 1e-10


@given(start=st.integers(0, 50), length=st.integers(1, 40), segment=st.integers(1, 50))
@repeatable
def test_segments_cover_all_positions_once_and_say_where_they_stand(start: int, length: int, segment: int) -> None:
    positions = shared_model("retnet", torch.float64).positions(start, length)
    with patch.object(language_model, "SEGMENT", segment):
        found = list(segments(positions))

    assert [index for rows, _ in found for index in range(rows.start, rows.stop)] == list(range(length))
    assert all(piece.start == start + rows.start for rows, piece in found)
    assert torch.equal(torch.cat([piece.cos for _, piece in found]), positions.cos)
    assert torch.equal(torch.cat([piece.sin for _, piece in found]), positions.sin)
