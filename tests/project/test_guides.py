"""The boards' guides: what can run here is run, line by line and in one folder, with fewer images and no probes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune.profile.run import Probed
from edgetune.schema import Compute
from edgetune.selftest.fits import missing_part
from tests.conftest import Ended
from tests.project.facts import ROOT
from tests.project.test_commands import commands_in, parse

BOARDS = sorted(path for path in (ROOT / "docs" / "boards").glob("*.md") if path.name != "README.md")
PAGES = [*BOARDS, ROOT / "docs" / "containers.md"]
IDS = [path.stem for path in PAGES]


@pytest.mark.parametrize("path", BOARDS, ids=[path.stem for path in BOARDS])
def test_the_commands_of_a_guide_run_in_its_order(
    path: Path, edgetune: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    pytest.importorskip("onnx", reason="exporting needs onnx")
    from edgetune.data import samples

    whole = samples.unpack
    monkeypatch.setattr(samples, "unpack", lambda name, folder: whole(name, folder, per_class=3, classes=3))
    # the probes have tests of their own, and so has the self-test; both take their time
    unprobed = Probed(Compute(probe_error="nothing was timed"), [], {})
    monkeypatch.setattr("edgetune.profile.assemble.run_probes", lambda **_: unprobed)
    monkeypatch.setattr("edgetune.profile.assemble._QUICK_IDLE_S", 0.0)
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in commands_in(path):
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "selftest":
            continue
        if "onnx" in words and "--engine" in words and missing_part("onnx") is not None:
            break  # this edgetune can't train without torch yet, and what follows needs the run
        if words[0] == "fit" and "zero" in path.stem:  # its cap is less than this process, which holds torch
            done = subprocess.run(
                [sys.executable, "-m", "edgetune", *words], capture_output=True, text=True, check=False
            )
            ended = Ended(done.returncode, done.stdout, done.stderr)
        else:
            ended = edgetune(*words)
        assert ended.code == 0, f"{line}: {ended.err}"
        ran.append(words[0])
    wanted = {"sample-data", "profile"}
    if missing_part("onnx") is None or "zero" not in path.stem:
        wanted |= {"plan", "fit", "evaluate"}
    assert wanted <= set(ran)


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_what_a_container_is_told_to_run_is_understood(path: Path) -> None:
    """`docker run … IMAGE WORDS` are `edgetune WORDS`; a shell reads every block."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    found = 0
    for block in blocks:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            match = re.search(r"docker (?:compose )?run .*?(?:edgetune:\S+|\bpi|\bjetson)(?: (.+))?$", line)
            if match and not line.startswith("alias"):
                parse(f"edgetune {match[1] or '--help'}")
                found += 1
    assert found or "alias edgetune=" in path.read_text()


def test_every_guide_has_its_parts() -> None:
    index = (ROOT / "docs" / "boards" / "README.md").read_text()
    assert len(BOARDS) >= 5
    for path in BOARDS:
        text = path.read_text()
        assert path.name in index
        for word in ("selftest", "swap", "memory", "Untested", "TensorRT", "docker run"):
            assert word in text, f"{path.name} says nothing of {word}"
        assert ("nvpmodel" in text) == ("jetson" in path.name)
        assert re.search(r"trtexec|TensorRT.*(untested|Jetson)", text, re.DOTALL)
        for target in re.findall(r"^make ([a-z0-9-]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_compose_file_says_what_the_documents_say() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with huggingface-hub")
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert set(services) == {"pi", "jetson"}
    text = (ROOT / "docs" / "containers.md").read_text()
    for service in services.values():
        assert service["mem_limit"]
        assert service["shm_size"]
        assert "privileged" not in service
        for volume in service["volumes"][1:]:
            assert volume.endswith(":ro")
            assert f"-v {volume}" in text, volume
    assert services["jetson"]["runtime"] == "nvidia"
    assert services["pi"]["devices"] == ["/dev/vcio:/dev/vcio"]
