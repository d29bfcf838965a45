"""Running the graphs: sessions made when first needed, inputs and outputs bound to the caller's own memory.

All sessions share one arena for what a graph computes on the way, which grows by what is asked for and no more: the
same memory serves every half block of every step, and the kernel need not hand out fresh pages. Each has threads of
its own, and none spins while it waits: the next graph's would have to wait for them (docs/onnx_engine.md has figures).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgetune.train.allocator import release_code

Arrays = Mapping[str, NDArray[Any]]
Load = Callable[[str], bytes]

LIBRARY = "onnxruntime_pybind11_state"  # the file that holds onnxruntime
_ARENA = {"initial_chunk_size_bytes": 1 << 20, "max_dead_bytes_per_chunk": 1 << 16}


class Runtime:
    """Sessions of the graphs by name.

    Args:
        load: gives a graph as bytes.
        threads: of the arithmetic.
    """

    def __init__(self, load: Load, threads: int) -> None:
        self._load, self._threads = load, threads
        self._sessions: dict[str, tuple[Any, Any, list[str], list[str]]] = {}
        self._shrink = False
        self._shrinking = onnxruntime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        share_arena()

    def run(self, name: str, inputs: Arrays, outputs: Arrays) -> None:
        """Run a graph.

        Args:
            name: of the graph.
            inputs: contiguous arrays by name; those that the graph does not need are left alone.
            outputs: where its results go, of just their shapes.
        """
        session, binding, needed, given = self._session(name)
        for key in needed:
            _bind(binding.bind_input, key, inputs[key])
        for key in given:
            _bind(binding.bind_output, key, outputs[key])
        session.run_with_iobinding(binding, self._shrinking if self._shrink else None)
        self._shrink = False

    def needs(self, name: str) -> list[str]:
        """The inputs of a graph."""
        return self._session(name)[2]

    def _session(self, name: str) -> tuple[Any, Any, list[str], list[str]]:
        if name not in self._sessions:
            session = onnxruntime.InferenceSession(
                self._load(name), self._options(), providers=["CPUExecutionProvider"]
            )
            inputs = [item.name for item in session.get_inputs()]
            outputs = [item.name for item in session.get_outputs()]
            self._sessions[name] = session, session.io_binding(), inputs, outputs
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
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


@cache
def share_arena() -> None:
    """Set up the arena that sessions of this process may share; those that don't ask for it are left alone."""
    kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    as_requested = onnxruntime.OrtArenaCfg({"max_mem": 0, "arena_extend_strategy": 1, **_ARENA})
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use), as_requested)


def _bind(bind: Callable[..., None], key: str, array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous:
        raise ValueError(f"{key} is not contiguous")
    bind(key, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def empty(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array of any content."""
    return np.empty(shape, np.float32)
