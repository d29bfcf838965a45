import io
import shutil

import msgspec
import pytest
from PIL import Image

from edgetune import schema
from edgetune.errors import InputError
from edgetune.infer import evaluate, print_evaluation
from edgetune.model.weights import read_metadata
from edgetune.train.mistakes import thumbnail


def test_a_model_that_knows_its_colours(run, photos):
    found = evaluate(run, photos)
    assert (found.part, found.images, found.skipped, found.accuracy) == ("val", 9, 0, 1.0)
    assert found.classes == {"blue": 1.0, "green": 1.0, "red": 1.0}
    assert [(cell.true, cell.predicted, cell.images) for cell in found.confusion] == [(0, 0, 3), (1, 1, 3), (2, 2, 3)]
    assert found.most_confident == []
    assert found.warnings == []
    assert 0 < found.loss < 0.1
    assert found.model == read_metadata(run / "best.safetensors").model


def test_mistakes_are_counted_and_shown_surest_first(run, photos, paint):
    paint(photos / "val" / "blue" / "9.png", (210, 50, 40), 9)  # is red
    paint(photos / "val" / "blue" / "8.png", (120, 90, 110), 8)  # reddish grey
    found = evaluate(run, photos)
    assert (found.images, found.accuracy) == (11, 9 / 11)
    assert found.classes["blue"] == 3 / 5
    assert {(cell.true, cell.predicted): cell.images for cell in found.confusion}[(0, 2)] == 2
    wrong = found.most_confident
    assert [image.path.rsplit("/", 1)[1] for image in wrong] == ["9.png", "8.png"]
    assert wrong[0].confidence > wrong[1].confidence > 1 / 3
    assert (wrong[0].true, wrong[0].predicted) == (0, 2)
    assert wrong[0].thumbnail_jpeg is not None


def test_a_picture_in_the_report_is_as_the_model_saw_it(tmp_path):
    clear = Image.new("RGBA", (200, 100), (10, 20, 30, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    clear.save(tmp_path / "clear.png", exif=exif)
    with Image.open(io.BytesIO(thumbnail(str(tmp_path / "clear.png")))) as shown:
        assert shown.size == (64, 128)
        assert min(shown.getpixel((10, 10))) > 250
    (tmp_path / "none.png").write_bytes(b"no picture")
    assert thumbnail(str(tmp_path / "none.png")) is None


def test_a_wrong_image_that_memory_does_not_suffice_for_is_shown_without_a_picture(run, photos, paint, monkeypatch):
    paint(photos / "val" / "blue" / "9.png", (210, 50, 40), 9)
    evaluation = evaluate(run, photos)

    def scarce(*arguments):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "thumbnail", scarce)
    again = evaluate(run, photos)
    assert again.confusion == evaluation.confusion
    assert [wrong.thumbnail_jpeg for wrong in again.most_confident] == [None]


def test_batch_size_changes_no_figure(run, photos):
    one, many = evaluate(run, photos, batch_size=1), evaluate(run, photos, batch_size=4)
    assert one.accuracy == many.accuracy
    assert one.confusion == many.confusion
    assert one.loss == pytest.approx(many.loss, rel=1e-5)


def test_test_images_come_first(run, photos, paint):
    paint(photos / "test" / "red" / "0.png", (210, 50, 40), 0)
    found = evaluate(run, photos)
    assert (found.part, found.images) == ("test", 1)
    assert found.classes == {"blue": None, "green": None, "red": 1.0}


def test_the_runs_own_flat_folder_is_measured_on_what_was_held_out(run, photos, plan_of, tmp_path):
    schema.save(plan_of(photos / "train", 3), run / "plan.json")
    held_out = evaluate(run, photos / "train")
    assert (held_out.images, held_out.part) == (3, "split 20 % of the images, seed 3")
    shutil.copytree(photos / "train", tmp_path / "elsewhere")
    everything = evaluate(run, tmp_path / "elsewhere")
    assert (everything.images, everything.part) == (12, "all images")


def test_an_unreadable_image_is_named_skipped_and_counted(run, photos):
    (photos / "val" / "red" / "1.png").write_bytes(b"no image")
    found = evaluate(run, photos)
    assert (found.images, found.skipped) == (8, 1)
    assert any("1.png" in warning for warning in found.warnings)


def test_a_weights_file_alone_is_enough(run, photos, tmp_path):
    shutil.copy(run / "best.safetensors", tmp_path / "handed_on.safetensors")
    (tmp_path / "plan.json").write_text("of something else")  # which is nothing to this file
    assert evaluate(tmp_path / "handed_on.safetensors", photos).accuracy == 1


def test_the_record_is_json_and_the_page_prints(run, photos, paint, capsys):
    paint(photos / "val" / "blue" / "9.png", (210, 50, 40), 9)
    found = evaluate(run, photos)
    written = msgspec.json.decode(schema.to_json(found))
    assert written["schema"] == "edgetune/evaluation/1"
    assert written["accuracy"] == 0.9
    print_evaluation(found)
    page = capsys.readouterr().out
    assert "90.0% of 10 images right" in page
    assert "9.png" in page
    many = msgspec.structs.replace(found, classes={f"class {index}": 0.5 for index in range(40)})
    print_evaluation(many)
    assert "class 0 taken for class 2" in capsys.readouterr().out


def test_bad_input(run, photos, paint, tmp_path, plan_of):
    with pytest.raises(InputError, match="does not exist"):
        evaluate(tmp_path / "nowhere", photos)
    with pytest.raises(InputError, match="is not a run folder"):
        evaluate(photos, photos)
    paint(photos / "val" / "purple" / "0.png", (120, 0, 120), 0)
    with pytest.raises(InputError, match="purple"):
        evaluate(run, photos)
    with pytest.raises(InputError):
        evaluate(run, tmp_path / "no data")
    (run / "best.safetensors").unlink()
    schema.save(plan_of(photos, 0), run / "plan.json")
    with pytest.raises(InputError, match="fit --resume --out"):
        evaluate(run, photos)


def test_weights_that_do_not_say_what_they_are(run, photos, tmp_path):
    from safetensors.torch import load_file, save_file

    save_file(load_file(run / "best.safetensors"), tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="does not say which model"):
        evaluate(tmp_path / "bare.safetensors", photos)
