"""The memory bill of the ONNX engine: what `edgetune.train.onnx` holds, read off its code. Pure arithmetic, no torch.

It is the lean trainer's bill (`edgetune.plan.lean_bill`), with three differences. The residual stream itself is what
each half keeps of its input, and two more places hold the stream, or its gradient. Attention over N tokens is written
out, H · N² numbers an image: the scores, their softmax, and the gradient of both. And a session per graph, with the
code that the first step brings into memory, takes `STEP_BYTES` whatever the model.
"""

from __future__ import annotations

from edgetune.plan import lean_bill
from edgetune.plan.job import Job, entering
from edgetune.plan.lean_bill import FLOAT_BYTES, FROZEN, Moment

# Calibrated with benchmarks/onnx_engine.py (docs/onnx_engine.md).
STEP_BYTES, SLACK_SHARE = 12 << 20, 0.08


def moments(job: Job, filling: int | None = None) -> list[Moment]:
    """Every moment that can be the highest; see `edgetune.plan.lean_bill.moments`."""
    spec, part = job.spec, job.micro_batch_size
    filling = part if filling is None else filling
    tokens = entering(spec, job.keep_max)
    first = 0 if job.embeddings_trainable else job.lowest
    row = FLOAT_BYTES * spec.width
    places = 2 * row * job.batch_size * spec.tokens
    inside = 6 * spec.width + 5 * spec.hidden  # numbers a token, of the MLP's backward pass at its highest
    weights = lean_bill.passing_bytes(job)
    above = weights if job.lora_rank or not job.over_features else 0
    found: list[Moment] = []
    forward = FLOAT_BYTES * max(  # an image
        spec.tokens * (6 * spec.width + 3 * spec.hidden),
        spec.tokens * 5 * spec.width + 2 * spec.heads * spec.tokens**2,
    )
    if first > 0:
        group = lean_bill.group_size(spec, filling) if job.cached else job.batch_size
        found.append(Moment(FROZEN, weights, 0.0, row * spec.tokens * group * 3 + filling * forward))
    kept = row * job.batch_size * tokens[first] if first < spec.depth else 0.0
    for index in range(first, spec.depth):
        kept += lean_bill.saved_bytes(job, index)
        attention = 10 * spec.width * tokens[index] + 4 * spec.heads * tokens[index] ** 2
        step = FLOAT_BYTES * part * max(tokens[index] * inside, attention)
        found.append(Moment(f"backward, block {index}", above, kept, places + step))
    found.append(Moment("evaluation", weights, 0.0, places + row * spec.tokens * job.batch_size + part * forward))
    return found
