"""Weight-only int8: linear layers that store int8 weights with one scale an output channel, for inference."""

# I input channels, O output channels, N rows of activations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows up to which torch's int8 product is faster than a product with weights that are made whole again (2 cores with
# AVX512-BF16 and AMX): its time grows with the rows, the other's does not.
MOST_ROWS = {torch.bfloat16: 16, torch.float16: 16, torch.float32: 1}
BLOCK = 16  # input channels: torch's int8 product for bf16 reads past the end of rows that are no multiple of it


class Int8Linear(nn.Module):
    """y = x W^T with W = scale * int8, without bias; W is symmetric around 0 and rounded to the nearest."""

    quantized: Tensor  # (O, I) int8
    scale: Tensor  # (O,) in the dtype of the activations

    def __init__(self, weight: Tensor) -> None:
        """weight (O, I) in bf16, fp16 or float32."""
        super().__init__()
        largest = weight.abs().amax(dim=1).float()  # (O,)
        # Rounded before it divides: a scale that is rounded later shifts all weights of a row in one direction.
        scale = (largest / 127).clamp(min=torch.finfo(weight.dtype).tiny).to(weight.dtype)
        quantized = (weight / scale[:, None].float()).round().clamp(-127, 127)
        self.register_buffer("quantized", quantized.to(torch.int8))
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """(O, I) made whole, a new tensor at every call."""
        return self.quantized.to(self.scale.dtype) * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)"""
        rows = x.reshape(-1, x.shape[-1])  # (N, I)
        if len(rows) <= MOST_ROWS.get(x.dtype, 0) and rows.shape[1] % BLOCK == 0:
            out = torch._weight_int8pack_mm(rows.contiguous(), self.quantized, self.scale)  # (N, O)
        else:
            out = F.linear(rows, self.quantized.to(x.dtype)) * self.scale
        return out.view(*x.shape[:-1], -1)


def quantize_(model: nn.Module) -> None:
    """Replaces every linear layer of the model; embeddings and norms stay, a head tied to the embedding is copied.

    Raises NotImplementedError for a dtype or a torch without the product.
    """
    if not hasattr(torch, "_weight_int8pack_mm"):
        raise NotImplementedError("int8 weights need torch._weight_int8pack_mm, which this torch does not have")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                if child.bias is not None or child.weight.dtype not in MOST_ROWS:
                    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in MOST_ROWS)
                    raise NotImplementedError(f"int8 weights stand for linear layers without bias in {dtypes}")
                setattr(module, name, Int8Linear(child.weight.detach()))
