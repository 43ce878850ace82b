"""Gives a peer the weights of its twin and shows that both compute the same function of them."""

# B batch, T positions, V vocabulary

import torch
from torch import Tensor

from models.language_model import LanguageModel
from models.layouts import LAYOUTS
from models.peers.adapter import PeerModel

# Of the logits, in their standard deviation. The projects compute angles and norms in float32; retention's norm of a
# head magnifies that where there is little context, to 2e-5 at size small. A wrong matrix is off by 0.1 and more.
TOLERANCE = 1e-3
BATCH_SIZE, LENGTH = 2, 8


class NotEquivalentError(RuntimeError):
    """A peer does not compute what its twin computes: their speeds must not be compared."""


def load_weights(model: PeerModel, twin: LanguageModel) -> None:
    """Makes the twin's tensors the peer's own, without a copy; raises NotEquivalentError unless they fit one to one."""
    own = twin.state_dict()
    names = LAYOUTS[model.layout].tensor_names(own, twin.config.n_layers)
    parameters = dict(model.theirs.named_parameters())
    chosen = {name: names[name] for name in parameters if name in names}  # theirs -> ours
    problems = [f"{name} has no weight of ours" for name in parameters if name not in chosen]
    problems += [f"{ours} has no place in it" for ours in own if ours not in chosen.values()]
    problems += [
        f"{name} is {tuple(parameters[name].shape)}, not {tuple(own[ours].shape)}"
        for name, ours in chosen.items()
        if parameters[name].shape != own[ours].shape
    ]
    if problems:
        raise NotEquivalentError(f"{model.backend} has other weights than {twin.config.system}: {'; '.join(problems)}")
    model.theirs.load_state_dict({name: own[ours] for name, ours in chosen.items()}, strict=False, assign=True)


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
