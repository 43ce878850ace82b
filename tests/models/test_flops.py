"""The formula of operations against a count of every pair, and against torch's own counter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from models import build, configure
from models.flops import forward_flops
from models.retnet import RetNetConfig
from tests.models.helpers import random_tokens, repeatable


@repeatable
@given(seq_len=st.integers(1, 70), chunk_size=st.integers(1, 80))
def test_retention_counts_pairs_within_chunks_and_one_read_and_write_of_the_state(
    seq_len: int, chunk_size: int
) -> None:
    config = configure("retnet", "tiny", chunk_size=chunk_size)
    plain = configure("retnet", "tiny", chunk_size=1)
    assert isinstance(config, RetNetConfig)

    pairs = sum(position % chunk_size + 1 for position in range(seq_len))  # what each position sees of its chunk
    each = 2 * config.n_heads * (config.d_k + config.d_v)
    difference = forward_flops(config, seq_len, 1) - forward_flops(plain, seq_len, 1)
    assert difference == config.n_layers * each * (pairs - seq_len)


@pytest.mark.parametrize("options", [{}, {"ffn": "swiglu"}, {"n_kv_heads": 1}])
@pytest.mark.parametrize("logits", [1, 48])
def test_the_formula_is_what_torch_counts_but_for_the_pairs_that_causal_attention_never_sees(
    logits: int, options: dict[str, object]
) -> None:
    model = build("transformer", "tiny", vocab_size=61, **options)
    tokens = random_tokens(1, 48)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens) if logits == 48 else model.prefill(tokens)
    unseen = 2 * 2 * model.config.d_model * (48 * 48 - 48 * 49 // 2)
    assert counter.get_total_flops() == forward_flops(model.config, 48, logits) + model.config.n_layers * unseen


def test_one_token_costs_twice_the_weights_and_the_state() -> None:
    config = configure("retnet", "tiny")
    assert isinstance(config, RetNetConfig)

    weights = config.n_layers * 12 * 128**2 + 128 * config.vocab_size
    state = config.n_layers * config.n_heads * config.d_k * config.d_v
    own = config.n_layers * 2 * config.n_heads * (config.d_k + config.d_v)  # the pair of the token with itself
    assert forward_flops(config, 1, 1) == 2 * weights + 4 * state + own
