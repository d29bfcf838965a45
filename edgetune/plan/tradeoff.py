"""What else could have been planned: the settings that no other one beats in memory, time and learning at once.

The search answers one question, the best plan under these caps; the trade-off shows what a little more or less of each
would buy. It looks further than the search does: at every number of trailing blocks, also beyond what the method trains
of its own accord. Energy is time times watts here, so it makes no axis of its own. All figures are predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgetune.plan.bill import expected_bill
from edgetune.plan.search import Choice, Limits, Problem, Setting, choose, within
from edgetune.schema import Alternative

_SHARES = (1 / 6, 1 / 4, 1 / 2, 3 / 4, 1)  # of the blocks, beside the first few
_BANDS = (1.0, 0.5)  # of the tokens
_MOST = 8  # alternatives shown


def tradeoff(problem: Problem, limits: Limits, chosen: Choice) -> list[Alternative]:
    """The Pareto set, thinned, from the least memory to the most; the chosen plan is shown, wherever it stands."""
    found = [_point(problem, limits, choice, chosen) for choice in _candidates(problem)]
    mine = _point(problem, limits, chosen, chosen)
    front = [point for point in found if not any(_beats(other, point) for other in found)]
    front = [point for point in dict.fromkeys(front) if _costs(point) != _costs(mine) and not _beats(mine, point)]
    front.sort(key=lambda point: (point.peak_memory_bytes, -point.learning))
    return sorted([*_thinned(front, _MOST - 1), mine], key=lambda point: (point.peak_memory_bytes, -point.learning))


def _candidates(problem: Problem) -> Iterator[Choice]:
    """Settings worth a look, each on its own: as if it were the only one and nothing were capped."""
    if not problem.method.searched:
        yield from _in_parts(problem, next(problem.settings()), problem)
        return
    given = problem.method.given
    most = problem.method.trained if "trained_blocks" in given else problem.spec.depth
    bands = [problem.method.band[1]] if "token_max" in given else list(_BANDS)
    if "token_min" in given:
        bands = [band for band in bands if band >= problem.method.band[0]]
    numbers = {0, 1, 2, 3, 4, *(round(share * most) for share in _SHARES)}
    for trained in sorted(number for number in numbers if number <= most):
        for band_max in bands[: None if trained else 1]:
            method = problem.method._replace(trained=trained, k=trained)
            setting = Setting(trained, trained, band_max, method.levers)
            wide = problem._replace(method=method)
            forms = wide.thrifty(setting)
            partly = [form for form in forms if form.levers.recompute_share < 1][:1]
            for form in dict.fromkeys((forms[0], *partly, forms[-1])):
                yield from _in_parts(wide, form, problem)


def _in_parts(wide: Problem, setting: Setting, problem: Problem) -> Iterator[Choice]:
    for micro in sorted({1, wide.whole}):
        yield choose(wide._replace(allocator="fast"), setting, micro, problem)
    yield choose(wide._replace(allocator="lean"), setting, 1, problem)


def _point(problem: Problem, limits: Limits, choice: Choice, chosen: Choice) -> Alternative:
    job = choice.job
    most = problem.peak_bytes(job)
    total_s = choice.cost.total_s(choice.epochs) if choice.cost else None
    joules = None if total_s is None or problem.watts is None else total_s * problem.watts
    needed_s = choice.cost.needed_s(choice.epochs) if choice.cost else None
    needed_j = None if needed_s is None or problem.watts is None else needed_s * problem.watts
    fits = within(limits.memory_bytes, most) and within(limits.time_s, needed_s) and within(limits.energy_j, needed_j)
    return Alternative(
        trained_blocks=sum(job.trainable),
        k=job.k,
        token_share=round(job.keep_max[-1] / job.spec.patches, 3),
        saved_precision=job.levers.saved_precision,
        saved_activations=job.levers.saved_activations,
        recomputed_blocks=len(job.recomputed),
        micro_batch_size=job.micro_batch_size,
        allocator=job.allocator,
        peak_memory_bytes=expected_bill(job, problem.runtime_bytes, problem.first_use).total,
        total_s=total_s,
        total_energy_j=joules,
        work_per_epoch=choice.price,
        learning=choice.learning / chosen.learning,
        within_caps=fits or choice is chosen,
        chosen=choice is chosen,
    )


def _costs(point: Alternative) -> tuple[float, float, float]:
    """Memory, time (or work, where nothing was timed) and learning, all of which should be small."""
    spent = point.work_per_epoch if point.total_s is None else point.total_s
    return float(point.peak_memory_bytes), spent, -point.learning


def _beats(other: Alternative, point: Alternative) -> bool:
    ours, theirs = _costs(point), _costs(other)
    return theirs != ours and all(their <= our for their, our in zip(theirs, ours, strict=True))


def _thinned(points: Sequence[Alternative], most: int) -> list[Alternative]:
    """So many of them, evenly spread, the ends included."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]
