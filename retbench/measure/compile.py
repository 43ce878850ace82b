"""Compiles what a cell runs, and says how long that took or why it was not done."""

from models.compiled import compile_blocks, compile_prefill
from models.language_model import SEGMENT, LanguageModel
from retbench.measure import Part, Task
from retbench.timing import sample


def compile_cell(model: LanguageModel, task: Task) -> Part:
    """Compiles in place; what cannot be compiled is measured plain, with the reason in the notes."""
    cell = task.cell
    if cell.workload != "train_step" and cell.seq_len < SEGMENT:
        return {"notes": {"not_compiled": f"prompts of fewer than {SEGMENT} positions are not compiled"}}
    reasons = list[str | None]()

    def compile_parts() -> None:
        if cell.workload == "train_step":
            reasons.append(compile_blocks(model, cell.batch_size, cell.seq_len))
        else:
            reasons.append(compile_prefill(model, cell.batch_size))

    took = sample(compile_parts, task.device)
    return {"notes": {"not_compiled": reasons[0]} if reasons[0] else {"compile_s": took.wall_ns / 1e9}}
