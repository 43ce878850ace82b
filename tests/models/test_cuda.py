"""On a GPU: captured steps equal plain ones, fla-core equals the plain forms, flash-attn equals eager attention."""

# B batch, T positions, V vocabulary

import pytest
import torch

from models import attention, build, fla
from models.cuda_graph import GraphedStep
from models.language_model import LanguageModel
from tests.models.helpers import error, gradient_error, gradients, random_tokens, read

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
ROUNDED = pytest.mark.parametrize("dtype", TOLERANCE)


def on_cuda(system: str, dtype: torch.dtype, **options: object) -> LanguageModel:
    """A model with heads as wide as the paper's (256 and 512), which are as demanding as any on a kernel."""
    return build(system, "tiny", d_model=512, vocab_size=64, **options).to("cuda", dtype)


@ROUNDED
@pytest.mark.parametrize(
    "system", ["retnet", "transformer", "transformer-flash", "h3", "linear-transformer", "lstm", "rwkv"]
)
def test_a_captured_step_equals_the_plain_step(system: str, dtype: torch.dtype) -> None:
    model, tokens = on_cuda(system, dtype), random_tokens(2, 200, vocab_size=64).cuda()
    expected = read(model, tokens, [150])[:, 1:]
    state = model.init_state(2, 200)
    step = GraphedStep(model, state)
    model.prefill(tokens[:, :150], state)

    logits = torch.stack([step(token) for token in tokens[:, 150:].unbind(1)], dim=1)

    assert error(logits, expected) < TOLERANCE[dtype]


def test_a_captured_step_leaves_the_state_as_it_was() -> None:
    model, tokens = on_cuda("retnet", torch.float32), random_tokens(2, 50, vocab_size=64).cuda()
    _, state = model.prefill(tokens)
    before = [tensor.clone() for tensor in state.tensors()]

    GraphedStep(model, state)

    assert all(torch.equal(*pair) for pair in zip(state.tensors(), before, strict=True))


@pytest.mark.parametrize("length", [64, 150])
def test_fla_gives_the_logits_and_gradients_of_the_plain_forms(length: int) -> None:
    pytest.importorskip("fla")
    plain, fast = (on_cuda("retnet", torch.bfloat16, retention=name) for name in ("torch", "fla"))
    exact = on_cuda("retnet", torch.float64, retention="torch")
    exact.load_state_dict(plain.state_dict())
    tokens = random_tokens(2, length, vocab_size=64).cuda()
    expected, expected_gradients = read(exact, tokens, [length - length // 3]), gradients_on_cuda(exact, tokens)

    allowed = 4 * error(read(plain, tokens, [length - length // 3]), expected)
    allowed_gradients = 4 * gradient_error(gradients_on_cuda(plain, tokens), expected_gradients)

    assert error(read(fast, tokens, [length - length // 3]), expected) <= allowed
    assert gradient_error(gradients_on_cuda(fast, tokens), expected_gradients) <= allowed_gradients


def test_the_probe_lets_fla_compute_bf16() -> None:
    pytest.importorskip("fla")

    assert fla.refusal(torch.device("cuda"), torch.bfloat16, "linspace", 8, 256, 512) is None


@pytest.mark.parametrize("heads", [(12, 12, 64), (16, 16, 128), (16, 4, 128)])
def test_the_probe_finds_flash_attn_equal_to_eager_attention(heads: tuple[int, int, int]) -> None:
    pytest.importorskip("flash_attn")

    assert attention.flash_attn_refusal(torch.device("cuda"), torch.bfloat16, *heads) is None


def gradients_on_cuda(model: LanguageModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """In float64 on the CPU, where they are compared."""
    return {name: gradient.double().cpu() for name, gradient in gradients(model, tokens).items()}
