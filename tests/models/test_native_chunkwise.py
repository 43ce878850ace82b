"""Retention by tiles: as near to float64 as the plain form in bf16, exact where numbers are; else torch's own."""

# B batch, T positions, H heads, K key dim, V value dim of a head

import copy
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from models import build, retention
from models.flops import forward_flops
from models.language_model import LanguageModel
from models.native import library as native
from models.native.chunkwise import chunkwise
from models.native.library import plain_code
from models.native.tiles import refusal
from models.retention import chunkwise_flops
from models.retnet import RetNetConfig
from models.rotary import STYLES, rotate, rotation
from tests.models.helpers import in_form, on_threads, random_tokens, read, relative_error, repeatable

SCHEDULES = ("linspace", "eq8", "single", "none")
ROUNDING = 2**-9  # of a number in bf16, relative; in norm, where a tensor has few numbers
LARGEST = 2**-4  # of one number's error, relative to its row: ten roundings; a product that is left out is about 1
SIGNS = 2**-5  # of a whole model: where q.k is near 0 before there is context, the group norm makes a sign of it
VOCAB_SIZE = 96  # 32 divides it, as it must for native gradients of the head

# Heads and threads: one each, heads that the threads share evenly, and values of heads that are split among them.
TEAMS = ((1, 1), (2, 2), (3, 2), (1, 2), (2, 3), (1, 4), (3, 4))

OPTIONS: dict[str, dict[str, object]] = {
    "default": {},
    "group rmsnorm": {"group_norm": "rmsnorm"},
    "affine group norm": {"group_norm_affine": True, "gamma": "eq8"},
    "no gate": {"gate": False, "value_factor": 1},
    "half-split rotary": {"rotary": "half-split"},
    "no rotary, no decay": {"rotary": "none", "gamma": "none"},
}

needs_tiles = pytest.mark.usefixtures("tiles")


@dataclass(frozen=True)
class Shape:
    """What the tests draw."""

    batch_size: int
    length: int
    n_heads: int
    d_k: int
    d_v: int
    chunk_size: int
    rotary: str
    schedule: str
    threads: int


def shapes(d_k: Sequence[int], length: int = 300) -> st.SearchStrategy[Shape]:
    return st.builds(
        Shape,
        batch_size=st.integers(1, 2),
        length=st.integers(1, length),
        n_heads=st.integers(1, 3),
        d_k=st.sampled_from(d_k),
        d_v=st.sampled_from((32, 64, 128, 192)),
        chunk_size=st.integers(1, length),
        rotary=st.sampled_from(STYLES),
        schedule=st.sampled_from(SCHEDULES),
        threads=st.integers(1, 3),
    )


@dataclass(frozen=True)
class Inputs:
    """q, k (B, T, H, K), v (B, T, H, V), a state (B, H, K, V), cos and sin (T, K/2), and gradients of both results."""

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    cos: Tensor
    sin: Tensor
    log_gamma: Tensor
    grad_out: Tensor
    grad_last: Tensor
    rotary: str
    chunk_size: int


def random_inputs(shape: Shape, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    cos, sin = rotation(10000.0 ** -torch.linspace(0, 1, shape.d_k // 2).double(), 5, shape.length, torch.float32)
    return _inputs(shape, normal, cos, sin, retention.log_decays(shape.schedule, shape.n_heads))


def whole_inputs(shape: Shape, seed: int = 0) -> Inputs:
    """Small whole numbers, quarter turns and decays of 0 and 1: with a scale of k that is a power of two, nothing that
    is computed on the way needs more digits than bf16 has.
    """
    generator = torch.Generator().manual_seed(seed)

    def whole(*size: int) -> Tensor:
        return torch.randint(-1, 2, size, generator=generator).float()

    turns = torch.randint(4, (shape.length, shape.d_k // 2), generator=generator)
    cos, sin = torch.tensor([1.0, 0.0, -1.0, 0.0])[turns], torch.tensor([0.0, 1.0, 0.0, -1.0])[turns]
    gammas = torch.randint(2, (shape.n_heads,), generator=generator).double()
    return _inputs(shape, whole, cos, sin, gammas.log())


def _inputs(shape: Shape, draw: Callable[..., Tensor], cos: Tensor, sin: Tensor, log_gamma: Tensor) -> Inputs:
    key = (shape.batch_size, shape.length, shape.n_heads, shape.d_k)
    value = (*key[:3], shape.d_v)
    memory = (shape.batch_size, shape.n_heads, shape.d_k, shape.d_v)
    return Inputs(
        q=draw(*key).bfloat16(),
        k=draw(*key).bfloat16(),
        v=draw(*value).bfloat16(),
        state=draw(*memory),
        cos=cos,
        sin=sin,
        log_gamma=log_gamma,
        grad_out=draw(*value).bfloat16(),
        grad_last=draw(*memory),
        rotary=shape.rotary,
        chunk_size=shape.chunk_size,
    )


Leaves = tuple[Tensor, Tensor, Tensor, Tensor]
Form = Callable[[Leaves, Inputs], tuple[Tensor, Tensor]]


def native_form(leaves: Leaves, inputs: Inputs) -> tuple[Tensor, Tensor]:
    rotation = (inputs.cos, inputs.sin, inputs.rotary)
    *qkv, state = leaves
    return chunkwise(*qkv, rotation=rotation, log_gamma=inputs.log_gamma, state=state, chunk_size=inputs.chunk_size)


def plain_form(leaves: Leaves, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """In the dtypes of the leaves: bf16 and a float32 state, or all in float64."""
    *qkv, state = leaves
    q, k, v = (x.transpose(1, 2) for x in qkv)  # (B, H, T, K or V)
    cos, sin = inputs.cos.to(state.dtype), inputs.sin.to(state.dtype)
    q, k = rotate(q, cos, sin, inputs.rotary), rotate(k, cos, sin, inputs.rotary, scale=k.shape[-1] ** -0.5)
    out, last = retention.chunkwise(q, k, v.contiguous(), inputs.log_gamma, state, inputs.chunk_size)
    return out.transpose(1, 2), last


def results(form: Form, inputs: Inputs, used: Sequence[Literal["out", "last"]] = ("out", "last")) -> dict[str, Tensor]:
    """Both results, and the gradients of q, k, v and the state when only those in ``used`` are used."""
    q, k, v, state = (x.detach().clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v, inputs.state))
    out, last = form((q, k, v, state), inputs)
    given = {"out": (out, inputs.grad_out.to(out.dtype)), "last": (last, inputs.grad_last.to(last.dtype))}
    outputs, weights = zip(*(given[name] for name in used), strict=True)
    found = torch.autograd.grad(outputs, (q, k, v, state), weights, materialize_grads=True)
    return dict(zip(("out", "last", "q", "k", "v", "state"), (out.detach(), last.detach(), *found), strict=True))


def doubled(inputs: Inputs) -> Inputs:
    """The same numbers in float64."""
    q, k, v, state = (x.double() for x in (inputs.q, inputs.k, inputs.v, inputs.state))
    return replace(inputs, q=q, k=k, v=v, state=state)


def same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the root mean square of its row, or to 1: the size of the inputs."""
    difference = (actual.double() - expected).abs().amax(-1)
    return (difference / expected.square().mean(-1).sqrt().clamp(min=1)).max().item()


def check_against_float64(inputs: Inputs, used: Sequence[Literal["out", "last"]] = ("out", "last")) -> None:
    """Native results are as near to float64 as plain ones: all together, and each number."""
    actual, plain = results(native_form, inputs, used), results(plain_form, inputs, used)
    expected = results(plain_form, doubled(inputs), used)

    for name, exact in expected.items():
        found = actual[name]
        assert (found.dtype, found.shape) == (plain[name].dtype, exact.shape), name
        assert found.isfinite().all(), name
        if exact.norm() == 0:
            assert found.norm() == 0, name
            continue
        assert relative_error(found, exact) < 1.5 * relative_error(plain[name], exact) + ROUNDING, name
        assert largest_error(found, exact) < LARGEST, name


# ---- results and gradients ----


@needs_tiles
@given(shape=shapes((32, 64, 96, 128)), seed=st.integers(0, 99))
@settings(repeatable, max_examples=50)
def test_results_and_gradients_are_as_near_to_float64_as_those_of_the_plain_form(shape: Shape, seed: int) -> None:
    with on_threads(shape.threads):
        check_against_float64(random_inputs(shape, seed))


@needs_tiles
@given(shape=shapes((64, 256)), seed=st.integers(0, 99))
@settings(repeatable, max_examples=50)
def test_small_whole_numbers_give_the_exact_results_and_gradients(shape: Shape, seed: int) -> None:
    inputs = whole_inputs(shape, seed)
    expected = results(plain_form, doubled(inputs))

    with on_threads(shape.threads):
        actual = results(native_form, inputs)

    for name, exact in expected.items():
        assert torch.equal(actual[name], exact.to(actual[name].dtype)), name


@needs_tiles
@pytest.mark.parametrize("rotary", STYLES)
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 64, 65])
def test_lengths_around_the_borders_of_tiles_and_chunks(length: int, rotary: str) -> None:
    for chunk_size in (1, 16, 31, 32, 33, 64, 300):
        inputs = whole_inputs(Shape(1, length, 2, 64, 64, chunk_size, rotary, "none", 1), seed=length)
        actual, expected = results(native_form, inputs), results(plain_form, doubled(inputs))

        assert all(torch.equal(actual[name], exact.to(actual[name].dtype)) for name, exact in expected.items())


@needs_tiles
@pytest.mark.parametrize("used", ["out", "last"])
@pytest.mark.parametrize("length", [1, 70, 200])
def test_gradients_when_only_one_of_the_results_is_used(used: Literal["out", "last"], length: int) -> None:
    check_against_float64(random_inputs(Shape(2, length, 2, 64, 128, 70, "interleaved", "linspace", 1)), [used])


@needs_tiles
@pytest.mark.parametrize("schedule", ["none", "eq8", "linspace"])
@pytest.mark.parametrize("chunk_size", [256, 3000])
def test_a_long_text_stays_finite_and_near_float64(schedule: str, chunk_size: int) -> None:
    check_against_float64(random_inputs(Shape(1, 3000, 3, 32, 64, chunk_size, "interleaved", schedule, 1)))


@needs_tiles
def test_the_sizes_of_the_paper_are_right() -> None:
    with on_threads(2):
        check_against_float64(random_inputs(Shape(1, 300, 3, 256, 512, 256, "interleaved", "linspace", 2)))


@needs_tiles
@given(
    first=st.integers(1, 150), rest=st.integers(1, 150), chunk_size=st.integers(1, 160), rotary=st.sampled_from(STYLES)
)
@repeatable
def test_a_text_in_two_pieces_gives_what_the_whole_gives(first: int, rest: int, chunk_size: int, rotary: str) -> None:
    def in_pieces(leaves: Leaves, inputs: Inputs) -> tuple[Tensor, Tensor]:
        *qkv, state = leaves
        outputs = []
        for rows in (slice(0, first), slice(first, None)):
            q, k, v = (x[:, rows] for x in qkv)
            piece = replace(inputs, cos=inputs.cos[rows], sin=inputs.sin[rows])
            out, state = native_form((q, k, v, state), piece)
            outputs.append(out)
        return torch.cat(outputs, dim=1), state

    inputs = random_inputs(Shape(2, first + rest, 2, 32, 64, chunk_size, rotary, "linspace", 1))
    actual, whole = results(in_pieces, inputs), results(native_form, inputs)
    exact = results(plain_form, doubled(inputs))

    for name, expected in exact.items():
        assert relative_error(actual[name], expected) < 1.5 * relative_error(whole[name], expected) + ROUNDING, name
        assert largest_error(actual[name], expected) < LARGEST, name


@needs_tiles
@pytest.mark.parametrize("d_v", [32, 64, 96, 128, 192, 256])
@pytest.mark.parametrize(("n_heads", "threads"), TEAMS)
def test_any_number_of_threads_gives_the_same_numbers(n_heads: int, threads: int, d_v: int) -> None:
    inputs = random_inputs(Shape(1, 70, n_heads, 32, d_v, 40, "half-split", "linspace", threads))
    expected = results(native_form, inputs)

    with on_threads(threads):
        actual = results(native_form, inputs)

    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@needs_tiles
def test_inputs_of_any_strides_give_the_same_numbers_and_stay_as_they_are() -> None:
    inputs = random_inputs(Shape(2, 50, 3, 32, 64, 32, "interleaved", "linspace", 1))
    expected = results(native_form, inputs)

    def turned(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    q, k, v, state = (turned(x).requires_grad_() for x in (inputs.q, inputs.k, inputs.v, inputs.state))
    grad_out, grad_last = turned(inputs.grad_out), turned(inputs.grad_last)
    before = [x.detach().clone() for x in (q, k, v, state, grad_out, grad_last)]
    out, last = native_form((q, k, v, state), inputs)
    found = torch.autograd.grad((out, last), (q, k, v, state), (grad_out, grad_last))

    assert not any(x.is_contiguous() for x in (q, k, v, state, grad_out, grad_last))
    assert same([out, last, *found], list(expected.values()))
    assert same([q, k, v, state, grad_out, grad_last], before)


@needs_tiles
def test_a_gradient_that_is_one_number_spread_out_is_read_as_such() -> None:
    inputs = random_inputs(Shape(2, 50, 3, 32, 64, 32, "interleaved", "linspace", 1))
    leaves = (inputs.q.requires_grad_(), inputs.k.requires_grad_(), inputs.v.requires_grad_(), inputs.state)
    ones = replace(inputs, grad_out=torch.ones_like(inputs.grad_out))

    found = torch.autograd.grad(native_form(leaves, inputs)[0].sum(), leaves[:3])

    assert same(found, list(results(native_form, ones, ["out"]).values())[2:5])


@needs_tiles
def test_callers_in_several_threads_do_not_disturb_each_other() -> None:
    drawn = [random_inputs(Shape(1, 90 + 40 * n, 1 + n, 32, 64, 64, STYLES[n], "linspace", 2)) for n in range(3)]
    expected = [results(native_form, inputs) for inputs in drawn]
    found: dict[int, dict[str, Tensor]] = {}

    def call(index: int) -> None:
        torch.set_num_threads(2 + index % 2)
        for _ in range(5):
            found[index] = results(native_form, drawn[index % 3])

    with on_threads(2):
        callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    for index in range(4):
        assert all(torch.equal(found[index][name], expected[index % 3][name]) for name in expected[0])


@needs_tiles
@pytest.mark.parametrize("threads", [1, 3])
@given(shape=shapes((32, 128), length=100))
@settings(repeatable, max_examples=10)
def test_a_trace_on_fake_tensors_gives_the_shapes_dtypes_and_memory_of_a_run(threads: int, shape: Shape) -> None:
    inputs, how = random_inputs(shape), (STYLES.index(shape.rotary), min(shape.chunk_size, shape.length))
    tensors = (inputs.q, inputs.k, inputs.v, inputs.cos, inputs.sin, inputs.log_gamma, inputs.state)

    def found(of: Callable[[Tensor], Tensor]) -> list[tuple[torch.Size, torch.dtype, tuple[int, ...]]]:
        given, grad_out, grad_last = [of(x) for x in tensors], of(inputs.grad_out), of(inputs.grad_last)
        forward = torch.ops.retbench.retention_forward(*given, *how)
        backward = torch.ops.retbench.retention_backward(*given, grad_out, grad_last, *how)
        without = torch.ops.retbench.retention_backward(*given, grad_out, None, *how)
        return [(x.shape, x.dtype, x.stride()) for x in (*forward, *backward, *without)]

    with on_threads(threads):
        run = found(lambda x: x)
        with FakeTensorMode() as mode:
            traced = found(mode.from_tensor)

    assert traced == run


@needs_tiles
def test_the_operators_keep_what_they_promise_to_torch() -> None:
    inputs = random_inputs(Shape(1, 40, 1, 32, 64, 32, "interleaved", "linspace", 1))
    tensors = (inputs.q, inputs.k, inputs.v, inputs.cos, inputs.sin, inputs.log_gamma, inputs.state)
    promises = ("test_schema", "test_faketensor")

    torch.library.opcheck(torch.ops.retbench.retention_forward.default, (*tensors, 1, 32), test_utils=promises)
    for gradients in ((inputs.grad_out, inputs.grad_last), (inputs.grad_out, None)):
        given = (*tensors, *gradients, 1, 32)
        torch.library.opcheck(torch.ops.retbench.retention_backward.default, given, test_utils=promises)


# ---- whole models ----


def model_in_bf16(options: dict[str, object], size: str = "tiny") -> LanguageModel:
    return build("retnet", size, **{"vocab_size": VOCAB_SIZE, **options}).bfloat16()


def trained(model: LanguageModel, tokens: Tensor, chunked: bool = False) -> dict[str, Tensor]:
    """The loss, and the gradient of every parameter."""
    model.zero_grad()
    loss = model.loss(tokens, chunked)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == dict(model.named_parameters()).keys()
    return {"loss": loss.detach(), **found}


def logits_and_state(model: LanguageModel, tokens: Tensor) -> list[Tensor]:
    """Of the training form, and of a prefill."""
    with torch.no_grad():
        logits = model(tokens)
    last, state = model.prefill(tokens)
    return [logits, last, *state.tensors()]


def check_training(model: LanguageModel, tokens: Tensor) -> None:
    """Loss and gradients are as near to float64 natively as by plain code."""
    expected = trained(copy.deepcopy(model).double(), tokens)
    with plain_code():
        assert model.backend == "torch"
        plain = trained(model, tokens)

    assert model.backend == "tiles"
    actual = trained(model, tokens)

    assert relative_error(actual["loss"], expected["loss"]) < 2 * relative_error(plain["loss"], expected["loss"]) + 1e-3
    for name, exact in expected.items():
        assert actual[name].dtype == plain[name].dtype
        assert relative_error(actual[name], exact) < 2 * relative_error(plain[name], exact) + SIGNS, name


@needs_tiles
@pytest.mark.parametrize("option", OPTIONS)
def test_a_retnet_trains_as_near_to_float64_as_by_plain_code(option: str) -> None:
    model = model_in_bf16({"n_layers": 2, "chunk_size": 64, **OPTIONS[option]}, "mini")

    check_training(model, random_tokens(2, 151, vocab_size=VOCAB_SIZE))


@needs_tiles
def test_a_deeper_retnet_with_whole_chunks_trains_as_near_to_float64() -> None:
    check_training(model_in_bf16({}, "mini"), random_tokens(1, 2 * 256 + 1, vocab_size=VOCAB_SIZE))


@needs_tiles
@pytest.mark.parametrize("option", OPTIONS)
def test_prefill_in_pieces_then_native_steps_are_as_near_to_float64_as_plain_ones(option: str) -> None:
    model = model_in_bf16({"n_layers": 2, "chunk_size": 64, **OPTIONS[option]}, "mini")
    tokens, pieces = random_tokens(2, 160, vocab_size=VOCAB_SIZE), [70, 1, 65]
    exact = read(copy.deepcopy(model).double(), tokens, pieces)
    with plain_code():
        plain = read(model, tokens, pieces)

    actual = read(model, tokens, pieces)

    assert (model.backend, model.decode_backend) == ("tiles", "native")
    assert relative_error(actual, exact) < 1.5 * relative_error(plain, exact) + ROUNDING
    with torch.inference_mode():
        assert torch.equal(read(model, tokens, pieces), actual)


@needs_tiles
def test_blocks_that_are_computed_again_and_a_loss_in_chunks_change_no_gradient_much() -> None:
    model, tokens = model_in_bf16({}), random_tokens(2, 101, vocab_size=VOCAB_SIZE)
    expected = trained(model, tokens)
    in_chunks = trained(model, tokens, chunked=True)
    model.checkpointing = True
    again = trained(model, tokens)

    assert same(list(again.values()), list(expected.values()))
    assert max(relative_error(in_chunks[name], wanted) for name, wanted in expected.items()) < 0.05


@needs_tiles
def test_torchs_counter_sees_the_operations_of_the_formula() -> None:
    model, tokens = model_in_bf16({"chunk_size": 64}), random_tokens(2, 151, vocab_size=VOCAB_SIZE)
    config = cast(RetNetConfig, model.config)
    pairs, states = chunkwise_flops(config.n_heads, 150, config.d_k, config.d_v, 64)

    with FlopCounterMode(display=False) as forward:
        loss = model.loss(tokens)
    with FlopCounterMode(display=False) as backward:
        loss.backward()  # type: ignore[no-untyped-call]

    expected = 2 * forward_flops(config, 150, 150)
    assert forward.get_total_flops() == expected
    assert backward.get_total_flops() == 2 * expected + 2 * config.n_layers * (pairs + states // 2)
    assert 2 * expected < backward.get_total_flops() < 2.6 * expected


# ---- what native code cannot do ----


def check_torch_does_it(model: LanguageModel, gradients: bool) -> None:
    """What the model computes is what it computes where native code is switched off, bit for bit."""
    tokens = random_tokens(2, 101, vocab_size=VOCAB_SIZE)
    found = [*logits_and_state(model, tokens), *(trained(model, tokens).values() if gradients else [])]
    with plain_code():
        expected = [*logits_and_state(model, tokens), *(trained(model, tokens).values() if gradients else [])]

    assert model.backend == "torch"
    assert same(found, expected)


def test_float32_is_left_to_torch_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.linear.onednn_refusal", lambda _: "another library's products, which round otherwise")
    model = build("retnet", "tiny", vocab_size=VOCAB_SIZE)

    assert model.backend_refusals() == {}
    check_torch_does_it(model, gradients=True)


def test_a_model_that_wants_torch_gets_it_without_a_word() -> None:
    model = model_in_bf16({"retention": "torch"})

    assert model.backend_refusals() == {}
    check_torch_does_it(model, gradients=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n_heads": 8}, "needs a key and a value dim that 32 divides, not 16 and 32"),
        ({"d_model": 96, "value_factor": 1}, "needs a key and a value dim that 32 divides, not 48 and 48"),
        ({"group_norm": "none"}, "no column for the row sums"),
    ],
)
def test_heads_and_norms_that_tiles_do_not_know_are_left_to_torch(options: dict[str, object], reason: str) -> None:
    model = model_in_bf16(options)

    assert reason in model.backend_refusals()["tiles"]
    assert reason in str(model.notes["tiles"])
    check_torch_does_it(model, gradients=False)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is another reason")
def test_without_a_compiler_torch_does_it_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "loaded_library", native.loaded_library.__wrapped__)
    monkeypatch.setattr("shutil.which", lambda _: None)
    model = model_in_bf16({})

    assert "needs a C++ compiler" in model.backend_refusals()["tiles"]
    assert "needs a C++ compiler" in str(refusal())
    check_torch_does_it(model, gradients=True)


def test_without_tiles_torch_does_it_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "loaded_library", lambda: SimpleNamespace(retbench_has_tiles=lambda: 0))
    model = model_in_bf16({})

    assert model.backend_refusals() == {"tiles": "native code for bfloat16 needs a processor with AVX512-BF16 or AMX"}
    check_torch_does_it(model, gradients=True)


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
def test_the_other_forms_stay_with_torch(form: Literal["parallel", "recurrent"]) -> None:
    model, tokens = in_form(model_in_bf16({}), form), random_tokens(2, 40, vocab_size=VOCAB_SIZE)
    found = logits_and_state(model, tokens)
    with plain_code():
        expected = logits_and_state(model, tokens)

    assert same(found, expected)
