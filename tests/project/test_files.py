"""Atomic writes: the old file or the new one, never half of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetune.errors import StorageError
from edgetune.files import atomic_folder, atomic_path, write_atomically


def test_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"x")
        temporary.chmod(0o600)
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_stood_there_survives_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(StorageError, match="could not be written") as caught:
        write_atomically(blocked / os.devnull.strip("/") / "a", b"x")
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a"
    for names in (("one", "two"), ("three",)):
        with atomic_folder(path) as temporary:
            for name in names:
                (temporary / name).write_text(name)
                (temporary / name).chmod(0o600)
        assert sorted(file.name for file in path.iterdir()) == sorted(names)
        assert [file.name for file in path.parent.iterdir()] == ["a"]
    (tmp_path / "b").write_bytes(b"x")
    assert (path / "three").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_folder_that_stood_there_survives_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").write_text("old")

    def fail_half_way() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert [file.name for file in path.iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_put_in_place_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").write_text("old")
    replace = os.replace

    def refuse_the_new_one(source: Path, target: Path) -> None:
        if source.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_new_one)

    def write() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "new").write_text("new")

    with pytest.raises(StorageError, match="No space left"):
        write()
    assert [file.name for file in path.iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_current_folder_and_a_mount_can_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_folder(Path(".")) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "here" / "a").read_text() == "new"
    mount = tmp_path / "mount"
    mount.mkdir()
    (mount / "a").write_text("old")
    monkeypatch.setattr("edgetune.files.os.path.ismount", lambda path: path == mount)
    before = mount.stat().st_ino
    with atomic_folder(mount) as folder:
        (folder / "a").write_text("new")
    assert {path.name: path.read_text() for path in mount.iterdir()} == {"a": "new"}
    assert mount.stat().st_ino == before  # which could not have been moved
