import msgspec
import pytest

from edgetune import schema
from edgetune.errors import InputError
from edgetune.infer import predict, print_predictions


def test_files_are_answered_in_order(run, photos):
    paths = [photos / "val" / name / "0.png" for name in ("red", "blue", "green")]
    found = predict(run, paths)
    assert [image.path for image in found.images] == [str(path) for path in paths]
    assert [image.answers[0].name for image in found.images] == ["red", "blue", "green"]
    for image in found.images:
        probabilities = [answer.probability for answer in image.answers]
        assert len(probabilities) == 3
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
    assert len(predict(run, paths, top=1).images[0].answers) == 1


def test_batches_change_no_answer(run, photos):
    folders = [photos / "val" / name for name in ("blue", "green", "red")]
    one, many = predict(run, folders, batch_size=1), predict(run, folders, batch_size=4)
    assert [image.path for image in one.images] == [image.path for image in many.images]
    assert [image.answers[0].name for image in many.images] == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3


def test_a_folder_gives_its_images_and_leaves_out_what_is_none(run, photos):
    folder = photos / "val" / "red"
    (folder / "notes.txt").write_text("not an image")
    (folder / "2.png").write_bytes(b"cut off")
    found = predict(run, [folder])
    assert [image.path for image in found.images] == [str(folder / "0.png"), str(folder / "1.png")]
    assert len(found.warnings) == 1
    assert "2.png" in found.warnings[0]


def test_an_image_that_can_not_be_opened(run, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((photos / "val" / "red" / "0.png").read_bytes()[:100])
    with pytest.raises(InputError, match=r"broken\.jpg can't be read as an image"):
        predict(run, [photos / "val" / "red" / "0.png", broken])
    with pytest.raises(InputError, match="does not exist"):
        predict(run, [tmp_path / "none.jpg"])
    with pytest.raises(InputError, match="holds no image"):
        predict(run, [photos])


def test_json_and_lines(run, photos, capsys):
    found = predict(run, [photos / "val" / "red" / "0.png"])
    assert msgspec.json.decode(schema.to_json(found))["images"][0]["answers"][0]["name"] == "red"
    print_predictions(found)
    assert "0.png: red 100.0%, " in capsys.readouterr().out
