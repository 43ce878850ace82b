"""The native decode step: equal to torch's in every option, shape and thread count; what it cannot do, torch does."""

# B batch, T positions, V vocabulary

import copy
import ctypes
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from models import build
from models.language_model import LanguageModel, State
from models.native import library as native
from models.quantization import quantize_
from tests.models.helpers import Reading, ends, error, random_model, random_tokens, read, readings, repeatable

VOCAB_SIZE = 61  # leaves a rest of every block of rows
DTYPES = (torch.float32, torch.bfloat16)
SYSTEMS = ("retnet", "transformer")
BATCHES = (1, 2, 3, 8, 16, 17, 32, 33)
SHARED: dict[str, dict[str, object]] = {
    "default": {},
    "rmsnorm": {"norm": "rmsnorm"},
    "swiglu": {"ffn": "swiglu"},
    "half-split rotary": {"rotary": "half-split"},
    "no rotary": {"rotary": "none"},
    "exclusive rope spacing": {"rope_spacing": "exclusive", "rope_base": 500.0},
    "tied embeddings": {"tied_embeddings": True},
    "embedding scale": {"embedding_scale": 11.3},
    "odd widths": {"d_model": 48, "n_layers": 3, "d_ffn": 56, "n_heads": 4, "vocab_size": 17},
    "odd heads": {"d_model": 60, "n_heads": 6, "d_ffn": 24},
    "wide": {"d_model": 320, "d_ffn": 424, "n_heads": 5},
}
OPTIONS: dict[str, dict[str, dict[str, object]]] = {
    "retnet": {
        **SHARED,
        "eq8": {"gamma": "eq8"},
        "no gate": {"gate": False},
        "group rmsnorm": {"group_norm": "rmsnorm"},
        "affine group norm": {"group_norm_affine": True},
        "narrow values": {"value_factor": 1, "n_heads": 8},
    },
    "transformer": {
        **SHARED,
        "one key-value head": {"n_heads": 8, "n_kv_heads": 1},
        "grouped heads": {"n_heads": 4, "n_kv_heads": 2, "norm": "rmsnorm", "ffn": "swiglu"},
        "seven heads a group": {"d_model": 112, "n_heads": 7, "n_kv_heads": 1},
        "sdpa": {"attention": "sdpa"},
    },
}
CASES = [(system, option) for system in SYSTEMS for option in OPTIONS[system]]


@pytest.fixture(autouse=True)
def needs_the_library() -> None:
    loaded = native.library()
    if isinstance(loaded, native.UnavailableError):
        pytest.skip(str(loaded))


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that the test sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def native_model(system: str, dtype: torch.dtype, **options: object) -> LanguageModel:
    """A random tiny model whose steps are native."""
    model = random_model(system, **{"vocab_size": VOCAB_SIZE, **options}).to(dtype)

    assert model.decode_backend == "native"
    return model


def after_prompt(model: LanguageModel, tokens: Tensor) -> State:
    """The state after the tokens: before there is context, rounding may change signs."""
    return model.prefill(tokens)[1]


def steps(model: LanguageModel, backend: str, prompt: Tensor, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, T, V) of the tokens after a prompt, and the state's tensors."""
    model.decode_backend = backend  # type: ignore[assignment]
    state = after_prompt(model, prompt)
    return read(model, tokens, [], state), [tensor.clone() for tensor in state.tensors()]


def distance(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, in standard deviations."""
    difference = actual.double() - expected.double()
    return (difference.square().mean().sqrt() / expected.double().std()).item()


def check_against_torch(model: LanguageModel, batch_size: int) -> None:
    """Native steps are as near to float64 as torch's are."""
    size = model.config.vocab_size
    prompt, tokens = random_tokens(batch_size, 20, 1, size), random_tokens(batch_size, 3, 2, size)
    found, state = steps(model, "native", prompt, tokens)
    plain, plain_state = steps(model, "torch", prompt, tokens)
    exact, exact_state = steps(copy.deepcopy(model).double(), "torch", prompt, tokens)
    floor = 1e-6 if model.embedding.weight.dtype == torch.float32 else 1e-3

    assert found.dtype == plain.dtype
    assert distance(found, exact) < 1.2 * distance(plain, exact) + floor
    for ours, torchs, truth in zip(state, plain_state, exact_state, strict=True):
        assert distance(ours, truth) < 1.2 * distance(torchs, truth) + floor
    if floor == 1e-6:
        assert error(found, plain) < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("system", "option"), CASES)
def test_every_option_steps_as_in_torch(system: str, option: str, dtype: torch.dtype) -> None:
    check_against_torch(native_model(system, dtype, **OPTIONS[system][option]), batch_size=3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_batch_size_steps_as_in_torch(system: str, batch_size: int, dtype: torch.dtype) -> None:
    check_against_torch(native_model(system, dtype, ffn="swiglu"), batch_size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize(("system", "option"), [("retnet", "swiglu"), ("transformer", "odd widths")])
def test_int8_weights_step_as_in_torch(system: str, option: str, batch_size: int, dtype: torch.dtype) -> None:
    model = native_model(system, dtype, **OPTIONS[system][option])
    quantize_(model)

    assert model.decode_backend == "native"
    check_against_torch(model, batch_size)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_model_with_some_int8_layers_steps_natively(system: str) -> None:
    model = native_model(system, torch.float32, ffn="swiglu")
    quantize_(model.blocks[1])

    assert model.decode_backend == "native"
    check_against_torch(model, batch_size=2)


@pytest.mark.parametrize("system", SYSTEMS)
@given(reading=readings)
@repeatable
def test_prefill_in_pieces_then_native_steps_equal_the_training_form(system: str, reading: Reading) -> None:
    batch_size, pieces, count = reading
    tokens = random_tokens(batch_size, sum(pieces) + count)
    model = build(system, "tiny", vocab_size=VOCAB_SIZE)
    with torch.no_grad():
        expected = model(tokens)[:, ends(pieces, tokens.shape[1])]

    actual = read(model, tokens, pieces)

    assert model.decode_backend == "native"
    assert error(actual, expected) < 1e-4


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("system", SYSTEMS)
def test_any_number_of_threads_gives_the_same_step(system: str, count: int, threads: None) -> None:
    model = native_model(system, torch.float32, d_model=256, vocab_size=1000)
    prompt, tokens = random_tokens(2, 700, 1, 1000), random_tokens(2, 4, 2, 1000)
    expected, expected_state = steps(model, "torch", prompt, tokens)

    torch.set_num_threads(count)
    found, state = steps(model, "native", prompt, tokens)

    assert error(found, expected) < 1e-4
    assert all(error(*pair) < 1e-4 for pair in zip(state, expected_state, strict=True))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_thousand_native_steps_stay_as_near_as_the_first(system: str, threads: None) -> None:
    torch.set_num_threads(2)
    model = build(system, "tiny", vocab_size=VOCAB_SIZE)
    tokens = random_tokens(1, 1000)
    with torch.no_grad():
        expected = model(tokens)

    actual = read(model, tokens, [1])

    assert error(actual, expected) < 1e-4


@pytest.mark.parametrize("system", SYSTEMS)
def test_torch_and_native_steps_share_one_state(system: str) -> None:
    model = build(system, "tiny", vocab_size=VOCAB_SIZE)
    tokens = random_tokens(2, 30)
    expected = model(tokens).detach()
    state = after_prompt(model, tokens[:, :10])

    for n in range(10, 30):
        model.decode_backend = "native" if n % 3 else "torch"
        logits, _ = model.step(tokens[:, n], state)

        assert error(logits, expected[:, n]) < 1e-4
    assert state.position == 30


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_phase_of_a_step_is_accounted_for(system: str) -> None:
    model = native_model(system, torch.float32)
    sums: list[list[int]] = []
    for _ in range(2):
        model.step(torch.tensor([1]), model.init_state(1, 8))
        phases = (ctypes.c_int64 * 5)()
        native.library().retbench_phase_ns(phases)  # type: ignore[union-attr]
        sums.append(list(phases))

    assert all(after > before > 0 for before, after in zip(*sums, strict=True))


def test_models_take_turns_and_threads_call_at_once(threads: None) -> None:
    torch.set_num_threads(2)
    models = [build(system, "tiny", vocab_size=VOCAB_SIZE) for system in SYSTEMS]
    tokens = random_tokens(2, 60)
    expected = [model(tokens).detach() for model in models]
    found: dict[int, Tensor] = {}

    def decode(index: int) -> None:
        found[index] = read(models[index % 2], tokens, [20])

    callers = [threading.Thread(target=decode, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert all(error(found[index], expected[index % 2][:, 19:]) < 1e-4 for index in range(4))


def test_a_full_cache_doubles_under_native_steps() -> None:
    model = build("transformer", "tiny", vocab_size=VOCAB_SIZE)
    tokens = random_tokens(2, 20)
    state = model.init_state(2, 3)

    actual = read(model, tokens, [], state)

    assert error(actual, model(tokens).detach()) < 1e-4
    assert [tensor.shape[2] for tensor in state.tensors()] == [24] * 4


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("wrong", [-1, VOCAB_SIZE, 2**40])
def test_a_token_outside_the_vocabulary_is_an_error_and_changes_nothing(system: str, wrong: int) -> None:
    model = build(system, "tiny", vocab_size=VOCAB_SIZE)
    state = model.init_state(2, 8)
    state.fill_(5)
    before = [tensor.clone() for tensor in state.tensors()]

    with pytest.raises(IndexError, match=f"token {wrong} is not in the vocabulary of {VOCAB_SIZE}"):
        model.step(torch.tensor([0, wrong]), state)

    assert state.position == 5
    assert all(torch.equal(*pair) for pair in zip(state.tensors(), before, strict=True))


@pytest.mark.parametrize("system", SYSTEMS)
def test_weights_that_change_between_steps_are_those_that_count(system: str) -> None:
    def logits(model: LanguageModel) -> Tensor:
        state = model.init_state(1, 8)
        state.fill_(5)
        return model.step(torch.tensor([3]), state)[0]

    model, other = build(system, "tiny", vocab_size=8), build(system, "tiny", vocab_size=8, seed=1)
    first = logits(model)
    model.head.weight = nn.Parameter(other.head.weight.detach().clone())
    replaced = logits(model)
    model.load_state_dict(other.state_dict(), assign=True)

    assert error(replaced, first) > 0.1
    assert torch.equal(logits(model), logits(other))
    assert logits(model.to(torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_what_native_code_cannot_do_is_done_by_torch_and_said() -> None:
    double, half = (build("retnet", "tiny", vocab_size=8).to(dtype) for dtype in (torch.float64, torch.float16))
    strided = build("transformer", "tiny", vocab_size=8)
    strided.head.weight = nn.Parameter(torch.randn(128, 8).T)
    concatenated = build("transformer-concat-cache", "tiny", vocab_size=8)

    for model, reason in (
        (double, "float32 and bfloat16 on a CPU, not torch.float64"),
        (half, "not torch.float16"),
        (strided, "contiguous weights"),
        (concatenated, "transformer-concat-cache has no native decode step"),
    ):
        assert model.decode_backend == "torch"
        assert reason in str(model.no_native_step())
        assert model.prefill(torch.tensor([[1, 2]]))[0].shape == (1, 8)
        with pytest.raises(ValueError, match="decode_backend cannot be native"):
            model.decode_backend = "native"
    with pytest.raises(ValueError, match="must be one of native, torch, not 'fast'"):
        double.decode_backend = "fast"  # type: ignore[assignment]


def test_a_batch_that_is_not_the_states_is_left_to_torch() -> None:
    model = build("retnet", "tiny", vocab_size=8)

    with pytest.raises(RuntimeError, match="size of tensor"):
        model.step(torch.tensor([1, 2, 3]), model.init_state(2, 8))


# ---- the library ----


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda _: None)

    assert "needs a C++ compiler" in str(native.loaded_library.__wrapped__())


def test_a_compiler_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "FLAGS", ("--no-such-flag",))

    assert "no-such-flag" in str(native.loaded_library.__wrapped__())


def test_native_code_is_switched_off_until_the_last_of_several_is_left_even_by_an_error() -> None:
    model, loaded = build("retnet", "tiny", vocab_size=8), native.loaded_library()

    def switched_off() -> bool:
        return "switched off" in str(native.library()) and model.decode_backend == "torch"

    with pytest.raises(ZeroDivisionError), native.plain_code():
        with native.plain_code():
            assert switched_off()
        assert switched_off()
        raise ZeroDivisionError

    assert native.library() is loaded
    assert model.decode_backend == "native"


def test_steps_go_on_by_plain_code_from_a_state_that_native_ones_left() -> None:
    model, tokens = build("retnet", "tiny", vocab_size=VOCAB_SIZE), random_tokens(2, 30)
    expected, (_, state) = model(tokens).detach(), model.prefill(tokens[:, :10])

    for n in range(10, 30):
        with native.plain_code() if n % 2 else nullcontext():
            logits, _ = model.step(tokens[:, n], state)

        assert error(logits, expected[:, n]) < 1e-4


@pytest.mark.slow
def test_a_broken_or_unwritable_cache_still_gives_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = native.loaded_library.__wrapped__()
    (file,) = (tmp_path / "retbench").iterdir()
    file.unlink()
    file.write_bytes(b"half a library")
    broken = native.loaded_library.__wrapped__()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    unwritable = native.loaded_library.__wrapped__()

    assert not any(isinstance(found, native.UnavailableError) for found in (first, broken, unwritable))


BUILDING = "import models.native.library as native; print(isinstance(native.library(), native.UnavailableError))"


def building(cache: Path) -> subprocess.Popen[str]:
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen([sys.executable, "-c", BUILDING], env=variables, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_that_build_at_once_and_one_that_is_killed_leave_one_whole_library(tmp_path: Path) -> None:
    killed, *others = [building(tmp_path) for _ in range(3)]
    while not list((tmp_path / "retbench").glob("build-*")):
        assert killed.poll() is None
    killed.kill()
    killed.communicate()

    assert [other.communicate(timeout=200)[0].strip() for other in others] == ["False", "False"]
    (library,) = (tmp_path / "retbench").glob("*.so")
    again = building(tmp_path)
    assert again.communicate(timeout=200)[0].strip() == "False"
    assert list((tmp_path / "retbench").glob("*.so")) == [library]


def test_a_full_disk_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"  # leaves half a library behind, as a compiler does where there is no room
    compiler.write_text("""#!/bin/sh
case "$*" in *--version*) echo 1; exit;; esac
while [ "$1" != -o ]; do shift; done
echo half > "$2"
echo "fatal error: error writing to $2: No space left on device" >&2
exit 1
""")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    assert "No space left on device" in str(native.loaded_library.__wrapped__())
    assert list((tmp_path / "cache" / "retbench").iterdir()) == []


FORKING = """
import os, torch
from models import build
torch.set_num_threads(2)
model = build("retnet", "tiny", vocab_size=8)
state = model.init_state(1, 8)
model.step(torch.tensor([1]), state)
child = os.fork()
model.step(torch.tensor([1]), state)
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_steps_with_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], check=True, timeout=60)


EVERY_KERNEL = """
import torch
from models import build
from models.quantization import quantize_
torch.set_num_threads(3)
for system in ("retnet", "transformer"):
    for dtype in (torch.float32, torch.bfloat16):
        for batch_size in (1, 2, 3, 9, 17, 33):
            for options in ({}, {"d_model": 60, "n_heads": 6, "d_ffn": 24, "ffn": "swiglu", "rotary": "half-split"}):
                model = build(system, "tiny", vocab_size=61, **options).to(dtype)
                if batch_size % 2:
                    quantize_(model.layers[1])
                assert model.decode_backend == "native", model.no_native_step()
                prompt, token = torch.randint(61, (batch_size, 40)), torch.randint(61, (batch_size,))
                logits = []
                for backend in ("native", "torch"):
                    model.decode_backend = backend
                    logits.append(model.step(token, model.prefill(prompt)[1])[0].float())
                error = (logits[0] - logits[1]).abs().max() / logits[1].std()
                assert error < (1e-4 if dtype == torch.float32 else 0.3), (system, dtype, batch_size, options, error)
"""
BUILDS = {
    "for any x86-64": ["-march=x86-64"],
    "for AVX2": ["-march=haswell"],
    "under sanitizers": ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
@pytest.mark.parametrize("kind", BUILDS)
def test_other_builds_compute_the_same(kind: str, tmp_path: Path) -> None:
    flags = f"import models.native.library as native; native.FLAGS = (*native.FLAGS, *{BUILDS[kind]!r})\n"
    asan = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "ASAN_OPTIONS": "detect_leaks=0"}
    if "sanitizers" in kind:
        variables["LD_PRELOAD"] = asan.strip()

    subprocess.run([sys.executable, "-c", flags + EVERY_KERNEL], check=True, timeout=250, env=variables)
