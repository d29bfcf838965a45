"""How much memory may be used: fixtures, control groups of both versions along the ancestors, and what isn't enforced."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.memory import (
    Groups,
    controllers_enforce,
    parse_cgroup,
    parse_limit,
    parse_meminfo,
    parse_shm_size,
    parse_stat,
    parse_swaps,
    read_memory,
    usable_bytes,
)
from edgetune.device.system import System
from edgetune.schema import Memory
from tests.device.conftest import OpenBoard

MIB = 1 << 20
GROUP = "sys/fs/cgroup"


def test_orin_nano_as_published(open_board: OpenBoard) -> None:
    memory = read_memory(open_board("orin-nano-super-jp6"))
    assert memory.total_bytes == 7802880 * 1024
    assert memory.available_bytes == 6250112 * 1024 == usable_bytes(memory)
    assert memory.nvmap_used_bytes == 805068 * 1024
    assert memory.swap_bytes == memory.zram_bytes == 3901440 * 1024
    assert (memory.unified, memory.page_bytes, memory.limit_bytes) == (True, 4096, None)
    assert memory.cuda_total_bytes is None


@pytest.mark.parametrize("seed", [None, 3])
def test_a_container_is_held_to_its_limit(open_board: OpenBoard, seed: int | None) -> None:
    system = open_board("container-v2", seed=seed)
    memory = read_memory(system)
    assert memory.limit_bytes == 2147483648 < (memory.total_bytes or 0)
    assert memory.limit_source == "/sys/fs/cgroup/memory.max"
    assert memory.limit_enforced is True
    # 300 MiB are used, of which 100 MiB of file pages go first
    assert memory.limit_room_bytes == usable_bytes(memory) == 2147483648 - 200 * MIB
    assert memory.shm_bytes == 64 * MIB
    assert system.warnings == []


def test_an_unlimited_container_of_version_1_has_no_limit(open_board: OpenBoard) -> None:
    memory = read_memory(open_board("container-v1"))
    assert (memory.limit_bytes, memory.limit_source, memory.limit_enforced) == (None, None, True)
    assert usable_bytes(memory) == memory.available_bytes


def test_a_limited_container_of_version_1(open_board: OpenBoard) -> None:
    memory = read_memory(open_board("container-v1", files={f"{GROUP}/memory/memory.limit_in_bytes": "536870912\n"}))
    assert (memory.limit_bytes, memory.limit_enforced) == (512 * MIB, True)
    assert usable_bytes(memory) == 512 * MIB - (81264640 - 4096)


def test_raspberry_pi_os_enforces_no_limit_and_says_so(open_board: OpenBoard) -> None:
    system = open_board("rpi-nomemcg")
    memory = read_memory(system)
    assert (memory.limit_enforced, memory.limit_bytes) == (False, None)
    assert any("not enforced" in sentence for sentence in system.warnings)
    switched_on = open_board("rpi4")
    assert read_memory(switched_on).limit_enforced is True
    assert switched_on.warnings == []


def test_without_the_list_of_controllers_the_command_line_tells(open_board: OpenBoard) -> None:
    files = {f"{GROUP}/cgroup.controllers": None}
    assert read_memory(open_board("rpi-nomemcg", files=files)).limit_enforced is False
    assert read_memory(open_board("x86-rapl", files=files)).limit_enforced is None


def test_pi_5_has_pages_of_16_kib(open_board: OpenBoard) -> None:
    assert read_memory(open_board("rpi5")).page_bytes == 16384
    assert read_memory(open_board("x86-vm")).page_bytes is None  # another root's can't be known


def test_the_lowest_limit_of_the_ancestors_counts_and_so_does_the_least_room(open_board: OpenBoard) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b/c\n",
        f"{GROUP}/a/memory.max": f"{4096 * MIB}",
        f"{GROUP}/a/memory.current": f"{3900 * MIB}",  # its other members leave 196 MiB
        f"{GROUP}/a/b/memory.max": "max",
        f"{GROUP}/a/b/memory.high": f"{1024 * MIB}",
        f"{GROUP}/a/b/memory.current": f"{100 * MIB}",
        f"{GROUP}/a/b/c/memory.max": f"{2048 * MIB}",
        f"{GROUP}/a/b/c/memory.current": f"{100 * MIB}",
    }
    memory = read_memory(open_board("x86-rapl", files=files))
    assert memory.limit_bytes == 1024 * MIB
    assert memory.limit_source == "/sys/fs/cgroup/a/b/memory.high"
    assert memory.limit_room_bytes == usable_bytes(memory) == 196 * MIB


def test_a_limit_above_the_machine_is_none(open_board: OpenBoard) -> None:
    memory = read_memory(open_board("container-v2", files={f"{GROUP}/memory.max": str(1 << 50)}))
    assert memory.limit_bytes is None


def test_a_group_that_uses_more_than_its_limit_leaves_nothing(open_board: OpenBoard) -> None:
    files = {f"{GROUP}/memory.current": str(5 << 30)}
    assert usable_bytes(read_memory(open_board("container-v2", files=files))) == 0


def test_use_that_can_not_be_read_leaves_the_limit_itself(open_board: OpenBoard) -> None:
    memory = read_memory(open_board("container-v2", errnos={"memory.current": "EACCES"}))
    assert memory.limit_room_bytes is None
    assert usable_bytes(memory) == 2147483648


def test_a_limit_that_is_no_number_is_named(open_board: OpenBoard) -> None:
    system = open_board("container-v2", files={f"{GROUP}/memory.max": "plenty"})
    assert read_memory(system).limit_bytes is None
    assert any("/sys/fs/cgroup/memory.max" in sentence for sentence in system.warnings)


@pytest.mark.parametrize(
    "meminfo",
    ["", "MemTotal: lots kB\n", "\xff\0\1garbage", "MemTotal: 99999999999999999999999 kB\n", "MemTotal: -5 kB\n"],
)
def test_unknown_memory_is_none_and_said(open_board: OpenBoard, meminfo: str) -> None:
    system = open_board("rpi4", files={"proc/meminfo": meminfo})
    memory = read_memory(system)
    assert (memory.total_bytes, memory.available_bytes, memory.swap_bytes) == (None, None, None)
    assert usable_bytes(memory) is None
    assert any("/proc/meminfo" in sentence for sentence in system.warnings)


def test_more_available_than_there_is_is_not_believed(open_board: OpenBoard) -> None:
    system = open_board("rpi4", files={"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 2000 kB\n"})
    memory = read_memory(system)
    assert (memory.total_bytes, memory.available_bytes) == (1024000, None)
    assert len(system.warnings) == 1


def test_an_old_kernel_without_memavailable_gives_what_is_free(open_board: OpenBoard) -> None:
    memory = read_memory(open_board("rpi4", files={"proc/meminfo": "MemTotal: 2000 kB\nMemFree: 1000 kB\n"}))
    assert memory.available_bytes == 1024000


def test_zram_is_what_is_swapped_to_or_what_the_devices_say(open_board: OpenBoard) -> None:
    assert read_memory(open_board("rpi5")).zram_bytes == 0  # swap is a file
    memory = read_memory(open_board("orin-nano-super-jp6", files={"proc/swaps": None}))
    assert memory.zram_bytes == 3901440 * 1024
    assert read_memory(open_board("empty")).zram_bytes is None


def test_unified_memory(open_board: OpenBoard) -> None:
    assert read_memory(open_board("rpi5")).unified is True
    assert read_memory(open_board("x86-rapl")).unified is None
    with_card = open_board("x86-rapl", files={"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: x\n"})
    assert read_memory(with_card).unified is False


def test_usable_bytes_of_what_is_known() -> None:
    assert usable_bytes(Memory()) is None
    assert usable_bytes(Memory(available_bytes=5)) == 5
    assert usable_bytes(Memory(available_bytes=5, limit_bytes=3, limit_enforced=False)) == 5
    assert usable_bytes(Memory(limit_bytes=3, limit_enforced=True)) == 3
    assert usable_bytes(Memory(available_bytes=5, limit_bytes=9, limit_room_bytes=2, limit_enforced=True)) == 2


def test_this_machine() -> None:
    system = System()
    memory = read_memory(system)
    assert memory.total_bytes
    assert 0 < (usable_bytes(memory) or 0) <= memory.total_bytes
    assert memory.page_bytes == os.sysconf("SC_PAGE_SIZE")


def test_paths_of_control_groups() -> None:
    assert parse_cgroup("0::/user.slice/x\n") == Groups(None, "/user.slice/x")
    assert parse_cgroup("12:memory:/docker/ab\n1:name=systemd:/x\n0::/y\n") == Groups("/docker/ab", "/y")
    assert parse_cgroup("3:cpu,memory:/\n") == Groups("/", None)
    assert parse_cgroup("0::/../../etc\n") == Groups(None, "/")  # outside this namespace: only the top is seen
    assert parse_cgroup("0:memory\nnonsense\n::\n") == Groups()


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max", None), ("9223372036854771712", None), ("1000", 1000), ("0", 0), ("-1", None), ("1e3", None), ("", None)],
)
def test_limits(text: str, limit: int | None) -> None:
    assert parse_limit(text, 4096) == limit


def test_limits_of_an_unknown_machine() -> None:
    assert parse_limit("9223372036854771712", None) is None
    assert parse_limit(str(8 << 30), None) == 8 << 30


@pytest.mark.parametrize(
    ("options", "size"),
    [("rw,size=65536k,inode64", 64 * MIB), ("rw,size=1g", 1 << 30), ("rw", None), ("rw,mpol=size=3", None)],
)
def test_size_of_dev_shm(options: str, size: int | None) -> None:
    assert parse_shm_size(f"proc /proc proc rw 0 0\nshm /dev/shm tmpfs {options} 0 0\n") == size


@pytest.mark.parametrize(
    ("controllers", "command_line", "enforced"),
    [
        ("cpuset cpu io memory pids", "cgroup_disable=memory", True),
        ("cpuset cpu io pids", "", False),
        (None, "quiet cgroup_disable=memory", False),
        (None, "cgroup_disable=memory cgroup_enable=memory", True),
        (None, "quiet", None),
    ],
)
def test_whether_limits_are_enforced(controllers: str | None, command_line: str, enforced: bool | None) -> None:
    assert controllers_enforce(controllers, command_line) is enforced


def test_swaps() -> None:
    text = "Filename Type Size Used Priority\n/dev/zram0 partition 507408 0 5\n/var/swap file 102396 0 -2\n"
    assert parse_swaps(text) == {"/dev/zram0": 507408 * 1024, "/var/swap": 102396 * 1024}


WORDS = st.sampled_from(
    ["MemTotal:", "kB", "max", "0::/", "memory", ":", "12", "-1", "/dev/shm", "tmpfs", "size=", "\n", " "]
)
MESS = st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=30).map("".join)


@given(MESS)
def test_parsers_never_fail_and_never_answer_below_nothing(text: str) -> None:
    assert all(size >= 0 for size in parse_meminfo(text).values())
    assert all(size >= 0 for size in parse_swaps(text).values())
    assert all(size >= 0 for size in parse_stat(text).values())
    assert (parse_limit(text, None) or 0) >= 0
    assert (parse_shm_size(text) or 0) >= 0
    groups = parse_cgroup(text)
    assert all(path is None or path.startswith("/") for path in (groups.v1, groups.v2))
    controllers_enforce(None, text)


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True), st.integers(0, 1 << 40), max_size=8)
)
def test_meminfo_is_read_back(kilobytes: dict[str, int]) -> None:
    text = "".join(f"{name}:   {size} kB\n" for name, size in kilobytes.items())
    assert parse_meminfo(text) == {name: size * 1024 for name, size in kilobytes.items()}
