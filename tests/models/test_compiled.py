"""Compiled segments of a prefill: the same logits and state as the plain code, and the plain code where that fails."""

import copy
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from models import build, compiled, language_model
from models.compiled import compile_blocks, compile_prefill
from models.language_model import LanguageModel
from tests.models.helpers import (
    VOCAB_SIZE,
    error,
    gradient_error,
    gradients,
    random_model,
    random_tokens,
    read,
    relative_error,
)

SEGMENT = 16


def broken(*_: object, **__: object) -> object:
    def call(*_: object) -> object:
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: no working C++ compiler\n\nand more of it")

    return call


def state_of(model: LanguageModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    return list(model.prefill(tokens)[1].tensors())


@pytest.fixture
def working_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the test on a machine where torch.compile fails whatever it is given; nothing is cached between tests."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a killed compilation leaves half a library there
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8))
    except Exception as error:  # noqa: BLE001 - a compiler fails in ways of its own
        pytest.skip(f"torch.compile does not work on this machine: {error}")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("working_compiler")
@pytest.mark.parametrize("rotary", ["interleaved", "half-split"])
@pytest.mark.parametrize("system", ["retnet", "transformer-flash"])
def test_compiled_prefill_equals_the_plain_one(system: str, rotary: str) -> None:
    tokens = random_tokens(2, 3 * SEGMENT + 5)
    plain, model = (random_model(system, rotary=rotary) for _ in range(2))
    with patch.object(language_model, "SEGMENT", SEGMENT):
        expected, expected_state = read(plain, tokens, [SEGMENT, SEGMENT + 3]), state_of(plain, tokens)

        reason = compile_prefill(model, batch_size=2)

        assert reason is None
        assert error(read(model, tokens, [SEGMENT, SEGMENT + 3]), expected) < 1e-10
        pairs = zip(state_of(model, tokens), expected_state, strict=True)
        assert all(error(actual, wanted) < 1e-10 for actual, wanted in pairs)


@pytest.mark.parametrize("system", ["retnet", "transformer-flash"])
def test_only_whole_segments_without_gradients_are_compiled(system: str) -> None:
    model, seen = build(system, "tiny", vocab_size=VOCAB_SIZE), list[int]()

    def recorder(plain: object, dynamic: bool) -> object:
        def call(x: torch.Tensor, *others: object) -> object:
            seen.append(x.shape[1])
            return plain(x, *others)  # type: ignore[operator]

        return call

    with patch.object(torch, "compile", recorder), patch.object(language_model, "SEGMENT", SEGMENT):
        compile_prefill(model, batch_size=1)
        seen.clear()
        model(random_tokens(1, SEGMENT))
        _, state = model.prefill(random_tokens(1, SEGMENT - 1))
        model.step_at(random_tokens(1, 1)[0], state.position, state)

        assert seen == []
        model.prefill(random_tokens(1, 2 * SEGMENT + 1))

    assert set(seen) == {SEGMENT}
    assert len(seen) == 2 * 2 * 2  # segments, layers, mixer and FFN


@pytest.mark.parametrize("system", ["retnet", "transformer-flash"])
def test_where_nothing_can_be_compiled_the_plain_code_stays_and_says_why(system: str) -> None:
    model = build(system, "tiny", vocab_size=VOCAB_SIZE)
    tokens = random_tokens(1, SEGMENT)
    expected = model.prefill(tokens)[0]

    with patch.object(compiled.torch, "compile", broken), patch.object(language_model, "SEGMENT", SEGMENT):
        reason = compile_prefill(model, batch_size=1)
        again = model.prefill(tokens)[0]

    assert reason == (
        "torch.compile does not work here: RuntimeError: backend='inductor' raised: "
        "InvalidCxxCompiler: no working C++ compiler"
    )
    assert torch.equal(again, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("working_compiler")
@pytest.mark.parametrize(("system", "checkpointing"), [("retnet", True), ("transformer-flash", False)])
def test_compiled_blocks_give_the_gradients_of_the_plain_ones(system: str, checkpointing: bool) -> None:
    tokens, model = random_tokens(2, 20), random_model(system)
    expected = gradients(model, tokens)
    model.checkpointing = checkpointing

    reason = compile_blocks(model, 2, 20)

    assert reason is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert gradient_error(gradients(model, tokens), expected) < 1e-9


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("working_compiler", "tiles")
@pytest.mark.parametrize("rotary", ["interleaved", "half-split"])
def test_compiled_blocks_call_the_native_operators_and_train_as_near_to_float64(rotary: str) -> None:
    tokens = random_tokens(2, 100, vocab_size=96)
    smooth = {"norm_eps": 1e-2}  # else the group norm makes a sign of a q.k that is near 0, before there is context
    model = build("retnet", "tiny", vocab_size=96, chunk_size=64, rotary=rotary, **smooth).bfloat16()

    def trained(model: LanguageModel) -> dict[str, torch.Tensor]:
        loss = model.loss(tokens)
        return {"loss": loss.detach(), **gradients(model, tokens[:, :-1])}

    exact, uncompiled = trained(copy.deepcopy(model).double()), trained(model)
    reason = compile_blocks(model, 2, 99)
    with torch.autograd.profiler.profile() as profile:
        found = trained(model)

    assert reason is None
    called = Counter(event.name for event in profile.function_events)
    assert called["retbench::retention_forward"] == 2 * 2  # for the loss and for the gradients, of both layers
    assert called["retbench::retention_backward"] == 2
    assert called["retbench::weight_gradient"] == 2 * 7 + 1
    assert model.backend == "tiles"
    for name, wanted in exact.items():
        assert relative_error(found[name], wanted) < 2 * relative_error(uncompiled[name], wanted) + 2**-7, name


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("system", ["retnet", "transformer-flash"])
def test_a_block_with_native_gradients_is_one_graph(system: str) -> None:
    model = build(system, "tiny", vocab_size=VOCAB_SIZE).bfloat16()
    block = torch.compile(model.blocks[0], backend="aot_eager", fullgraph=True, dynamic=False)  # else an error
    x = torch.randn(2, 100, 128, generator=torch.Generator().manual_seed(0)).bfloat16()

    found, expected = (part(x, model.positions(0, 100)) for part in (block, model.blocks[0]))

    assert relative_error(found, expected) < 2**-7


def test_where_blocks_cannot_be_compiled_they_train_plain_and_say_why() -> None:
    tokens, model = random_tokens(2, 20), random_model("retnet")
    expected = gradients(model, tokens)
    model.zero_grad()

    with patch.object(compiled.torch, "compile", broken):
        reason = compile_blocks(model, 2, 20)

    assert reason is not None
    assert reason.startswith("torch.compile does not work here: RuntimeError: backend='inductor' raised: Invalid")
    assert gradient_error(gradients(model, tokens), expected) == 0
