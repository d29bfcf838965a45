"""Running the graphs: sessions made when first needed, inputs and outputs bound to the caller's own memory.

All sessions share one arena for what a graph computes on the way, which grows by what is asked for and no more: the
same memory serves every half block of every step, and the kernel need not hand out fresh pages. Each has threads of
its own, which spin for a moment between operators and never after a graph: the next graph's would have to wait for them
(docs/onnx_engine.md has figures).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from edgetune.allocator import release_code
from edgetune.errors import InputError
from edgetune.model.onnx_version import OLDEST_ONNXRUNTIME, version_of

Arrays = Mapping[str, NDArray[Any]]
Load = Callable[[str], bytes]
Bound = Callable[[], NDArray[Any] | None]  # a weak reference: memory that its owner lets go is free

LIBRARY = "onnxruntime_pybind11_state"  # the file that holds onnxruntime
# A runtime too old to know a duration spins for its own, a thousandth of a second about, until the graph has run.
_WAITING = {"session.intra_op.spin_duration_us": "50", "session.force_spinning_stop": "1"}
_ARENA = {"initial_chunk_size_bytes": 1 << 20, "max_dead_bytes_per_chunk": 1 << 16}


class _Session(NamedTuple):
    """A graph ready to run."""

    session: Any
    binding: Any
    needs: list[str]  # names of inputs
    gives: list[str]  # and of outputs
    bound: dict[str, Bound]  # by name; binding costs several microseconds, so that what is bound already is left alone


class Runtime:
    """Sessions of the graphs by name.

    Args:
        load: gives a graph as bytes.
        threads: of the arithmetic.
    """

    def __init__(self, load: Load, threads: int) -> None:
        self._load, self._threads = load, threads
        self._sessions: dict[str, _Session] = {}
        self._shrink = False
        self._shrinking = onnxruntime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        refuse_old_runtime()
        share_arena()

    def run(self, name: str, inputs: Arrays, outputs: Arrays) -> None:
        """Run a graph.

        Args:
            name: of the graph.
            inputs: contiguous arrays by name; those that the graph does not need are left alone.
            outputs: where its results go, of just their shapes.
        """
        ours = self._session(name)
        bound = ours.bound
        for key in ours.needs:
            if bound[key]() is not inputs[key]:
                bound[key] = _bind(ours.binding.bind_input, key, inputs[key])
        for key in ours.gives:
            if bound[key]() is not outputs[key]:
                bound[key] = _bind(ours.binding.bind_output, key, outputs[key])
        ours.session.run_with_iobinding(ours.binding, self._shrinking if self._shrink else None)
        self._shrink = False

    def needs(self, name: str) -> list[str]:
        """The inputs of a graph."""
        return self._session(name).needs

    def _session(self, name: str) -> _Session:
        if name not in self._sessions:
            session = _read(name, self._load(name), self._options())
            needs = [item.name for item in session.get_inputs()]
            gives = [item.name for item in session.get_outputs()]
            bound: dict[str, Bound] = dict.fromkeys((*needs, *gives), _nothing)
            self._sessions[name] = _Session(session, session.io_binding(), needs, gives, bound)
            release_code(LIBRARY)  # reading and rewriting graphs takes more of it than running them
        return self._sessions[name]

    def shrink(self) -> None:
        """Give back what the arena holds and nobody uses, when the next graph has run."""
        self._shrink = True

    def _options(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # beyond this level lie layouts for convolutions, of which there are none
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.intra_op_num_threads = self._threads
        for key, value in _WAITING.items():
            options.add_session_config_entry(key, value)
        return options


def _read(name: str, graph: bytes, options: Any) -> Any:
    """A session of a graph; memory that runs out is for who asked (`edgetune.train.scarcity`).

    Raises:
        InputError: it is no graph that onnxruntime can read.
    """
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except (state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument, state.NotImplemented) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the training graph {name} can't be read by onnxruntime {onnxruntime.__version__} ({reason}); delete the"
            " folder edgetune/graphs of your cache, or export it anew."
        ) from None


def refuse_old_runtime() -> None:
    """See that the onnxruntime at hand, whichever distribution brought it, is new enough.

    Raises:
        InputError: it is not.
    """
    if version_of(onnxruntime.__version__) < OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        raise InputError(
            f"--engine onnx needs onnxruntime {oldest} or newer, this is {onnxruntime.__version__}; update it."
        )


@cache
def share_arena() -> None:
    """Set up the arena that sessions of this process may share; those that don't ask for it are left alone."""
    kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    as_requested = onnxruntime.OrtArenaCfg({"max_mem": 0, "arena_extend_strategy": 1, **_ARENA})
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use), as_requested)


def _bind(bind: Callable[..., None], key: str, array: NDArray[Any]) -> Bound:
    if not array.flags.c_contiguous:
        raise ValueError(f"{key} is not contiguous")
    bind(key, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    return weakref.ref(array)


def _nothing() -> None:
    """What a name is bound to before the first run."""
