"""The time benchmark's draws and sums; the runs themselves are stood in for."""

from __future__ import annotations

import json
from pathlib import Path

import machine
import pytest

from benchmarks import predict_time
from edgetune.data.folder import mean_file_bytes, scan
from edgetune.model.registry import find_spec
from edgetune.plan.work import forward_flops

LINE = {
    "series": "held-out",
    "case": "vit_nano_patch8_64 32 px",
    "trainer": "lean",
    "cached": True,
    "image_side": 96,
    "predicted_epoch_s": 2.0,
    "predicted_first_epoch_s": 4.0,
    "measured_epochs_s": [5.0, 1.0, 0.5],
    "others_cores": 0.01,
    "profile_others_cores": 0.02,
    "reference_flops": 1e11,
    "profile_reference_flops": 1e11,
    "error": 6.0 / 6.5 - 1,
}


def test_draws_are_repeatable_and_no_step_is_too_long() -> None:
    cases = [predict_time.drawn("design", number, 1.0) for number in range(60)]
    assert cases == [predict_time.drawn("design", number, 1.0) for number in range(60)]
    assert cases != [predict_time.drawn("held-out", number, 1.0) for number in range(60)]
    most = 1.0 * predict_time.USUAL_FLOPS
    for case in cases:
        work = 3 * forward_flops(find_spec(case.model).at(case.image_size)) * case.batch_size
        assert case.batch_size == 1 or work <= most
    assert {case.method for case in cases} > {"edgetune", "full", "lora"}


def test_errors_tell_the_first_epoch_from_the_others() -> None:
    assert predict_time.first_error(LINE) == pytest.approx(4.0 / 5.0 - 1)
    assert predict_time.later_error(LINE) == pytest.approx((3 * 2.0 - 4.0) / 1.5 - 1)


def test_the_table_leaves_out_runs_that_others_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    found = [
        LINE | {"number": 0},
        LINE | {"number": 1, "error": 9.0, "others_cores": 0.9},
        LINE | {"number": 2, "error": 9.0, "profile_others_cores": 0.9},
        {"series": "held-out", "number": 3, "case": "vit_base", "refused": "no"},
        LINE | {"number": 4, "series": "design", "error": 9.0},
    ]
    (tmp_path / "predict_time.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    predict_time.table("held-out")
    said = capsys.readouterr().out
    assert "| all | 1 | 7.7% | 7.7% | 20.0% | 20.0% |" in said
    assert "1 of 4 draws were refused" in said
    assert "2 are left out, because others" in " ".join(said.split())
    assert "900" not in said
    assert "calibrates" not in said  # older lines don't say what runs found


def test_what_a_run_finds_out_stands_beside_what_was_foretold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    run = {"predicted_total_s": 15.0, "measured_total_s": 10.0, "calibrated_after_steps": 8, "calibrated_total_s": 9.5}
    found = [
        LINE | run | {"number": 0, "steps_per_epoch": 8},
        LINE | run | {"number": 1, "steps_per_epoch": 7, "calibrated_total_s": 99.0},  # nearly over by then
    ]
    (tmp_path / "predict_time.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    predict_time.table("held-out")
    said = " ".join(capsys.readouterr().out.split())
    assert "calibrates by, 1: foretold" in said
    assert "50.0% and 50.0% (median, 95th percentile) before they began, after those steps within 5.0% and 5.0%" in said


def test_images_are_files_of_a_real_size(tmp_path: Path) -> None:
    predict_time.write_images(tmp_path, 20, 4, 96, 0)
    folder = scan(tmp_path / "images")
    assert (len(folder.train), len(folder.val), len(folder.classes)) == (20, 4, predict_time.CLASSES)
    assert (mean_file_bytes(folder.train) or 0) > 1000


def test_what_this_process_does_is_not_others() -> None:
    with predict_time.Others() as others:
        sum(range(2_000_000))
    assert others.cores >= 0.0
