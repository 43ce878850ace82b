"""What the gate asks of one process: a fixed small number of timed calls of a cell, or what can be counted of it.

A gate compares many such processes of two versions, since processes differ more than the calls within one do.
"""

from collections.abc import Callable
from functools import partial

from models.language_model import LanguageModel, State
from retbench.measure import Model, Part, Task
from retbench.measure.reference import VERSION, make_reference
from retbench.spec import Training
from retbench.timing import sample

ROUNDS = 20  # of the reference workload and the cell in turn
WARM_UP = 3
TIMED_S = 0.8  # of all timed calls together, roughly
MOST_CALLS = 10  # of a round


def time_calls(model: Model, task: Task) -> Part:
    """Samples of the device's work in one call of the cell, and of the reference workload between them."""
    call, reference = _call(model, task), make_reference(task.cell.workload)
    for _ in range(WARM_UP):
        reference()
        warm_s = sample(call, task.device).wall_ns / 1e9
    calls = max(1, min(MOST_CALLS, int(TIMED_S / ROUNDS / warm_s)))
    work_ns, reference_ns = list[int](), list[int]()
    for _ in range(ROUNDS):
        reference()
        reference_ns.append(task.device.work_ns(reference))
        if calls > 1:
            call()  # what the reference put out of the caches is near again; discarded
        work_ns += [task.device.work_ns(call) for _ in range(calls)]
    return {
        "samples": {"work_ns": work_ns, "reference_ns": reference_ns},
        "notes": {"reference": VERSION},
        "warmup": {"discarded": WARM_UP + ROUNDS * (calls > 1)},
    }


def count(model: Model, task: Task) -> Part:
    """Metrics that are the same in every run of the same code; those of torch's own step too, where another is used."""
    metrics = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": model.weights_bytes(),
        **_memory(model, task),
    }
    if task.cell.workload == "decode" and model.decode_backend != "torch" and isinstance(model, LanguageModel):
        model.decode_backend = "torch"
        metrics |= {f"torch_{name}": value for name, value in _memory(model, task).items() if name != "state_bytes"}
    from torch.utils.flop_counter import FlopCounterMode  # here, since timed processes shall start fast

    with FlopCounterMode(display=False) as counter:
        _call(model, task)()
    return {"metrics": {**metrics, "flops": counter.get_total_flops()}}


def _call(model: Model, task: Task) -> Callable[[], object]:
    """One call of the cell's workload: a step at full depth, a prefill of the whole length, or a training step."""
    cell, vocab_size = task.cell, model.config.vocab_size
    if cell.workload == "decode":
        state, tokens = _full_state(model, task), task.tokens(vocab_size, cell.batch_size)

        def step() -> None:
            state.position = cell.seq_len - 1
            model.step(tokens, state)

        return step
    if cell.workload == "prefill":
        return partial(model.prefill, task.tokens(vocab_size, cell.batch_size, cell.seq_len))
    if not isinstance(model, LanguageModel):
        raise NotImplementedError(f"{cell.system} is not trained here")
    from retbench.measure.train_step import Trainer

    training = cell.training or Training()
    shape = (training.grad_accumulation, cell.batch_size, cell.seq_len + 1)
    return partial(Trainer(model, training).step, task.tokens(vocab_size, *shape))


def _full_state(model: Model, task: Task) -> State:
    """A state with room for just the step after ``seq_len - 1`` tokens."""
    state = model.init_state(task.cell.batch_size, task.cell.seq_len)
    state.fill_(task.cell.seq_len - 1, task.cell.seed)
    return state


def _memory(model: Model, task: Task) -> dict[str, int]:
    """Peak bytes of weights, state and activations, all bytes that a call allocates, and the state after it."""
    states = list[State]()
    if task.cell.workload == "decode":
        tokens = task.tokens(model.config.vocab_size, task.cell.batch_size)
        peak = task.device.peak_memory(
            lambda: states.append(_full_state(model, task)), lambda _: model.step(tokens, states[0])
        )
    else:
        call = _call(model, task)
        call()  # what is made once is made
        peak = task.device.peak_memory(lambda: None, lambda _: states.extend(_states(call())))
    found = {"peak_memory_bytes": model.weights_bytes() + peak.tensor_bytes}
    if states:  # a training step has none
        found["state_bytes"] = states[0].nbytes
    return found | {"allocated_bytes": peak.counters["allocated_bytes"]}


def _states(result: object) -> list[State]:
    return [part for part in result if isinstance(part, State)] if isinstance(result, tuple) else []
