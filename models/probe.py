"""Whether a package's kernels may stand in for plain code here: they must run, and err little more than it does."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ALLOWED = 4  # times the plain form's own error


def refusal(fast: Callable[[], Sequence[Tensor]], plain: Sequence[Tensor], exact: Sequence[Tensor]) -> str | None:
    """Why the results of ``fast`` are not to be used in place of ``plain``, None when they are as near to ``exact``."""
    try:
        found = fast()
    except Exception as error:  # noqa: BLE001 - a foreign package fails in ways of its own, and none may stop a model
        return f"does not run here: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    for fast_result, plain_result, exact_result in zip(found, plain, exact, strict=True):
        rounding = torch.finfo(plain_result.dtype).eps * exact_result.abs().max()
        allowed = ALLOWED * torch.maximum(_error(plain_result, exact_result), rounding)
        if not _error(fast_result, exact_result) <= allowed:  # written so that NaN is refused
            return f"errs by {_error(fast_result, exact_result):.1e} here, where {allowed:.1e} is allowed"
    return None


def _error(actual: Tensor, exact: Tensor) -> Tensor:
    return (actual.double() - exact.double()).abs().max()
