"""Retention through a stand-in for fla-core equals the plain forms; a package that differs or fails is not used."""

# B batch, T positions, H heads, K key dim, V value dim

import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from models import build, fla, retention
from models.language_model import LanguageModel
from tests.models.helpers import (
    Reading,
    ends,
    error,
    gradient_error,
    gradients,
    random_model,
    random_tokens,
    read,
    readings,
    repeatable,
)

CPU = torch.device("cpu")
HEADS = ("linspace", 2, 16, 32)


@pytest.mark.usefixtures("fla_package")
@pytest.mark.parametrize("gamma", ["linspace", "eq8"])
def test_a_retnet_gives_the_same_with_fla(gamma: str) -> None:
    @given(reading=readings)
    @repeatable
    def check(reading: Reading) -> None:
        batch_size, pieces, steps = reading
        tokens = random_tokens(batch_size, sum(pieces) + steps)
        expected = plain(tokens).detach()

        assert error(other(tokens).detach(), expected) < 1e-10
        assert error(read(other, tokens, pieces), expected[:, ends(pieces, tokens.shape[1])]) < 1e-10

    plain, other = (random_model("retnet", gamma=gamma, retention=name) for name in ("torch", "fla"))
    check()

    assert (plain.backend, other.backend) == ("torch", "fla")
    assert gradient_error(gradients(other, random_tokens(2, 23)), gradients(plain, random_tokens(2, 23))) < 1e-10


def test_a_bf16_model_hands_decays_and_state_to_fla_in_float32(fla_package: ModuleType) -> None:
    seen: list[dict[str, Any]] = []

    def recording(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
            seen.append(options)
            return kernel(q, k, v, **options)

        return run

    for name in ("chunk_simple_gla", "fused_recurrent_simple_gla"):
        setattr(fla_package, name, recording(getattr(fla_package, name)))
    model = build("retnet", "tiny", vocab_size=8, retention="fla").to(torch.bfloat16)
    state = model.init_state(1, 8)
    addresses = [tensor.data_ptr() for tensor in state.tensors()]

    read(model, random_tokens(1, 7, vocab_size=8), [5], state)

    assert len(seen) == 3 * 2  # a prefill and two steps of two layers
    assert {options["g_gamma"].dtype for options in seen} == {torch.float32}
    assert {options["initial_state"].dtype for options in seen} == {torch.float32}
    assert [tensor.data_ptr() for tensor in state.tensors()] == addresses


@pytest.mark.usefixtures("fla_package")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_package_that_agrees_is_not_refused(dtype: torch.dtype) -> None:
    assert fla.refusal(CPU, dtype, *HEADS) is None


def own_gammas(q: Tensor, k: Tensor, v: Tensor, g_gamma: Tensor, initial_state: Tensor, **options: Any) -> Any:
    log_gamma = retention.log_decays("eq8", len(g_gamma))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, state = retention.parallel(q, k, v, log_gamma, initial_state)
    return out.transpose(1, 2), state


def not_a_number(q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor, **options: Any) -> Any:
    return v * torch.nan, initial_state


def too_little_memory(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("out of resource: shared memory\nand more")


@pytest.mark.parametrize("name", ["chunk_simple_gla", "fused_recurrent_simple_gla"])
@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (own_gammas, "errs by .* where .* is allowed"),
        (not_a_number, "errs by nan"),
        (too_little_memory, "does not run here: RuntimeError: out of resource: shared memory$"),
    ],
)
def test_a_package_that_differs_or_fails_is_refused(
    fla_package: ModuleType, name: str, kernel: Callable[..., Any], reason: str
) -> None:
    setattr(fla_package, name, kernel)

    refusal = fla.refusal(CPU, torch.float32, *HEADS)

    assert refusal is not None
    assert re.search(reason, refusal)


def test_kernels_of_less_precision_than_the_dtype_are_refused(fla_package: ModuleType) -> None:
    kernel = vars(fla_package)["chunk_simple_gla"]

    def tf32(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        return kernel(*(x.half().to(x.dtype) for x in (q, k, v)), **options)  # 10 bits of mantissa, as TF32 has

    vars(fla_package)["chunk_simple_gla"] = tf32

    assert "errs by" in str(fla.refusal(CPU, torch.float32, *HEADS))


def test_without_the_package_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", None)
    fla.refusal.cache_clear()
    model = random_model("retnet", retention="fla")

    with pytest.raises(RuntimeError, match=r"fla-core package: pip install retbench\[cuda\]"):
        model(random_tokens(1, 4))
    assert "fla-core package: pip install retbench[cuda]" in str(fla.refusal(CPU, torch.float32, *HEADS))


def test_auto_stays_with_plain_torch_on_the_cpu_and_asks_nothing() -> None:
    fla.refusal.cache_clear()
    model = random_model("retnet")

    model(random_tokens(1, 4))

    assert model.backend == "torch"
    assert model.backend_refusals() == {}
    assert fla.refusal.cache_info().misses == 0


class OnCuda:
    """What a model asks of a weight to choose its backend, of one on a GPU."""

    is_cuda, device, dtype = True, torch.device("cuda"), torch.bfloat16


@pytest.mark.parametrize(
    ("system", "fast", "plain", "probe"),
    [
        ("retnet", "fla", "torch", "models.fla.refusal"),
        ("transformer-flash", "flash-attn", "sdpa", "models.attention.flash_attn_refusal"),
    ],
)
@pytest.mark.parametrize("reason", [None, "errs by 2 here, where 1 is allowed"])
def test_on_cuda_the_probe_decides(
    monkeypatch: pytest.MonkeyPatch, system: str, fast: str, plain: str, probe: str, reason: str | None
) -> None:
    model: LanguageModel = build(system, "tiny", vocab_size=8)
    monkeypatch.setattr(probe, lambda *heads: reason)
    monkeypatch.setattr(type(model.embedding), "weight", OnCuda, raising=False)

    assert model.backend == (plain if reason else fast)
    assert model.backend_refusals() == ({fast: reason} if reason else {})
