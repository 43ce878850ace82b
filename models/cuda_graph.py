"""A decode step captured in a CUDA graph: one launch instead of one for every kernel of every layer."""

# B batch, V vocabulary

import torch
from torch import Tensor

from models.language_model import LanguageModel, State

WARM_UPS = 3  # libraries allocate, compile and tune in their first calls, which cannot be captured


class GraphedStep:
    """``model.step`` on the current CUDA device, bound to one state and to the weights where they are now.

    Capturing runs nothing: the state keeps its values. Token and position are copied to where the graph reads them.
    Raises NotImplementedError for a model whose step cannot be captured, RuntimeError when CUDA cannot capture it.
    """

    def __init__(self, model: LanguageModel, state: State) -> None:
        self._state = state
        mixers = [block.mixer for block in model.blocks]
        self._limit = min(mixer.capture_limit(layer) for mixer, layer in zip(mixers, state.layers, strict=True))
        if self._limit == 0:
            raise NotImplementedError(f"a step of {model.config.system} cannot be captured in a CUDA graph")
        batch_size, device = next(state.tensors()).shape[0], model.embedding.weight.device
        with torch.inference_mode(False):  # made while decoding, they may be written outside of it
            self._token = torch.zeros(batch_size, dtype=torch.int64, device=device)  # (B,)
            self._position = torch.zeros(1, dtype=torch.int64, device=device)
        # All layers are alike: one spare layer's state serves every layer of the warm-up.
        spare = State([mixers[0].init_state(batch_size, self._limit)] * len(mixers))
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                model.step_at(self._token, self._position, spare)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = model.step_at(self._token, self._position, state)  # (B, V)

    def __call__(self, token: Tensor) -> Tensor:
        """(B,) int64 -> logits (B, V); the state is updated in place.

        Raises ValueError when a KV cache is full: the graph cannot follow it to a larger one.
        """
        if self._state.position >= self._limit:
            raise ValueError(f"the state has room for {self._limit} tokens and {self._state.position} were read")
        self._token.copy_(token)
        self._position.fill_(self._state.position)
        self._graph.replay()
        self._state.position += 1
        return self._logits.clone()
