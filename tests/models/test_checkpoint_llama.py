"""A folder that Hugging Face transformers wrote gives the logits of its LlamaForCausalLM, of transformers 4 and 5.

transformers is no dependency: it is installed into an environment of its own, kept in the user's cache.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models import load_checkpoint
from retbench.errors import UsageError
from retbench.venvs import Venv
from tests.models.helpers import error, read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

VERSIONS = ("4.57.6", "5.23.0")  # rope_theta is a field of its own, and part of rope_parameters
PREFILLED, LENGTH = 19, 32
SHARED = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 101,
}
MODELS: dict[str, dict[str, Any]] = {
    "untied": {"num_key_value_heads": 8, "tie_word_embeddings": False},
    "grouped": {"num_key_value_heads": 2, "tie_word_embeddings": False, "rope_theta": 500000.0, "rms_norm_eps": 1e-5},
    "tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
}
REFERENCE = """
import json, sys
import torch, transformers
from safetensors.torch import save_file
options, folder, prefilled, length = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if int(transformers.__version__.split(".")[0]) >= 5 and "rope_theta" in options:
    options["rope_parameters"] = {"rope_type": "default", "rope_theta": options.pop("rope_theta")}
torch.manual_seed(0)
torch.set_num_threads(1)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).float().eval()
tokens = torch.randint(options["vocab_size"], (2, length))
with torch.no_grad():
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.copy_(noise * parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 1 + 0.2 * noise)
    forward = model(tokens).logits
    out = model(tokens[:, :prefilled], use_cache=True)
    decoded = [out.logits[:, -1]]
    for token in tokens[:, prefilled:].unbind(1):
        out = model(token[:, None], past_key_values=out.past_key_values, use_cache=True)
        decoded.append(out.logits[:, -1])
model.save_pretrained(folder, max_shard_size="150KB" if not options["tie_word_embeddings"] else "1GB")
result = {"tokens": tokens, "forward": forward, "decoded": torch.stack(decoded, dim=1)}
save_file({name: tensor.contiguous() for name, tensor in result.items()}, folder + "/expected.safetensors")
"""


@pytest.fixture(scope="module", params=VERSIONS)
def python_with_transformers(request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment with this version of transformers that borrows torch from ours."""
    venv = Venv(f"transformers-{request.param}", [f"transformers=={request.param}"])
    try:
        venv.install()
    except UsageError as error:
        if "from versions: none" in str(error):
            pytest.skip(f"transformers {request.param} cannot be installed: the package index is not reachable")
        raise
    return venv.python


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_transformers_gives_the_logits_of_transformers(
    python_with_transformers: Path, tmp_path: Path, name: str
) -> None:
    options = json.dumps({**SHARED, **MODELS[name]})
    arguments = [options, str(tmp_path), str(PREFILLED), str(LENGTH)]
    command = [str(python_with_transformers), "-c", REFERENCE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    expected = load_file(tmp_path / "expected.safetensors")

    model = load_checkpoint(tmp_path)
    forward = model(expected["tokens"]).detach()
    decoded = read(model, expected["tokens"], [PREFILLED])

    assert model.embedding.weight.dtype == torch.float32
    assert (tmp_path / "model.safetensors.index.json").exists() == (name != "tied")
    assert error(forward, expected["forward"]) < 1e-4
    assert error(decoded, expected["decoded"]) < 1e-4
