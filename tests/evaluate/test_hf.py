"""lm-eval's own hf model and ours: the same weights and texts give the same. Installs transformers and accelerate."""

import json
from pathlib import Path

import pytest

from tests.retbench.real_packages import installed, run, smollm_folder, strings

pytest.importorskip("lm_eval")

BOTH = """
import json, sys
from pathlib import Path
import torch
from lm_eval.api.instance import Instance
from models import load_checkpoint
from retbench.evaluate.benchmark import hf_model
from retbench.evaluate.lm import ContractLM
from retbench.evaluate.scoring import Scorer
from retbench.tokenizer import load_tokenizer

torch.set_num_threads(1)
folder = Path(sys.argv[1])
ours = ContractLM(Scorer(load_checkpoint(folder, torch.float32), 2048), load_tokenizer(folder))
found = [
    [
        getattr(lm, kind)([Instance(kind, {}, tuple(some), at) for at, some in enumerate(requests)], disable_tqdm=True)
        for lm in (ours, hf_model(folder, 4))
    ]
    for kind, requests in json.load(sys.stdin).items()
]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_texts_get_what_lm_evals_own_model_gives_them(tmp_path: Path) -> None:
    python = installed("lm-eval-hf", "transformers==5.23.0", "accelerate==1.15.0").python
    texts = [text.strip() for text in strings(60)[:-1]]
    shots = ["\n\n".join(texts[at : at + 4]) for at in (0, 10, 20)]
    ends = [" ".join(text.split()[:2]) for text in texts]
    choices = [(shot, f" {end}") for shot in shots for end in ends[40:44]]
    scored = [*choices, ("", ends[0]), ("The sky is ", "blue"), ("The sky is\n", "blue"), (texts[1], "\n" + ends[2])]
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = {
        "loglikelihood": scored,
        "loglikelihood_rolling": [(text,) for text in texts[50:53]],
        "generate_until": [(shot, options) for shot in shots],
    }
    likelihoods, rolling, generated = json.loads(run(python, BOTH, str(smollm_folder(tmp_path)), given=asked))

    expected = [value for value, _ in likelihoods[1]]  # sums over tokens, in float32 by lm-eval
    assert [value for value, _ in likelihoods[0]] == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert [greedy for _, greedy in likelihoods[0]] == [greedy for _, greedy in likelihoods[1]]
    assert rolling[0] == pytest.approx(rolling[1], rel=1e-5)
    assert generated[0] == generated[1]
