"""What a cell's model and state are, built on the meta device: no memory, no run."""

import torch

from models import from_config
from retbench.measure import TORCH_DTYPES, config_of
from retbench.spec import Cell


def describe(cell: Cell) -> dict[str, int | str]:
    """Parameters, bytes of a state that holds ``seq_len`` tokens, forms; ValueError for a model that cannot be."""
    torch.set_default_dtype(TORCH_DTYPES[cell.dtype])
    with torch.device("meta"):
        model = from_config(config_of(cell))
        state = model.init_state(cell.batch_size, cell.seq_len)
    for layer in state.layers:  # a concatenated cache starts out empty
        layer.fill_(cell.seq_len, torch.Generator())
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": state.nbytes,
        "training_form": model.training_form,
        "decode_form": model.decode_form,
    }
