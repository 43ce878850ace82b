"""Gives a peer the weights of its twin and shows that both compute the same function of them."""

# B batch, T positions, V vocabulary

import torch
from torch import Tensor

from models.language_model import LanguageModel
from models.layouts import LAYOUTS
from models.peers.adapter import PeerModel

# Of the logits, in their standard deviation. The projects compute angles and norms in float32; retention's norm of a
# head magnifies that where there is little context. A wrong weight is off by far more.
TOLERANCE = 1e-3
BATCH_SIZE, LENGTH = 2, 8


class NotEquivalentError(RuntimeError):
    """A peer does not compute what its twin computes: their speeds must not be compared."""


def load_weights(model: PeerModel, twin: LanguageModel) -> None:
    """Makes the twin's tensors the peer's own, without a copy; raises NotEquivalentError unless they fit one to one."""
    own = twin.state_dict()
    names = LAYOUTS[model.layout].tensor_names(own, twin.config.n_layers)
    parameters = dict(model.theirs.named_parameters())
    problems = [f"{name} has no weight of ours" for name in parameters if name not in names]
    problems += [f"{ours} has no place in it" for ours in own if ours not in names.values()]
    problems += [
        f"{name} is {tuple(parameter.shape)}, not {tuple(own[names[name]].shape)}"
        for name, parameter in parameters.items()
        if name in names and parameter.shape != own[names[name]].shape
    ]
    if problems:
        raise NotEquivalentError(f"{model.backend} has other weights than {twin.config.system}: {'; '.join(problems)}")
    model.theirs.load_state_dict({name: own[names[name]] for name in parameters}, strict=False, assign=True)


def check_same_function(model: PeerModel, twin: LanguageModel) -> float:
    """The largest difference between their logits; raises NotEquivalentError when it is more than rounding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(twin.config.vocab_size, (BATCH_SIZE, LENGTH), generator=generator, device="cpu")
    error = logits_error(model, twin, tokens.to(twin.embedding.weight.device))
    if not error <= TOLERANCE:  # so that nan is refused
        raise NotEquivalentError(
            f"{model.backend} does not compute what {twin.config.system} computes: its logits are off by {error:.1e} "
            f"of their standard deviation, {TOLERANCE:.0e} is allowed"
        )
    return error


@torch.no_grad()
def logits_error(model: PeerModel, twin: LanguageModel, tokens: Tensor) -> float:
    """The largest difference of prefill and of every step from the twin's logits, in their standard deviation."""
    wanted = twin(tokens)  # (B, T, V)
    state = model.init_state(*tokens.shape)
    steps = torch.stack([model.step(token, state)[0] for token in tokens.unbind(1)], dim=1)  # (B, T, V)
    prefill, _ = model.prefill(tokens)  # (B, V)
    difference = torch.maximum((steps - wanted).abs().max(), (prefill - wanted[:, -1]).abs().max())
    return float(difference / wanted.std())
