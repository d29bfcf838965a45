"""A plan in words: one sentence per decision, and the sentence for a plan that can't be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from edgetune.device.power.battery import CHARGE_SHARE
from edgetune.errors import InfeasibleError
from edgetune.plan.search import Choice, Limits, Problem, nearest_feasible, search
from edgetune.schema import Alternative, NearestFeasible
from edgetune.units import format_duration, format_energy, format_power, format_size


class Decisions(NamedTuple):
    """Everything a sentence may need to refer to."""

    problem: Problem
    limits: Limits
    choice: Choice
    wanted_batch: int
    cap_source: str | None
    runtime_measured: bool
    watts_source: str | None
    time_factor: float = 1.0
    engine_asked: str = "auto"
    torch_tried: bool = True
    battery_j: float | None = None  # that may be spent of what a battery holds; None: no battery feeds the machine
    default_rate: float | None = None  # learning rate, where none was given


def why(decisions: Decisions) -> list[str]:
    """One sentence per decision."""
    problem, limits, choice = decisions.problem, decisions.limits, decisions.choice
    return [
        _engine_sentence(decisions),
        _memory_sentence(decisions),
        *_battery_sentence(decisions),
        _blocks_sentence(problem, choice),
        *_tokens_sentence(problem, choice),
        *_trainer_sentences(problem, choice),
        *_kept_sentences(problem, choice),
        *_frozen_sentences(problem, choice),
        _batch_sentence(decisions),
        *_rate_sentence(decisions),
        _allocator_sentence(choice),
        *_workers_sentence(problem),
        _epochs_sentence(problem, limits, choice),
        _runtime_sentence(decisions),
        *_power_sentence(decisions),
        *_certainty_sentences(decisions),
    ]


def spare(alternatives: Sequence[Alternative]) -> list[str]:
    """A hint where the caps have room for more blocks than the method trains of its own accord."""
    own = next(found for found in alternatives if found.chosen)
    roomy = [found for found in alternatives if found.within_caps and found.trained_blocks > own.trained_blocks]
    better = max(roomy, key=lambda found: found.learning, default=None)
    if better is None or better.learning <= own.learning or better.total_s is None:
        return []
    costs = f"{format_size(better.peak_memory_bytes)}, {format_duration(better.total_s)}"
    return [
        f"The caps also have room for {better.trained_blocks} trained blocks ({costs}), which can be expected to learn"
        f" more: --lever trained_blocks={better.trained_blocks}."
    ]


def _certainty_sentences(decisions: Decisions) -> list[str]:
    """How far the figures may be off."""
    problem, sentences = decisions.problem, []
    if problem.margin_bytes:
        sentences.append(
            f"{format_size(problem.margin_bytes)} are left free for a bare process that is larger than reckoned."
        )
    if decisions.choice.cost is not None:
        sentences.append(f"Times and energies may be off by a factor of {decisions.time_factor:.3g}, either way.")
    return sentences


def _allocator_sentence(choice: Choice) -> str:
    if choice.job.allocator == "fast":
        return "Freed memory is kept for reuse, which is faster; the cap has room for it."
    return "Freed memory goes back to the kernel at once: slower, but this plan fits the cap only so."


def _engine_sentence(decisions: Decisions) -> str:
    name = {"torch": "torch", "onnx": "onnxruntime, without torch,"}[decisions.problem.engine]
    if decisions.engine_asked != "auto":
        return f"The arithmetic is done by {name} as --engine asks."
    if decisions.problem.engine == "torch":
        return f"The arithmetic is done by {name}; --engine onnx needs less memory for the process itself."
    why = "under the caps a plan with torch would learn less" if decisions.torch_tried else "torch is not installed"
    return f"The arithmetic is done by {name} since {why}."


def _battery_sentence(decisions: Decisions) -> list[str]:
    if decisions.battery_j is None:
        return []
    return [f"A battery feeds the machine: no more than {format_energy(decisions.battery_j)} of its charge is planned."]


def _rate_sentence(decisions: Decisions) -> list[str]:
    if decisions.default_rate is None:
        return []
    method, trained = decisions.problem.method, decisions.choice.setting.trained
    if method.learning_rate is not None:
        by = "the method's own"
    elif not trained:
        by = "for a classifier that trains alone"
    else:
        blocks = f"{trained} trained block{'s' if trained > 1 else ''}"
        by = f"for a model {decisions.problem.spec.width} wide and {blocks}"
    return [f"The learning rate is {decisions.default_rate:.2g}, {by}; --lr sets another."]


def _workers_sentence(problem: Problem) -> list[str]:
    if not problem.workers:
        return ["Images are decoded in the training process, between steps."]
    return [f"{problem.workers} process{'es' if problem.workers > 1 else ''} beside the trainer decode the images."]


def infeasible(refused: Sequence[Problem], limits: Limits, *, battery: bool = False) -> InfeasibleError:
    """Why nothing fits, and what would.

    Args:
        refused: the problem of every engine that was tried.
        limits: the caps.
        battery: the cap on energy is what a battery holds.
    """
    kinds = [name for name in limits._fields if getattr(limits, name) is not None]
    each = [Limits(**{name: getattr(limits, name)}) for name in kinds]
    least: dict[str, tuple[Any, Problem]] = {}
    alone: list[tuple[Problem, dict[str, Any]]] = []  # the smallest value of each cap, whatever the others are
    for problem in refused:
        found, *singly = nearest_feasible(problem, [limits, *each])
        for name in limits._fields:
            value = getattr(found, name)
            if value is not None and (name not in least or value < least[name][0]):
                least[name] = value, problem
        alone.append((problem, {name: getattr(one, name) for name, one in zip(kinds, singly, strict=True)}))
    # None: nobody knows how long anything takes
    too_small: list[Any] = [
        name
        for name in kinds
        if all(values[name] is not None and values[name] > getattr(limits, name) for _, values in alone)
    ]
    ways = [
        _flag(name, value, battery) + _given_up(problem, limits._replace(**{name: value}), of_engines=len(refused) > 1)
        for name, (value, problem) in least.items()
        if name == "memory_bytes" or name in kinds
    ]
    if ways:
        hint = f"the least that would do is {' or '.join(ways)}, the other caps held"
    else:
        # of the engine that needs least memory
        small, values = min(alone, key=lambda entry: entry[1].get("memory_bytes") or 0)
        hint = _together(small, limits, values, battery) or "no caps would do"
    first = refused[0]
    model = f"{first.spec.name} at {first.spec.image_size} px"
    sentence = f"No plan of method {first.method.name} for {model} fits {_asked(limits, too_small, battery)}: {hint}."
    nearest = NearestFeasible(**{name: value for name, (value, _) in least.items()}, too_small=too_small)
    return InfeasibleError(sentence, nearest)


def _asked(limits: Limits, too_small: Sequence[str], battery: bool) -> str:
    """The caps, and where there are several, which of them fail by themselves."""
    texts = (
        ("memory_bytes", f"{format_size(limits.memory_bytes)} of memory"),
        ("energy_j", format_energy(limits.energy_j) + (" of the battery's charge" if battery else "")),
        ("time_s", format_duration(limits.time_s)),
    )
    asked = [text for name, text in texts if getattr(limits, name) is not None]
    if len(asked) == 1:
        return asked[0]
    kinds = {"memory_bytes": "memory", "energy_j": "the charge" if battery else "energy", "time_s": "time"}
    fail = "fails by itself" if len(too_small) == 1 else "fail by themselves"
    alone = f" ({_listed([kinds[name] for name in too_small])} {fail})" if too_small else " together"
    return _listed(asked) + alone


def _listed(words: Sequence[str]) -> str:
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def _together(problem: Problem, limits: Limits, alone: dict[str, Any], battery: bool) -> str | None:
    """What each cap would have to be whatever the others are, and what would do together; None where nothing does."""
    if None in alone.values():
        return None
    enough = limits._replace(energy_j=None, time_s=None)
    if limits.memory_bytes is not None:
        enough = enough._replace(memory_bytes=max(limits.memory_bytes, alone["memory_bytes"]))
    # energy and time of the shortest run in that memory: one run is the shortest in both
    others = [name for name in ("energy_j", "time_s") if getattr(limits, name) is not None]
    asked = [enough._replace(**{name: getattr(limits, name)}) for name in others]
    for name, found in zip(others, nearest_feasible(problem, asked), strict=True):
        least = getattr(found, name)
        if least is None:
            return None
        enough = enough._replace(**{name: max(getattr(limits, name), least)})
    fails = [_flag(name, value, battery) for name, value in alone.items() if getattr(limits, name) < value]
    needed = {name: value for name, value in enough._asdict().items() if value is not None}
    caps = " ".join(_flag(name, value, battery) for name, value in needed.items())
    whole = f"together {caps} would do{_given_up(problem, enough)}"
    return f"whatever the others are, it takes {' and '.join(fails)}; {whole}" if fails else whole


def _flag(name: str, value: float, battery: bool) -> str:
    """A cap as it is given, never below `value`."""
    if name == "memory_bytes":
        return f"--memory {math.ceil(value / 1e6)}MB"
    if name == "time_s":
        return f"--time {_up(value)}s"
    return f"a charge of {_up(value / CHARGE_SHARE)}J" if battery else f"--energy {_up(value)}J"


def _given_up(problem: Problem, limits: Limits, *, of_engines: bool = False) -> str:
    """What the best plan under such caps does without, in brackets; nothing where it does without nothing."""
    choice, method = search(problem, limits), problem.method
    if choice is None:
        return ""
    lost = ["with --engine onnx"] if of_engines and problem.engine == "onnx" else []
    if choice.setting.trained < method.trained:
        lost.append(
            f"{choice.setting.trained} instead of {method.trained} blocks"
            if choice.setting.trained
            else "nothing but the classifier trained"
        )
    elif choice.setting.k < method.k:
        lost.append(f"{choice.setting.k} instead of {method.k} blocks at a time")
    if choice.setting.trained and choice.setting.band_max < method.band[1]:
        lost.append(f"{choice.setting.band_max:.0%} of the tokens")
    if choice.setting.levers.saved_precision == "int4" != method.levers.saved_precision:
        lost.append("saved tensors in 4 bits")
    if choice.epochs < problem.epochs:
        lost.append(f"{choice.epochs:.2g} instead of {problem.epochs} epochs")
    return f" ({', '.join(lost)})" if lost else ""


def _up(value: float) -> float:
    """A readable number that is not below `value`."""
    return math.ceil(value) if value >= 10 else math.ceil(value * 1000) / 1000


def _memory_sentence(decisions: Decisions) -> str:
    cap = decisions.limits.memory_bytes
    if cap is None:
        return "Memory is not capped: how much may be used could not be read, and --memory was not given."
    return f"Memory is capped at {format_size(cap)} ({decisions.cap_source}), the bare process included."


def _blocks_sentence(problem: Problem, choice: Choice) -> str:
    depth, trained, method = problem.spec.depth, choice.setting.trained, problem.method
    if not trained:
        reason = f" ({_instead(problem, choice, 'a whole block')})" if method.searched and method.trained else ""
        return f"Only the final norm and the classifier train{reason}; no block keeps anything for a backward pass."
    if method.lora:
        what = f"Rank-{method.lora.rank} adapters of {'all' if trained == depth else 'the last'} {trained} blocks train"
    elif trained == depth:
        what = f"All {depth} blocks train" + (", and the embeddings" if method.embeddings_trainable else "")
    else:
        what = (
            f"Blocks {depth - trained} to {depth - 1} of {depth} train; nothing below them is kept for a backward pass"
        )
    if method.searched:
        usual = (
            "as --lever trained_blocks asks" if "trained_blocks" in method.given else "method edgetune's usual share"
        )
        what += f" — {usual}" if trained == method.trained else f" — {_instead(problem, choice, str(method.trained))}"
    if choice.job.k < trained:
        fewer = method.searched and choice.setting.k < min(method.k, trained)
        reason = f" ({_instead(problem, choice, 'more')})" if fewer else ""
        what += f"; {choice.job.k} of them are drawn at each step{reason}"
    return what + "."


def _instead(problem: Problem, choice: Choice, what: str) -> str:
    """Why not `what`: it has no room, or what has room for it learns less in the time there is."""
    if problem.hurried and choice.epochs > problem.least_epochs:
        return f"under the caps {what} would not fit, or would learn less"
    return f"{what} did not fit the caps"


def _tokens_sentence(problem: Problem, choice: Choice) -> list[str]:
    alast, patches = problem.method.alast, problem.spec.patches
    if alast is None or not choice.setting.trained:
        return []
    low, high = choice.job.keep_min[-1], choice.job.keep_max[-1]
    if low == patches:
        return [f"All {patches} patches pass every block."]
    if alast.mode == "random":
        return [
            f"Every block lets {alast.initial_budget:.0%} of the patches it gets pass, whatever they show: the control."
        ]
    if alast.mode == "reference":
        note = ""
        if choice.job.accumulates:
            note = "; the batch is split to fit, and each part then counts as a step of the budget rule"
        return [
            f"Budgets between {alast.budget_min} and {alast.budget_max} decide how many patches leave a block{note}."
        ]
    lowered = choice.setting.band_max != problem.method.band[1]
    reason = f", lowered from {patches}: {_instead(problem, choice, 'more')}" if lowered else ""
    number = str(high) if low == high else f"Between {low} and {high}"
    return [f"{number} of {patches} patches leave each block of the trained part{reason}."]


def _trainer_sentences(problem: Problem, choice: Choice) -> list[str]:
    """Who trains, and in which arithmetic, where that is not the plainest."""
    levers, sentences = choice.job.levers, []
    if levers.trainer == "lean":
        sentences.append("The lean trainer runs the blocks, with a backward pass of its own.")
    if "bf16" in (levers.precision, levers.frozen_precision):
        below = " below the lowest trained block" if choice.setting.trained else " of the frozen blocks"
        where = "" if levers.precision == "bf16" else below
        chosen = levers.frozen_precision != problem.method.levers.frozen_precision
        reason = ", which is faster here and leaves more of the caps for training" if chosen else ""
        sentences.append(
            f"Matrices{where} are multiplied in bf16{reason}; weights that train and their updates stay in fp32."
        )
    rules = {
        "adam": "Adam updates the weights; its decay, if any, is added to the gradient.",
        "sgd": "SGD with momentum updates the weights, at four bytes of state each.",
        "sgd-plain": "SGD without momentum updates the weights and keeps no state.",
    }
    if levers.optimizer in rules:
        sentences.append(rules[levers.optimizer])
    elif levers.optimizer_state == "fp32":
        sentences.append("AdamW updates the weights, at eight bytes of state each.")
    else:
        how = "in 8 bits" if levers.optimizer_state == "int8" else "in 8 bits and as means of rows and columns"
        sentences.append(f"AdamW keeps its moments {how}.")
    return sentences


def _kept_sentences(problem: Problem, choice: Choice) -> list[str]:
    """What becomes of what waits for the backward pass."""
    job, levers, usual = choice.job, choice.job.levers, problem.method.levers
    if job.lowest == job.spec.depth and not job.embeddings_trainable:
        return []
    again = len(job.recomputed)
    if not job.lean:
        what = "Of each block only the input is kept for the backward pass; the rest is run again."
        return [what] if again else []
    kept = {"fp32": "exactly", "bf16": "in bf16", "int8": "in 8 bits", "int4": "in 4 bits"}[levers.saved_precision]
    number = f" {again} blocks" if again > 1 else " block"
    lower = "" if job.recomputed.stop == job.spec.depth else f" of the lowest{number}"
    rest = f";{lower} only each half block's input, and the rest is run again" if again else ""
    reason = ""
    if any(getattr(levers, name) != getattr(usual, name) for name in ("saved_precision", "saved_activations")):
        reason = " — the caps leave no room for more"
    return [f"What waits for the backward pass is kept {kept}{rest}{reason}; a gradient lives for half a block."]


def _frozen_sentences(problem: Problem, choice: Choice) -> list[str]:
    """What becomes of the blocks that do not train."""
    job, levers = choice.job, choice.job.levers
    frozen = job.spec.depth if job.lora_rank else job.lowest
    if not job.lean or not frozen:
        return []
    kept = {
        "fp32": "kept exactly", "bf16": "kept in bf16", "int8": "kept in 8 bits", "disk": "read from the disk",
    }[levers.frozen_weights]  # fmt: skip
    reason = (
        "" if levers.frozen_weights == problem.method.levers.frozen_weights else " — the cap leaves no room for more"
    )
    sentences = []
    if job.cached and job.lowest:
        views = levers.feature_views
        sentences.append(
            f"What the frozen part makes of an image is computed once and kept on disk ({levers.feature_cache}); "
            + ("augmentation is given up for it." if views == 1 else f"augmentation is down to {views} views an image.")
        )
        sentences.append(f"For that the frozen weights are {kept}{reason}.")
    else:
        sentences.append(f"Frozen blocks run at every step; their weights are {kept}{reason}.")
    return sentences


def _batch_sentence(decisions: Decisions) -> str:
    job = decisions.choice.job
    text = f"Batches hold {job.batch_size} images"
    if job.batch_size < decisions.wanted_batch:
        text += f" (all there are; {decisions.wanted_batch} were wanted)"
    if not job.accumulates:
        return text + ", which fit in one piece."
    if job.lean:
        usual = "" if job.micro_batch_size == decisions.problem.whole else ", as many as the memory cap has room for"
        given = job.levers.part_tokens
        usual = usual or ("" if given is None else f", about {given} tokens")
        return text + f", of which {job.micro_batch_size} pass a block at a time{usual}; the gradient is the same."
    return text + f", passed {job.micro_batch_size} at a time to fit the memory cap; the gradient is the same."


def _epochs_sentence(problem: Problem, limits: Limits, choice: Choice) -> str:
    steps = math.floor(choice.epochs * math.ceil(problem.train_images / problem.batch_size) + 1e-6)
    epochs = f"{math.floor(10 * choice.epochs + 1e-6) / 10:g}"
    text = f"{epochs} epoch{'s' if epochs != '1' else ''} of {problem.train_images} images are {steps} steps"
    capped = limits.energy_j is not None or limits.time_s is not None
    if choice.epochs < problem.epochs:
        return (
            text
            + f", what the {'energy' if _energy_binds(problem, limits) else 'time'} cap is expected to allow of the"
            f" {problem.epochs} wanted; the schedule ends where the cap does."
        )
    if capped and choice.cost is None:
        return text + "; without probes nobody knows how long they take, so the caps are enforced while running."
    return text + (", which the caps allow." if capped else ".")


def _energy_binds(problem: Problem, limits: Limits) -> bool:
    if limits.energy_j is None or problem.watts is None:
        return False
    return limits.time_s is None or limits.energy_j / problem.watts < limits.time_s


def _runtime_sentence(decisions: Decisions) -> str:
    how = "as the profile measured it" if decisions.runtime_measured else "a guess, since no profile measured it"
    return f"{format_size(decisions.problem.runtime_bytes)} of the peak are the bare process, {how}."


def _power_sentence(decisions: Decisions) -> list[str]:
    watts = decisions.problem.watts
    if watts is None or decisions.choice.cost is None:
        return []
    return [f"Joules are predicted seconds times {format_power(watts)} ({decisions.watts_source})."]
