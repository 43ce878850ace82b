"""Every system can learn: one batch, seen again and again, is known by heart."""

import pytest

from models import build
from models.catalogue import paper_systems
from retbench.measure.train_step import Trainer
from retbench.spec import Training
from tests.models.helpers import VOCAB_SIZE, random_tokens

pytestmark = pytest.mark.usefixtures("one_thread")

SAME_FUNCTION = {"transformer-flash", "transformer-concat-cache"}  # as transformer, in training
MOST_STEPS = 150


@pytest.mark.parametrize("system", sorted(set(paper_systems()) - SAME_FUNCTION))
def test_one_batch_is_learnt_by_heart(system: str) -> None:
    trainer = Trainer(build(system, "tiny", vocab_size=VOCAB_SIZE), Training(), learning_rate=3e-3)
    batch = random_tokens(2, 17)[None]
    losses = [trainer.step(batch).item()]
    while losses[-1] >= 0.05 and len(losses) < MOST_STEPS:
        losses.append(trainer.step(batch).item())

    assert losses[0] > 3.5
    assert losses[-1] < 0.05
