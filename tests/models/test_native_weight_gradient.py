"""Gradients of weights by tiles: the product of float64 but for rounding, used by linear layers where they can."""

# N rows, I input channels, O output channels

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models import linear
from models.linear import LEAST_ROWS, Linear, _is_native
from models.native import library as native
from models.native.library import plain_code
from models.native.weight_gradient import weight_gradient
from tests.models.helpers import on_threads, relative_error, repeatable

needs_tiles = pytest.mark.usefixtures("tiles")

channels = st.integers(1, 10).map(lambda count: 32 * count)
rows_and_channels = st.tuples(st.integers(1, 700), channels, channels)  # N, O, I

# Around the rows that are multiplied at once, the outputs of a block, and the first of each.
SIZES = [
    *((rows, 64, 32) for rows in (1, 2, 31, 32, 33, 511, 512, 513, 1024, 1100)),
    *((70, outputs, 96) for outputs in (32, 224, 256, 288, 512, 544, 1088)),
    *((600, 320, inputs) for inputs in (32, 1056)),
]


def operands(rows: int, outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Of the gradient: grad_out (N, O) and input (N, I), normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    grad_out, x = (torch.randn(rows, width, generator=generator).bfloat16() for width in (outputs, inputs))
    return grad_out, x


def whole_operands(rows: int, outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Small whole numbers, whose sums are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    grad_out, x = (torch.randint(-7, 8, (rows, width), generator=generator).bfloat16() for width in (outputs, inputs))
    return grad_out, x


@needs_tiles
@given(size=rows_and_channels, threads=st.integers(1, 3), seed=st.integers(0, 99))
@settings(repeatable, max_examples=50)
def test_a_gradient_is_the_float64_product_but_for_rounding(
    size: tuple[int, int, int], threads: int, seed: int
) -> None:
    grad_out, x = operands(*size, seed)
    exact, sizes = grad_out.double().T @ x.double(), grad_out.double().abs().T @ x.double().abs()

    with on_threads(threads):
        gradient, _ = weight_gradient(grad_out, x)

    assert gradient.dtype == torch.bfloat16
    assert gradient.is_contiguous()
    difference = (gradient.double() - exact).abs()
    assert (difference <= 2**-8 * exact.abs() + 2**-18 * sizes).all()  # half a digit of bf16, and of float32 sums


@needs_tiles
@given(size=rows_and_channels, threads=st.integers(1, 3), seed=st.integers(0, 99))
@settings(repeatable, max_examples=50)
def test_small_whole_numbers_give_the_exact_gradient(size: tuple[int, int, int], threads: int, seed: int) -> None:
    grad_out, x = whole_operands(*size, seed)

    with on_threads(threads):
        gradient, _ = weight_gradient(grad_out, x)

    assert torch.equal(gradient, (grad_out.double().T @ x.double()).bfloat16())


@needs_tiles
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_the_borders_of_blocks_are_exact(size: tuple[int, int, int], threads: int) -> None:
    grad_out, x = whole_operands(*size)

    with on_threads(threads):
        gradient, _ = weight_gradient(grad_out, x)

    assert torch.equal(gradient, (grad_out.double().T @ x.double()).bfloat16())


@needs_tiles
def test_a_row_that_is_not_finite_stays_where_it_is() -> None:
    grad_out, x = operands(100, 64, 64)
    grad_out[99, 3] = torch.nan
    x[50, 7] = torch.inf

    gradient, _ = weight_gradient(grad_out, x)

    assert gradient[3].isnan().all()
    assert not gradient[:, 7].isfinite().any()
    gradient[3], gradient[:, 7] = 0, 0
    assert gradient.isfinite().all()


@needs_tiles
@pytest.mark.parametrize("threads", [1, 3])
def test_a_trace_on_fake_tensors_gives_the_shapes_dtypes_and_memory_of_a_run(threads: int) -> None:
    def found(*tensors: Tensor) -> list[tuple[torch.Size, torch.dtype, tuple[int, ...]]]:
        return [(x.shape, x.dtype, x.stride()) for x in weight_gradient(*tensors)]

    with on_threads(threads):
        for size in SIZES:
            with FakeTensorMode() as mode:
                traced = found(*map(mode.from_tensor, operands(*size)))

            assert traced == found(*operands(*size))


@needs_tiles
def test_the_operator_keeps_what_it_promises_to_torch() -> None:
    promises = ("test_schema", "test_faketensor")

    torch.library.opcheck(torch.ops.retbench.weight_gradient.default, operands(70, 64, 32), test_utils=promises)


@needs_tiles
def test_torchs_counter_sees_one_product() -> None:
    with FlopCounterMode(display=False) as counter:
        weight_gradient(*operands(70, 64, 32))

    assert counter.get_total_flops() == 2 * 70 * 64 * 32


# ---- in linear layers ----


def layer_and_input(
    rows: int = LEAST_ROWS, inputs: int = 64, outputs: int = 96, bias: bool = False, dtype: torch.dtype = torch.bfloat16
) -> tuple[Linear, Tensor]:
    """A random layer, I -> O, and an input (N, I) that needs a gradient."""
    generator = torch.Generator().manual_seed(rows)
    layer = Linear(inputs, outputs, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
    return layer, torch.randn(rows, inputs, generator=generator).to(dtype).requires_grad_()


def with_gradients(product: Callable[[Tensor], Tensor], layer: Linear, x: Tensor, grad_out: Tensor) -> list[Tensor]:
    """The product, and the gradients of x and of the weights."""
    out = product(x)
    return [out.detach(), *torch.autograd.grad(out, (x, layer.weight), grad_out.to(out.dtype))]


@needs_tiles
@given(rows=st.integers(LEAST_ROWS, 300), inputs=channels, outputs=channels, batched=st.booleans())
@repeatable
def test_a_layer_has_the_product_and_gradients_of_torch(rows: int, inputs: int, outputs: int, batched: bool) -> None:
    layer, x = layer_and_input(rows, inputs, outputs)
    shape = (2, rows) if batched else (rows,)
    x = x.detach().expand(*shape, inputs).clone().requires_grad_()
    grad_out = torch.randn(*shape, outputs, generator=torch.Generator().manual_seed(1)).bfloat16()

    plain = with_gradients(lambda x: F.linear(x, layer.weight), layer, x, grad_out)
    with patch.object(linear, "weight_gradient", wraps=weight_gradient) as natively:
        found = with_gradients(layer, layer, x, grad_out)

    assert natively.call_count == 1
    assert torch.equal(found[0], plain[0])
    assert all(actual.shape == wanted.shape for actual, wanted in zip(found, plain, strict=True))
    assert max(relative_error(*pair) for pair in zip(found, plain, strict=True)) < 2**-7
    exact = grad_out.flatten(0, -2).double().T @ x.detach().flatten(0, -2).double()
    assert relative_error(found[2], exact) < 1.1 * relative_error(plain[2], exact) + 2**-12


@needs_tiles
def test_inputs_and_gradients_of_any_strides_give_the_same_gradients() -> None:
    layer, x = layer_and_input(200, 64, 96)
    grad_out = torch.randn(200, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = with_gradients(layer, layer, x, grad_out)
    wide = torch.zeros(200, 128, dtype=torch.bfloat16)
    wide[:, 32:96] = x.detach()
    turned, part = x.detach().T.contiguous().T.requires_grad_(), wide[:, 32:96].requires_grad_()

    for strided in (turned, part):
        found = with_gradients(layer, layer, strided, grad_out.T.contiguous().T)

        assert not strided.is_contiguous()
        assert all(torch.equal(*pair) for pair in zip(found[1:], expected[1:], strict=True))
    spread = torch.autograd.grad(layer(x).sum(), layer.weight)
    (ones,) = with_gradients(layer, layer, x, torch.ones(200, 96))[2:]
    assert torch.equal(spread[0], ones)


NEVER: dict[str, tuple[dict[str, Any], Callable[[], AbstractContextManager[object]]]] = {
    "a bias": ({"bias": True}, nullcontext),
    "inputs that 32 does not divide": ({"inputs": 48}, nullcontext),
    "outputs that 32 does not divide": ({"outputs": 61}, nullcontext),
    "few rows": ({"rows": LEAST_ROWS - 1}, nullcontext),
    "float32": ({"dtype": torch.float32}, nullcontext),
    "float16": ({"dtype": torch.float16}, nullcontext),
    "autocast": ({}, partial(torch.autocast, "cpu", torch.bfloat16)),
    "float32 under autocast": ({"dtype": torch.float32}, partial(torch.autocast, "cpu", torch.bfloat16)),
    "native code switched off": ({}, plain_code),
}


@pytest.mark.parametrize("why", NEVER)
def test_everything_else_stays_with_torch(why: str) -> None:
    options, context = NEVER[why]
    layer, x = layer_and_input(**options)
    grad_out = torch.ones(len(x), layer.out_features)

    with (
        context(),
        patch.object(linear, "weight_gradient", side_effect=AssertionError),
        patch.object(linear, "onednn_refusal", lambda _: "no"),
    ):
        expected = with_gradients(lambda x: F.linear(x, layer.weight, layer.bias), layer, x, grad_out)
        found = with_gradients(layer, layer, x, grad_out)

    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_without_tiles_or_a_library_torch_computes_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_and_input()

    for loaded in (SimpleNamespace(retbench_has_tiles=lambda: 0), native.UnavailableError("no compiler")):
        monkeypatch.setattr(native, "loaded_library", lambda loaded=loaded: loaded)

        assert not _is_native(x, layer.weight)
        expected = with_gradients(lambda x: F.linear(x, layer.weight), layer, x, torch.ones(LEAST_ROWS, 96))
        found = with_gradients(layer, layer, x, torch.ones(LEAST_ROWS, 96))
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which operators torch runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        self.names += [str(func)] if func.namespace != "prim" else []  # fake tensors are asked for their device
        return func(*args, **(kwargs or {}))


def ran(product: Callable[[Tensor], Tensor], x: Tensor) -> list[str]:
    operators = Operators()
    with operators:
        product(x)
    return operators.names


@pytest.mark.parametrize("why", ["no grad", "inference mode", "frozen weights"])
def test_without_a_gradient_of_the_weights_only_torchs_product_runs(why: str) -> None:
    layer, x = layer_and_input()
    if why == "frozen weights":
        layer.weight.requires_grad_(False)
    context = {"no grad": torch.no_grad, "inference mode": torch.inference_mode}.get(why, nullcontext)

    with context(), patch.object(linear._NativeGradient, "apply", side_effect=AssertionError):
        operators = ran(layer, x)
        out = layer(x)

    products = [name for name in operators if any(part in name for part in ("mm", "linear", "retbench"))]
    assert products in (["aten.mm.default"], ["aten.linear.default"])
    if why == "frozen weights":
        out.sum().backward()
        assert x.grad is not None
    else:
        assert not out.requires_grad


@needs_tiles
@pytest.mark.parametrize(("of", "products"), [("x", ["mm"]), ("weight", ["weight_gradient"])])
def test_only_the_gradient_that_is_needed_is_computed(of: str, products: list[str]) -> None:
    layer, x = layer_and_input()
    layer.weight.requires_grad_(of == "weight")
    x.requires_grad_(of == "x")
    out = layer(x).sum()

    with Operators() as operators:
        out.backward()

    assert [name.split(".")[1] for name in operators.names if "mm" in name or "retbench" in name] == products
    assert (x.grad is None) == (of == "weight")
    assert (layer.weight.grad is None) == (of == "x")


@needs_tiles
def test_a_trace_of_a_layer_has_the_shapes_and_operators_of_a_run() -> None:
    def run() -> tuple[list[str], list[tuple[torch.Size, torch.dtype]]]:
        layer, x = Linear(64, 96, bias=False, dtype=torch.bfloat16), torch.zeros(2, 70, 64, dtype=torch.bfloat16)
        x.requires_grad_()
        with Operators() as operators:
            out = layer(x)
            found = torch.autograd.grad(out, (x, layer.weight), torch.ones(2, 70, 96, dtype=torch.bfloat16))
        return operators.names, [(tensor.shape, tensor.dtype) for tensor in (out, *found)]

    with FakeTensorMode():
        traced = run()

    assert traced == run()
    assert "retbench.weight_gradient.default" in traced[0]
