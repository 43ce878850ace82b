"""One optimizer step: forward and backward of micro-batches, AdamW; timed warm, its memory split to the byte."""

# A micro-batches of a step, B batch, T positions

from torch import Tensor

from models.language_model import LanguageModel
from retbench.measure.optimizer import MasterAdamW
from retbench.spec import Training

LEARNING_RATE = 6e-4  # the paper's at 1.3B; no number that is measured depends on it


class Trainer:
    """Makes optimizer steps on a model; nothing in a step depends on a value, so fake tensors pass through it too."""

    def __init__(self, model: LanguageModel, training: Training, learning_rate: float = LEARNING_RATE) -> None:
        self.model = model
        self.training = training
        self.optimizer = MasterAdamW(model.parameters(), learning_rate)
        model.checkpointing = training.checkpointing == "block"

    def backward(self, tokens: Tensor) -> Tensor:
        """tokens (A, B, T + 1) -> the mean loss, a scalar; its gradients are left for ``update``."""
        losses = []
        for micro_batch in tokens:
            loss = self.model.loss(micro_batch, chunked=self.training.loss == "chunked") / len(tokens)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.collect_gradients()
            losses.append(loss.detach())
        return sum(losses[1:], losses[0])

    def update(self) -> None:
        """The optimizer's part of a step."""
        self.optimizer.step()

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (A, B, T + 1) -> the loss before the step."""
        loss = self.backward(tokens)
        self.update()
        return loss
