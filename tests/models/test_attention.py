"""The attention backends against softmax attention written out, and flash-attn through a stand-in for the package."""

# B batch, H query heads, G key-value heads, T new positions, S all positions, K head dim

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import attention
from tests.models.helpers import (
    TOLERANCE,
    ends,
    error,
    gradient_error,
    gradients,
    random_model,
    random_tokens,
    read,
    repeatable,
)


def random_qkv(batch_size: int, kv_heads: int, group: int, new: int, old: int) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, T, K) of the last T of S positions, k and v (B, G, S, K), in float64."""
    generator = torch.Generator().manual_seed(batch_size + 10 * new + 100 * old)
    shapes = [(kv_heads * group, new), (kv_heads, new + old), (kv_heads, new + old)]
    q, k, v = (torch.randn(batch_size, *shape, 8, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention one query at a time."""
    group, old = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    out = torch.empty_like(q)
    for b, h, n in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])).tolist():
        seen_k, seen_v = (x[b, h // group, : old + n + 1] for x in (k, v))  # (S, K)
        weights = (seen_k @ q[b, h, n] / q.shape[-1] ** 0.5).exp()
        out[b, h, n] = weights @ seen_v / weights.sum()
    return out


@pytest.mark.usefixtures("flash_attn_package")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", attention.BACKENDS)
def test_every_backend_equals_attention_written_out(backend: str, dtype: torch.dtype) -> None:
    @given(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 12), st.integers(0, 12))
    @repeatable
    def check(batch_size: int, kv_heads: int, group: int, new: int, old: int) -> None:
        q, k, v = random_qkv(batch_size, kv_heads, group, new, old)

        out = attention.BACKENDS[backend](q.to(dtype), k.to(dtype), v.to(dtype))

        assert out.shape == q.shape
        assert out.dtype == dtype
        assert error(out, written_out(q, k, v)) < TOLERANCE[dtype]

    check()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_bf16_attention_over_many_positions_keeps_its_precision(backend: str) -> None:
    q, k, v = (x.to(torch.bfloat16) for x in random_qkv(1, 2, 2, 512, 0))

    out = attention.BACKENDS[backend](q, k, v)

    assert out.dtype == torch.bfloat16
    assert error(out, attention.eager(q.double(), k.double(), v.double())) < 0.1


def test_causal_mask_lets_the_last_positions_see_themselves_and_what_came_before() -> None:
    mask = attention.causal_mask(2, 4, torch.device("cpu"))

    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.usefixtures("flash_attn_package")
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("backend", ["sdpa", "flash-attn"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_transformer_gives_the_same_with_every_backend(backend: str, n_kv_heads: int, dtype: torch.dtype) -> None:
    options = {"n_heads": 4, "n_kv_heads": n_kv_heads}
    eager, other = (random_model("transformer", attention=name, **options).to(dtype) for name in ("eager", backend))
    tokens = random_tokens(2, 23)
    expected = eager(tokens).detach()

    assert error(other(tokens).detach(), expected) < TOLERANCE[dtype]
    assert error(read(other, tokens, [9, 1, 8]), expected[:, ends([9, 1, 8], 23)]) < TOLERANCE[dtype]
    assert gradient_error(gradients(other, tokens), gradients(eager, tokens)) < TOLERANCE[dtype]


@pytest.mark.usefixtures("flash_attn_package")
def test_flash_attn_has_the_gradients_of_a_text_of_one_token() -> None:
    eager, other = (random_model("transformer", attention=name) for name in ("eager", "flash-attn"))
    found, expected = (
        {name: g for name, g in gradients(m, random_tokens(2, 1)).items() if "v_proj" in name} for m in (other, eager)
    )

    assert len(found) == 2
    assert gradient_error(found, expected) < 1e-10


def test_flash_attn_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    model = random_model("transformer", attention="flash-attn")

    with pytest.raises(RuntimeError, match=r"flash-attn package: pip install retbench\[cuda\]"):
        model(random_tokens(1, 4))
