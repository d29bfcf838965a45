"""Which board is it: every family's fixture, other carriers, containers, missing files, unknown releases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.board import (
    JETPACKS,
    board_revision,
    entry_of,
    identify,
    identify_entry,
    jetpack_of,
    parse_assignments,
    parse_cpuinfo,
    parse_package_version,
    parse_revision,
    parse_strings,
    parse_tegra_release,
)
from edgetune.device.catalogue import load_catalogue
from edgetune.device.system import System
from tests.device.conftest import OpenBoard

# fixture: family, module, chip, JetPack, L4T
BOARDS = {
    "nano-jp4": ("jetson-nano", "p3448-0000", "tegra210", "4.6.1", "32.7.1"),
    "nano-2gb-jp4": ("jetson-nano-2gb", "p3448-0003", "tegra210", "4.6.1", "32.7.1"),
    "tx1-jp4": ("jetson-tx1", "p2180-1000", "tegra210", "4.6.1", "32.7.1"),
    "tx2-jp4": ("jetson-tx2", "p3310-1000", "tegra186", "4.6.1", "32.7.1"),
    "tx2-nx-jp4": ("jetson-tx2-nx", "p3636-0001", "tegra186", "4.6.1", "32.7.1"),
    "xavier-nx-jp4": ("jetson-xavier-nx", "p3668-0000", "tegra194", "4.6.1", "32.7.1"),
    "xavier-nx-jp5": ("jetson-xavier-nx", "p3668-0000", "tegra194", "5.1.2", "35.4.1"),
    "agx-xavier-jp4": ("jetson-agx-xavier", "p2888-0004", "tegra194", "4.6.1", "32.7.1"),
    "agx-xavier-jp5": ("jetson-agx-xavier", "p2888-0004", "tegra194", "5.1.3", "35.5.0"),
    "orin-nano-super-jp6": ("jetson-orin-nano", "p3767-0005", "tegra234", "6.2.1", "36.4.4"),
    "orin-nx-jp6": ("jetson-orin-nx", "p3767-0000", "tegra234", "6.2", "36.4.3"),
    "agx-orin-jp5": ("jetson-agx-orin", "p3701-0004", "tegra234", "5.0.2", "35.1.0"),
    "agx-orin-jp6": ("jetson-agx-orin", "p3701-0005", "tegra234", "6.2.1", "36.4.4"),
    "thor-t5000-jp7": ("jetson-thor", "p3834-0008", "tegra264", "7.1", "38.4.0"),
    "thor-t4000-jp7": ("jetson-thor", "p3834-0000", "tegra264", "7.2", "39.2.0"),
    "orin-unknown-jp6": ("generic-jetson", "p9999-0042", "tegra234", "JetPack unknown (L4T 36.9.1)", "36.9.1"),
    "container-v2": ("jetson-orin-nx", "p3767-0001", "tegra234", None, None),
    "container-v1": ("jetson-nano", "p3448-0000", "tegra210", "4.6.1", "32.7.1"),
    "rpi3bplus": ("raspberry-pi-3b-plus", None, "bcm2837", None, None),
    "rpi4": ("raspberry-pi-4b", None, "bcm2711", None, None),
    "rpi4-32bit": ("raspberry-pi-4b", None, "bcm2711", None, None),
    "rpi400": ("raspberry-pi-400", None, "bcm2711", None, None),
    "rpi5": ("raspberry-pi-5", None, "bcm2712", None, None),
    "rpi500": ("raspberry-pi-500", None, "bcm2712", None, None),
    "rpi-zero2w": ("raspberry-pi-zero-2w", None, "bcm2837", None, None),
    "rpi-nomemcg": ("raspberry-pi-4b", None, "bcm2711", None, None),
    "cm4": ("raspberry-pi-cm4", None, "bcm2711", None, None),
    "cm5": ("raspberry-pi-cm5", None, "bcm2712", None, None),
    "generic-sbc": ("generic-arm64", None, "rk3588", None, None),
    "sbc-ina226": ("generic-arm64", None, "sun50i-h618", None, None),
    "sbc-battery": ("generic-arm64", None, "sun50i-a64", None, None),
    "x86-rapl": ("generic-x86", None, None, None, None),
    "x86-vm": ("generic-x86", None, None, None, None),
    "empty": ("generic", None, None, None, None),
}
COMPATIBLE = "sys/firmware/devicetree/base/compatible"
MODEL = "sys/firmware/devicetree/base/model"


def test_every_fixture_has_an_expectation(board_names: list[str]) -> None:
    assert set(board_names) == set(BOARDS)


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("name", BOARDS)
def test_boards_are_told(open_board: OpenBoard, name: str, seed: int | None) -> None:
    board = identify(open_board(name, seed=seed))
    assert (board.family, board.module, board.soc, board.jetpack, board.l4t) == BOARDS[name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tx2-jp4", "Jetson TX2 8GB"),  # its model text is a code name
        ("agx-xavier-jp5", "Jetson AGX Xavier 32GB"),
        ("orin-nx-jp6", "Seeed Studio reComputer J4012"),  # another maker's carrier keeps its own name
        ("rpi4", "Raspberry Pi 4 Model B Rev 1.2"),
        ("x86-rapl", "LENOVO 20XW0055GE"),
        ("empty", "Unknown machine"),
    ],
)
def test_names_are_ones_a_person_knows(open_board: OpenBoard, name: str, text: str) -> None:
    assert identify(open_board(name)).name == text


@pytest.mark.parametrize("entry", load_catalogue().values(), ids=lambda entry: entry.family)
def test_every_listed_module_is_told_by_its_part_number_on_any_carrier(open_board: OpenBoard, entry) -> None:
    for module in entry.modules:
        compatible = f"acme,box\0nvidia,{module}\0nvidia,tegra999\0"
        system = open_board("orin-nx-jp6", files={COMPATIBLE: compatible, MODEL: "Acme Box\0"})
        board = identify(system)
        assert (board.family, board.module, board.name) == (entry.family, module, "Acme Box")


@pytest.mark.parametrize(
    ("compatible", "model", "family"),
    [
        ("nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0", "x", "jetson-orin-nano"),
        ("nvidia,tegra234\0", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0", "jetson-orin-nx"),
        ("nvidia,tegra234\0", "Some Box\0", "generic-jetson"),
        ("nvidia,p3767-0099\0nvidia,tegra23x\0", "Orin Nano Whatever\0", "generic-jetson"),
        ("nvidia,tegra194\0", "NVIDIA Jetson Xavier NX Developer Kit\0", "jetson-xavier-nx"),
        ("nvidia,p2771-0000\0nvidia,tegra186\0", "NVIDIA Jetson TX2 Developer Kit\0", "jetson-tx2"),
        ("nvidia,tegra210\0", "NVIDIA Jetson Nano 2GB Developer Kit\0", "jetson-nano-2gb"),
        ("brcm,bcm2711\0", "Raspberry Pi 400 Rev 1.0\0", "raspberry-pi-400"),
        ("brcm,bcm2712\0", "Raspberry Pi 500 Rev 1.0\0", "raspberry-pi-500"),
        ("brcm,bcm2712\0", "Raspberry Pi 5 Model B Rev 1.1\0", "raspberry-pi-5"),
        ("acme,thing\0acme,chip\0", "Thing\0", "generic-arm64"),
    ],
)
def test_chip_and_text_decide_where_no_part_number_does(
    open_board: OpenBoard, compatible: str, model: str, family: str
) -> None:
    files = {COMPATIBLE: compatible, MODEL: model, "proc/sys/kernel/osrelease": "6.1.0", "proc/cpuinfo": "processor: 0"}
    system = open_board("orin-nx-jp6", files=files)
    assert identify(system).family == family


def test_an_unlisted_module_keeps_its_number_and_is_not_guessed(open_board: OpenBoard) -> None:
    compatible = "nvidia,p3768-0000+p3767-0042\0nvidia,p3767-0042\0nvidia,tegra234\0"
    board = identify(open_board("orin-nano-super-jp6", files={COMPATIBLE: compatible}))
    assert (board.family, board.module) == ("generic-jetson", "p3767-0042")


@pytest.mark.parametrize(
    ("missing", "family"),
    [
        ([COMPATIBLE], "raspberry-pi-4b"),  # the model text is left
        ([COMPATIBLE, MODEL], "raspberry-pi-4b"),  # cpuinfo repeats it
        ([COMPATIBLE, MODEL, "proc/cpuinfo"], "raspberry-pi-4b"),  # the revision code is left
        (["sys/firmware", "proc/cpuinfo"], "generic-arm64"),
    ],
)
def test_a_raspberry_pi_is_told_as_long_as_one_file_tells(
    open_board: OpenBoard, missing: list[str], family: str
) -> None:
    assert identify(open_board("rpi4", files=dict.fromkeys(missing))).family == family


def test_a_jetson_without_device_tree_is_told_by_its_kernel(open_board: OpenBoard) -> None:
    board = identify(open_board("agx-orin-jp6", files={"sys/firmware": None}))
    assert (board.family, board.l4t) == ("generic-jetson", "36.4.4")


@pytest.mark.parametrize(
    ("soc_id", "places", "family", "chip"),
    [
        ("35", {"sys/devices/soc0/machine": "NVIDIA Jetson Orin NX Developer Kit\n"}, "jetson-orin-nx", "tegra234"),
        ("35", {"tmp/nv_jetson_model": "NVIDIA Orin Nano Developer Kit\0"}, "jetson-orin-nano", "tegra234"),
        ("25", {"tmp/nv_jetson_model": "NVIDIA Jetson Xavier NX\0"}, "jetson-xavier-nx", "tegra194"),
        ("35", {}, "generic-jetson", "tegra234"),
        ("99", {}, "generic-jetson", None),
        ("rubbish", {"tmp/nv_jetson_model": "\0\0"}, "generic-jetson", None),
    ],
)
def test_docker_hides_the_device_tree_and_the_chip_still_tells(
    open_board: OpenBoard, soc_id: str, places: dict[str, str], family: str, chip: str | None
) -> None:
    files = {"sys/firmware": None, "sys/devices/soc0/family": "Tegra\n", "sys/devices/soc0/soc_id": soc_id, **places}
    board = identify(open_board("container-v2", files=files))
    assert (board.family, board.soc, board.module) == (family, chip, None)


def test_an_old_device_tree_names_the_module_in_its_file_name(open_board: OpenBoard) -> None:
    board = identify(open_board("nano-jp4", files={COMPATIBLE: "nvidia,tegra210\0", MODEL: "Acme Box\0"}))
    assert (board.family, board.module) == ("jetson-nano", "p3448-0000")


def test_the_release_comes_from_the_package_where_an_image_lacks_the_file(open_board: OpenBoard) -> None:
    files = {"etc/nv_tegra_release": None, "cmd/dpkg-query.txt": "36.4.4-20250616085344"}
    assert identify(open_board("orin-nano-super-jp6", files=files)).jetpack == "6.2.1"


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29689809, BOARD: t186ref, EABI: aarch64", "32.7.1", "4.6.1"),
        ("# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic", "36.4.7", "6.2.1"),
        ("# R36 (release), REVISION: 5.0, GCID: 1, BOARD: generic", "36.5.0", "6.2.2"),
        ("# R35 (release), REVISION: 6.4, GCID: 1, BOARD: t186ref", "35.6.4", "5.1.6"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic", "38.2.0", "7.0"),
        ("# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic", "39.2.0", "7.2"),
        ("# R28 (release), REVISION: 5, GCID: 1", "28.5", "JetPack unknown (L4T 28.5)"),
        ("# R41 (release), REVISION: 1.0, GCID: 1", "41.1.0", "JetPack unknown (L4T 41.1.0)"),
    ],
)
def test_releases(line: str, l4t: str, jetpack: str) -> None:
    found = parse_tegra_release(line + "\n# KERNEL_VARIANT: oot\n")
    assert found == l4t
    assert jetpack_of(l4t) == jetpack


def test_every_release_of_the_map_is_found_with_trailing_zeros() -> None:
    for release, jetpack in JETPACKS.items():
        assert jetpack_of(release) == jetpack == jetpack_of(release + ".0")


@pytest.mark.parametrize("text", ["", "R36", "# R36 (debug), REVISION: 4.4", "# R (release), REVISION: 1"])
def test_what_is_no_release_is_none(text: str) -> None:
    assert parse_tegra_release(text) is None


def test_package_versions() -> None:
    assert parse_package_version("'36.4.4-20250616085344'\n") == "36.4.4"
    assert parse_package_version("dpkg-query: no packages found") is None


@pytest.mark.parametrize(
    ("code", "type_", "soc", "gib", "revision"),
    [
        ("c03112", 0x11, "bcm2711", 4, "1.2"),
        ("a020d3", 0x0D, "bcm2837", 1, "1.3"),
        ("902120", 0x12, "bcm2837", 0.5, "1.0"),
        ("c04170", 0x17, "bcm2712", 4, "1.0"),
        ("d04190", 0x19, "bcm2712", 8, "1.0"),
    ],
)
def test_revision_codes(code: str, type_: int, soc: str, gib: float, revision: str) -> None:
    found = parse_revision(code)
    assert found is not None
    assert (found.type, found.soc, found.memory_bytes, found.revision) == (type_, soc, gib * 2**30, revision)


@pytest.mark.parametrize("code", ["", "000e", "xyz", "123456789", "-1"])
def test_old_and_wrong_revision_codes_are_none(code: str) -> None:
    assert parse_revision(code) is None


def test_board_revision() -> None:
    assert board_revision("Raspberry Pi 4 Model B Rev 1.2") == "1.2"
    assert board_revision("NVIDIA Jetson Nano Developer Kit") is None


def test_a_32_bit_user_land_on_a_64_bit_kernel_is_said(open_board: OpenBoard) -> None:
    system = open_board("rpi4-32bit")
    assert identify(system).arch == "armv7l"
    assert any("32-bit" in sentence for sentence in system.warnings)
    other = open_board("rpi4")
    assert identify(other).arch == "aarch64"
    assert other.warnings == []


@pytest.mark.parametrize(
    ("name", "arch"), [("x86-vm", "x86_64"), ("rpi5", "aarch64"), ("empty", None), ("orin-nx-jp6", "aarch64")]
)
def test_machine_word_without_the_command(open_board: OpenBoard, name: str, arch: str | None) -> None:
    files = {} if name == "empty" else {"cmd/uname--m.txt": None}
    assert identify(open_board(name, files=files)).arch == arch


def test_os_is_named_and_its_absence_is_none(open_board: OpenBoard) -> None:
    assert identify(open_board("rpi5")).os == "Debian GNU/Linux 12 (bookworm)"
    assert identify(open_board("empty")).os is None


def test_entry_of_a_board_that_no_file_lists_is_generic(open_board: OpenBoard) -> None:
    board, entry = identify_entry(open_board("rpi5"))
    assert entry_of(board) is entry
    renamed = type(board)(name="x", family="gone", arch="aarch64")
    assert entry_of(renamed).family == "generic-arm64"


def test_this_machine_is_told() -> None:
    board = identify(System())
    assert board.family in load_catalogue()
    assert board.arch


@pytest.mark.parametrize("raw", [b"", b"\0\0", b"\xff" * 5000, b"nvidia,p3767\0-0005", b"\x1b[31mred\0"])
def test_device_tree_garbage_yields_printable_strings(raw: bytes) -> None:
    assert all(text.isprintable() and text for text in parse_strings(raw))


@given(st.binary(max_size=300))
def test_device_tree_strings_never_fail(raw: bytes) -> None:
    assert all(text and text.isprintable() and len(text) <= 120 for text in parse_strings(raw))


LINES = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(
            [
                "# R36 (release), REVISION: 4.4",
                "processor\t: 0",
                "Features : fp asimd",
                "Model : x",
                "Revision : c03112",
            ]
        ),
    ),
    max_size=8,
).map("\n".join)


@given(LINES)
def test_text_parsers_never_fail(text: str) -> None:
    assert parse_tegra_release(text) in (None, "36.4.4") or "REVISION" in text
    info = parse_cpuinfo(text)
    assert 0 <= info.processors <= 8
    assert all(value.isprintable() for value in parse_assignments(text).values())
    found = parse_revision(text)
    assert found is None or 0 <= found.type <= 255
    parse_package_version(text)


@given(st.integers(0, 200), st.integers(0, 99), st.integers(0, 99))
def test_any_release_is_read_back(major: int, minor: int, patch: int) -> None:
    assert (
        parse_tegra_release(f"# R{major} (release), REVISION: {minor}.{patch}, GCID: 1") == f"{major}.{minor}.{patch}"
    )
