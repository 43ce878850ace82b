"""Compiles what a cell's prefill runs, and says how long that took or why it was not done."""

from models.compiled import compile_prefill
from models.language_model import SEGMENT, LanguageModel
from retbench.measure import Part, Task
from retbench.timing import sample


def compile_cell(model: LanguageModel, task: Task) -> Part:
    """Compiles in place; a prefill that cannot be compiled is measured plain, with the reason in the notes."""
    if task.cell.seq_len < SEGMENT:
        return {"notes": {"not_compiled": f"prompts of fewer than {SEGMENT} positions are not compiled"}}
    reasons = list[str | None]()
    took = sample(lambda: reasons.append(compile_prefill(model, task.cell.batch_size)), task.device)
    return {"notes": {"not_compiled": reasons[0]} if reasons[0] else {"compile_s": took.wall_ns / 1e9}}
