"""A peer for the tests: our own Transformer as if it were another project's. Works as a file of models/peers too."""

from importlib import import_module

import torch
from torch import Tensor, nn

from models import from_config
from models.language_model import LanguageModel, State
from models.peers.adapter import PeerModel

PEER = {
    "summary": "our Transformer in a mirror",
    "requirements": ["toypeer==1.0"],
    "dependencies": False,
    "stubs": {"toystub.inner": ["called"]},
    "rows": {"mirror": "our Transformer"},
    "twin": {"name": "mirrored", "summary": "what is mirrored", "system": "transformer", "config": {"ffn": "swiglu"}},
}


class Mirror(PeerModel):
    """Delegates to a model of ours; needs the package that it stands for."""

    layout = "retbench"
    distribution = "toypeer"
    prefill_form = "as ours"
    theirs: LanguageModel

    def make(self) -> nn.Module:
        import_module(self.distribution)
        with torch.device("meta"):
            return from_config(self.config)

    @property
    def embedding(self) -> nn.Embedding:
        return self.theirs.embedding

    def prefill(self, tokens: Tensor) -> tuple[Tensor, State | None]:
        return self.theirs.prefill(tokens)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        return self.theirs.step(token, state)

    def init_state(self, batch_size: int, max_seq_len: int) -> State:
        return self.theirs.init_state(batch_size, max_seq_len)

    def set_norm_eps(self, eps: float) -> None:
        for module in self.theirs.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps


MODEL = Mirror
