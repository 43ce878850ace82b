"""What GitHub runs: files that fit its schemas, and options that retbench has."""

import re
import subprocess
import sys

import pytest

from retbench.environment import ROOT


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        *((path.relative_to(ROOT).as_posix(), "workflows") for path in (ROOT / ".github" / "workflows").glob("*.yml")),
        ("action.yml", "actions"),
    ],
)
def test_the_file_fits_the_schema(path: str, schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.github-{schema}", path]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_action_uses_options_that_the_gate_has() -> None:
    used = re.findall(r"--[a-z-]+", (ROOT / "action.yml").read_text().partition("retbench gate --")[2])
    text = subprocess.run(
        [sys.executable, "-m", "retbench", "gate", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True, env={"COLUMNS": "200"},
    ).stdout  # fmt: skip

    assert used
    assert set(used) <= set(re.findall(r"--[a-z-]+", text))


def test_every_input_of_the_action_reaches_the_gate() -> None:
    text = (ROOT / "action.yml").read_text()
    named = re.findall(r"^  ([a-z-]+):$", text.partition("inputs:")[2].partition("outputs:")[0], re.MULTILINE)

    assert named
    assert all(f"${{{{ inputs.{name} }}}}" in text for name in named)
