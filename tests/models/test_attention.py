"""The attention backends against softmax attention written out, and flash-attn through a stand-in for the package."""

# B batch, H query heads, G key-value heads, T new positions, S all positions, K head dim

import sys
from types import ModuleType

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

# Stand-ins for the two functions of the package: their documented signatures, layouts and demands.


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """q (B, T, H, K), k and v (B, S, G, K) -> (B, T, H, K); the causal mask is aligned to the bottom right."""
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.shape[2] % k.shape[2] == 0
    assert causal
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bthk,bshk->bhts", q, k) * (softmax_scale or q.shape[-1] ** -0.5)
    rows, columns = torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])
    scores = scores.where(columns <= rows + k.shape[1] - q.shape[1], -torch.inf)
    return torch.einsum("bhts,bshk->bthk", scores.softmax(-1), v)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | int | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor:
    """q (B, T, H, K) after all of k_cache and v_cache (B, S, G, K) -> (B, T, H, K); it has no gradient."""
    assert k is None
    assert v is None
    return flash_attn_func(q, k_cache, v_cache, softmax_scale=softmax_scale, causal=causal).detach()


@pytest.fixture
def flash_attn_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("flash_attn")
    vars(package).update(flash_attn_func=flash_attn_func, flash_attn_with_kvcache=flash_attn_with_kvcache)
    monkeypatch.setitem(sys.modules, "flash_attn", package)


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


def test_flash_attn_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    model = random_model("transformer", attention="flash-attn")

    with pytest.raises(RuntimeError, match=r"flash-attn package: pip install retbench\[cuda\]"):
        model(random_tokens(1, 4))
