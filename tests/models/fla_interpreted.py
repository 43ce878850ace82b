"""Run with fla-core and Triton's interpreter: compares a RetNet that fla computes with the plain one, on the CPU.

Writes one JSON object to standard output: the parameters of the two functions that are called, and the errors seen.
"""

import builtins
import inspect
import json
import os
import warnings
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
warnings.simplefilter("ignore")

import torch  # noqa: E402
import triton  # type: ignore[import-not-found]  # noqa: E402
import triton.language as tl  # type: ignore[import-not-found]  # noqa: E402
from triton.backends.compiler import GPUTarget  # type: ignore[import-not-found]  # noqa: E402


class Driver:
    """What Triton and fla-core ask of a GPU's driver before the interpreter takes over."""

    def get_current_target(self) -> Any:
        return GPUTarget("cpu", 0, 1)

    def get_benchmarker(self) -> Any:
        return lambda call, quantiles: [0.0] * len(quantiles)  # every configuration is as good: none is run


triton.runtime.driver.set_active(Driver())

from fla.ops import simple_gla  # type: ignore[import-not-found]  # noqa: E402
from fla.ops.common import chunk_h  # type: ignore[import-not-found]  # noqa: E402

from models import fla  # noqa: E402
from tests.models.helpers import error, gradient_error, gradients, random_model, random_tokens, read  # noqa: E402


def device_range(*bounds: int) -> Iterator[Any]:
    """``range`` inside a kernel, whose numbers are tensors, as the compiler makes them and the interpreter does not."""
    for number in builtins.range(*(int(bound) for bound in bounds)):
        yield tl.full((), number, tl.int32)


chunk_h.range = device_range
torch.set_num_threads(1)
tokens = random_tokens(2, 72)
plain, fast = (random_model("retnet", retention=name).float() for name in ("torch", "fla"))
exact = random_model("retnet").eval()
expected, expected_gradients = read(exact, tokens, [67, 3]), gradients(exact, tokens)
functions = (simple_gla.chunk_simple_gla, simple_gla.fused_recurrent_simple_gla)


def gradients_error(model: Any) -> float:
    return gradient_error({k: v.double() for k, v in gradients(model, tokens).items()}, expected_gradients)


result = {
    "parameters": {function.__name__: list(inspect.signature(function).parameters) for function in functions},
    "logits": [error(read(model, tokens, [67, 3]), expected) for model in (fast, plain)],
    "gradients": [gradients_error(model) for model in (fast, plain)],
    "refusal": fla.refusal(torch.device("cpu"), torch.float32, "linspace", 2, 32, 64),
}
print(json.dumps(result))
