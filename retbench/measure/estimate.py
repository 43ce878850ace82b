"""What a cell would need on a device, and the longest length and the largest batch that its memory would hold."""

from collections.abc import Callable
from functools import cache

from retbench.measure.predict import UNCOUNTABLE, Prediction, Predictor
from retbench.spec import MAX_BATCH_SIZE, MAX_SEQ_LEN, Cell

SHALLOW = (3, 4)  # layers on which the peaks of training steps are traced to search among them
RESOLUTION = 256  # a length or a batch is found to one part in so many
LEAP = 8  # times the last n is the next one at most: a trace of a long text takes long
MOST_ROUNDS = 3  # of such a search, each corrected by a trace of all layers

Peak = Callable[[int], int]  # a length or a batch -> bytes
PeakAt = Callable[[int, int | None], int]  # the same of so many layers, None for all


def estimate(cell: Cell, memory_bytes: int) -> Prediction:
    """The needs of the cell's workload, of a frontier decode's; how far it could go in so many bytes, 0: nowhere."""
    predictor = Predictor(cell)
    found = needs(predictor, cell.seq_len, cell.batch_size)

    def of_length(seq_len: int, n_layers: int | None) -> int:
        return _peak(predictor, seq_len, cell.batch_size, n_layers)

    def of_batch(batch_size: int, n_layers: int | None) -> int:
        return _peak(predictor, cell.seq_len, batch_size, n_layers)

    return {
        **found,
        "longest_seq_len": _largest(predictor, of_length, memory_bytes, cell.seq_len, MAX_SEQ_LEN),
        "largest_batch_size": _largest(predictor, of_batch, memory_bytes, cell.batch_size, MAX_BATCH_SIZE),
    }


def needs(predictor: Predictor, seq_len: int, batch_size: int) -> Prediction:
    """Bytes by kind, operations, bytes moved and exchanged, under the same names whatever the workload.

    Of several ranks, those of the first; parameters are those of the whole model.
    """
    weights = predictor.weights()
    if predictor.cell.workload == "train_step":
        found = predictor.train(seq_len, batch_size)
        kinds = {"state_bytes": 0, "activations_bytes": found["activations_bytes"] + found["logits_bytes"]}
        kinds |= {name: found[name] for name in ("weights_bytes", "gradients_bytes", "optimizer_bytes")}
        kinds |= {"exchanged_bytes": found["step_exchanged_bytes"]}
        peak, work = found["peak_memory_bytes"], (found["step_flops"], found["step_moved_bytes"])
    else:
        if predictor.cell.workload == "prefill":
            found = predictor.prefill(seq_len, batch_size)
            peak, work = found["prefill_peak_memory_bytes"], (found["prefill_flops"], found["prefill_moved_bytes"])
        else:
            found = predictor.decode(seq_len, batch_size)
            peak, work = predictor.peak(seq_len, batch_size), (found["step_flops"], found["step_bytes"])
        activations = peak - weights["weights_bytes"] - found["state_bytes"]
        kinds = {"state_bytes": found["state_bytes"], "activations_bytes": activations}
        kinds |= {"gradients_bytes": 0, "optimizer_bytes": 0, "exchanged_bytes": 0}
    return {**weights, **kinds, "peak_memory_bytes": peak, "flops": work[0], "moved_bytes": work[1]}


def _peak(predictor: Predictor, seq_len: int, batch_size: int, n_layers: int | None) -> int:
    """The peak of the cell's workload; UNCOUNTABLE where the model reads no such length or torch cannot express it."""
    try:
        if predictor.cell.workload == "train_step":
            return predictor.train(seq_len, batch_size, n_layers)["peak_memory_bytes"]
        return predictor.peak(seq_len, batch_size)
    except ValueError:
        return UNCOUNTABLE
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        return UNCOUNTABLE


def largest_fitting(peak: Peak, limit: int, start: int, most: int) -> int:
    """The largest n from 1 to ``most`` whose peak, which grows with n, is at most ``limit``; 0 where none is.

    Beyond ``RESOLUTION`` it may be short of the largest by that part of it. Peaks are nearly lines or parabolas: the
    next n is where the line through the last two meets the limit, and every fourth halves what is left, whatever the
    curve.
    """
    fits, fails = 0, most + 1
    points: list[tuple[int, int]] = []
    at = min(start, most)
    while fails - fits > max(1, fits // RESOLUTION):
        points.append((at, peak(at)))
        if points[-1][1] <= limit:
            fits = at
        else:
            fails = at
        at = max(fits + 1, min(_next(points, limit, fits, fails), LEAP * at, fails - 1))
    return fits


def _next(points: list[tuple[int, int]], limit: int, fits: int, fails: int) -> int:
    last, value = points[-1]
    if len(points) == 1:
        return 2 * last if value <= limit else last // 2
    if len(points) % 4 == 0:
        return (fits + fails) // 2
    before, value_before = points[-2]
    rise, run = value - value_before, last - before
    return (
        last + (limit - value) * run // rise if rise * run > 0 else (fails if value <= limit else (fits + fails) // 2)
    )


def _largest(predictor: Predictor, peak: PeakAt, limit: int, start: int, most: int) -> int:
    """``largest_fitting``; for a deep model's training on peaks that a few layers foretell.

    These are moved by their error at what was found last, until a trace of all layers there meets them.
    """
    few, more = SHALLOW
    deep = predictor.config.n_layers - more
    if predictor.cell.workload != "train_step" or deep <= 0:
        return largest_fitting(lambda n: peak(n, None), limit, start, most)

    @cache
    def foretold(n: int) -> int:
        low, high = peak(n, few), peak(n, more)
        return high + deep * (high - low)

    at, found = start, 0
    for _ in range(MOST_ROUNDS):
        error = peak(at, None) - foretold(at)
        found = largest_fitting(foretold, limit - error, at, most)
        if found in (0, at):
            break
        at = found
    return found
