import sys
from types import SimpleNamespace

import pytest

from edgetune.errors import InputError, MissingDependencyError
from edgetune.model import hub
from edgetune.model.registry import find_spec, list_models


@pytest.fixture
def asked(monkeypatch):
    """A hub client that answers with `asked.answer` and notes what it was asked for."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    noted = SimpleNamespace(files=[], answer="cached.safetensors", errors=errors)

    def download(repository, name):
        noted.files.append((repository, name))
        if isinstance(noted.answer, Exception):
            raise noted.answer
        return noted.answer

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return noted


def refusal(spec, **options):
    with pytest.raises(InputError) as caught:
        hub.find_weights(spec, **options)
    assert "\n" not in str(caught.value)
    assert "--weights" in str(caught.value)
    return str(caught.value)


def test_which_repository(asked, tmp_path):
    spec = find_spec("vit_small_patch16_224")
    assert str(hub.find_weights(spec)) == "cached.safetensors"
    hub.find_weights(find_spec("vit_small_patch16_224.dino"))
    hub.find_weights(find_spec("vit_small_patch16_224.augreg_in21k"))
    assert [repository for repository, _ in asked.files] == [
        "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
        "timm/vit_small_patch16_224.dino",
        "timm/vit_small_patch16_224.augreg_in21k",
    ]
    assert {name for _, name in asked.files} == {"model.safetensors"}
    assert hub.find_weights(spec, tmp_path / "mine.safetensors") == tmp_path / "mine.safetensors"
    assert len(asked.files) == 3


def test_every_model_has_weights_somewhere():
    assert [name for name in list_models() if find_spec(name).hub_id is None] == ["vit_nano_patch8_64"]


def test_an_unreachable_hub(asked, monkeypatch):
    spec = find_spec("vit_small_patch16_224")
    asked.answer = asked.errors.LocalEntryNotFoundError("no connection")
    assert "could not be reached" in refusal(spec)
    asked.answer = ConnectionError("refused")
    assert "could not be reached" in refusal(spec)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked.answer = asked.errors.LocalEntryNotFoundError("offline")
    assert "HF_HUB_OFFLINE" in refusal(spec)


def test_a_repository_or_file_that_does_not_exist(asked):
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    asked.answer = asked.errors.RepositoryNotFoundError("404", response=response)
    assert "the hub has no timm/vit_small_patch16_224.wrong" in refusal(find_spec("vit_small_patch16_224.wrong"))
    asked.answer = asked.errors.EntryNotFoundError("404")
    assert "has no model.safetensors" in refusal(find_spec("vit_small_patch16_224"))


def test_offline_for_real(monkeypatch, tmp_path):
    """The real client, told to stay offline, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE" in refusal(find_spec("vit_small_patch16_224"))


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"edgetune\[hub\]"):
        hub.find_weights(find_spec("vit_small_patch16_224"))


def test_bundled_weights_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "resource_folder", lambda name: tmp_path)
    with pytest.raises(InputError, match="reinstall"):
        hub.find_weights(find_spec("vit_nano_patch8_64"))
    (tmp_path / "vit_nano_patch8_64.safetensors").touch()
    assert hub.find_weights(find_spec("vit_nano_patch8_64")).parent == tmp_path
