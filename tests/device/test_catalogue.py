"""Every board file is valid and complete, and a wrong one is refused by file and key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgetune.device.catalogue import BoardEntry, find_entry, load_catalogue, parse_entry
from edgetune.errors import InputError
from edgetune.resources import resource_folder

FILES = sorted(resource_folder("devices").glob("*.toml"))
EXPECTED = {
    "generic", "generic-arm64", "generic-jetson", "generic-x86", "jetson-agx-orin", "jetson-agx-xavier", "jetson-nano",
    "jetson-nano-2gb", "jetson-orin-nano", "jetson-orin-nx", "jetson-thor", "jetson-tx1", "jetson-tx2", "jetson-tx2-nx",
    "jetson-xavier-nx", "raspberry-pi-3b-plus", "raspberry-pi-400", "raspberry-pi-4b", "raspberry-pi-5",
    "raspberry-pi-500", "raspberry-pi-cm4", "raspberry-pi-cm5", "raspberry-pi-zero-2w",
}  # fmt: skip

VALID = """
name = "Test board"
kind = "generic"
sources = ["a page"]
[recognise]
compatible = ["acme,board"]
[power]
sensor = "ina3221"
[[power.totals]]
rails = ["A", "B"]
scope = "module"
"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_valid(path: Path) -> None:
    entry = parse_entry(path.read_text(), path.stem, path.name)
    assert entry.family == path.stem
    assert entry.sources
    assert entry.name
    for sentence in (*entry.traps, entry.power.no_sensor):
        assert sentence is None or sentence.endswith("."), sentence


def test_the_listed_families_are_there() -> None:
    assert set(load_catalogue()) >= EXPECTED


def test_every_jetson_says_what_its_rails_add_up_to() -> None:
    for entry in load_catalogue().values():
        if entry.kind == "jetson" and entry.power.sensor != "none":
            assert entry.power.totals, entry.family
            assert entry.nominal.compute_capability or entry.family == "generic-jetson"
            assert entry.unified_memory
            assert entry.cuda


@pytest.mark.parametrize(
    ("family", "present", "total"),
    [
        ("jetson-nano", ["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"], ["POM_5V_IN"]),
        ("jetson-tx2", ["VDD_IN", "VDD_SYS_GPU", "VDD_SYS_CPU"], ["VDD_IN"]),
        ("jetson-tx2", ["VDD_IN", "VDD_MUX", "VDD_SYS_CPU"], ["VDD_IN", "VDD_MUX"]),
        ("jetson-orin-nano", ["VDD_IN", "VDD_SOC"], ["VDD_IN"]),
        (
            "jetson-agx-orin",
            ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"],
            ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"],
        ),
        ("jetson-thor", ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"], ["VIN"]),
        ("jetson-agx-orin", ["VDD_GPU_SOC", "VDD_CPU_CV"], None),
        ("generic-jetson", ["MYSTERY_1", "MYSTERY_2"], None),
    ],
)
def test_the_total_is_made_of_the_ruled_rails_only(family: str, present: list[str], total: list[str] | None) -> None:
    rule = load_catalogue()[family].total_rule(set(present))
    assert (rule.rails if rule else None) == total


def test_module_figures_take_the_place_of_the_familys() -> None:
    entry = find_entry("orin-nano")
    assert entry.nominal_of("p3767-0004").gpu_cores == 512
    assert entry.nominal_of("p3767-0005").gpu_cores == 1024
    assert entry.nominal_of("p3767-0004").compute_capability == "8.7"
    assert entry.nominal_of("p0000-0000") == entry.nominal == entry.nominal_of(None)


@pytest.mark.parametrize(
    ("family", "revision", "bits", "watts", "exact"),
    [
        ("raspberry-pi-4b", "1.2", 64, 4.552906, True),
        ("raspberry-pi-4b", "1.1", 32, 4.061799, True),
        ("raspberry-pi-4b", "1.5", 64, 4.552906, False),
        ("raspberry-pi-3b-plus", "1.3", 64, 3.651396, True),
        ("raspberry-pi-400", "1.0", 64, 4.334818, True),  # published for every revision
        ("raspberry-pi-400", "1.0", None, 4.334818, False),  # for 64 bits, which nothing says this board has
    ],
)
def test_published_models_at_half_load(family: str, revision: str, bits: int, watts: float, exact: bool) -> None:
    found = load_catalogue()[family].power_model(revision, bits)
    assert found is not None
    model, is_exact = found
    assert 0.5 * model.slope_w + model.idle_w == pytest.approx(watts, abs=1e-6)
    assert is_exact is exact


@pytest.mark.parametrize(
    ("family", "bits"), [("raspberry-pi-zero-2w", 64), ("raspberry-pi-cm4", 64), ("raspberry-pi-400", 32)]
)
def test_a_board_without_a_fitting_model_has_none(family: str, bits: int) -> None:
    assert load_catalogue()[family].power_model("1.0", bits) is None


@pytest.mark.parametrize("name", ["Orin-Nano", "p3767-0005", "NVIDIA Jetson Orin Nano", "jetson-orin-nano"])
def test_boards_are_found_by_any_of_their_names(name: str) -> None:
    assert find_entry(name).family == "jetson-orin-nano"


def test_an_unknown_name_says_what_to_do() -> None:
    with pytest.raises(InputError, match="edgetune devices list"):
        find_entry("commodore-64")


def test_a_valid_text_is_an_entry() -> None:
    assert parse_entry(VALID, "test", "test.toml").power.totals[0].rails == ["A", "B"]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('kind = "generic"', 'kind = "toaster"', "kind"),
        ('kind = "generic"', 'kind = "generic"\ncolour = "red"', "colour"),
        ('name = "Test board"\n', "", "name"),
        ('rails = ["A", "B"]', 'rails = ["A", 3]', r"power\.totals"),
        ('rails = ["A", "B"]', 'rails = ["A", "A"]', r"power\.totals\[0\]\.rails"),
        ('rails = ["A", "B"]', "rails = []", r"power\.totals\[0\]\.rails"),
        ('scope = "module"', 'scope = "universe"', "scope"),
        ('sensor = "ina3221"', 'sensor = "none"', r"power\.totals"),
        ('sensor = "ina3221"', 'sensor = "ina3221"\ncontained = ["B"]', r"power\.totals\[0\]\.rails"),
        ('compatible = ["acme,board"]', "", "recognise"),
        ('sources = ["a page"]', "sources = []", "sources"),
        ('sources = ["a page"]', 'sources = ["a page"]\nvisible_mib = [9, 3]', "visible_mib"),
        ('sources = ["a page"]', 'sources = ["a page"]\nfamily = "x"', "family"),
        ('[[power.totals]]\nrails = ["A", "B"]\nscope = "module"\n', "", r"power\.totals"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_key(old: str, new: str, key: str) -> None:
    assert old in VALID
    with pytest.raises(InputError, match=rf"^bad\.toml.*{key}"):
        parse_entry(VALID.replace(old, new), "bad", "bad.toml")


def test_what_is_no_toml_is_refused_by_file() -> None:
    with pytest.raises(InputError, match=r"^bad\.toml is not valid TOML"):
        parse_entry("name = [", "bad", "bad.toml")


def test_two_files_can_not_claim_one_board(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(VALID)
    (tmp_path / "b.toml").write_text(VALID.replace("Test board", "Other board"))
    with pytest.raises(InputError, match=r"b\.toml: key `recognise\.compatible`.*a\.toml"):
        load_catalogue(tmp_path)


def test_a_file_of_ones_own_is_one_more_board(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(VALID)
    assert load_catalogue(tmp_path)["mine"].name == "Test board"


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bad\.toml can't be read"):
        load_catalogue(tmp_path)


def test_entries_are_plain_data() -> None:
    plain = msgspec.to_builtins(find_entry("nano"))
    assert plain["power"]["totals"][0]["rails"] == ["POM_5V_IN"]
    assert msgspec.convert(plain, BoardEntry) == find_entry("nano")
