import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgetune.data.features import HEADER_BYTES, FeatureFile, FeatureWriter, feature_bytes
from edgetune.errors import InputError, StorageError

SHAPE = (3, 5)
PRECISIONS = ("fp16", "int8")


def made(count, seed=0):
    """Features whose tokens differ in size by orders of magnitude, as a transformer's do."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, *SHAPE)) * 10 ** rng.uniform(-3, 3, (count, SHAPE[0], 1))
    return values.astype(np.float32)


def make(path, count, *, shape=SHAPE, precision="fp16", key="a"):
    return FeatureWriter(path, count=count, shape=shape, precision=precision, key=key)


def write(path, features, precision="fp16", key="a"):
    with make(path, len(features), precision=precision, key=key) as writer:
        writer.put(0, features)
        writer.finish()
    return path


def close_to(read, features, precision):
    if precision == "fp16":
        tolerance = np.maximum(np.abs(features) * 2.0**-11, 2.0**-25)
    else:
        scale = np.maximum(np.abs(features).max(2, keepdims=True) / 127, np.finfo(np.float32).tiny)
        tolerance = scale * 0.5 * (1 + 1e-6)
    return bool((np.abs(read - features) <= tolerance).all())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_was_put_is_read_in_any_order(precision, tmp_path):
    features = made(7)
    path = write(tmp_path / "new" / "features", features, precision)
    with FeatureFile.open(path, "a") as file:
        assert (file.count, file.shape, file.precision) == (7, SHAPE, precision)
        order = [6, 0, 3, 3]
        read = file.read(order)
        assert read.dtype == np.float32
        assert close_to(read, features[order], precision)
        out = np.full((5, *SHAPE), 7, np.float32)
        assert np.shares_memory(file.read(np.array(order), out), out)
        assert np.array_equal(out[:4], read)
        assert (out[4] == 7).all()
        for wrong in (7, -1):
            with pytest.raises(IndexError):
                file.read([wrong])
    assert os.listdir(path.parent) == ["features"]
    assert path.stat().st_size == feature_bytes(7, SHAPE, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(
    values=arrays.arrays(np.float32, (2, *SHAPE), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
)
def test_no_value_is_further_off_than_the_precision_allows(precision, values, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("features") / "f", values, precision)
    with FeatureFile.open(path, "a") as file:
        kept = np.clip(values, -65504, 65504) if precision == "fp16" else values
        assert close_to(file.read([0, 1]), kept, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("complete", range(6))
def test_a_killed_run_goes_on_at_the_first_missing_record(precision, complete, tmp_path):
    features, path = made(5), tmp_path / "features"
    killed = make(path, 5, precision=precision)
    killed.put(0, features[:complete])
    assert killed.bytes_written == feature_bytes(complete, SHAPE, precision)
    killed.close()  # all the system does for a process that was killed
    assert FeatureFile.open(path, "a") is None
    with make(path, 5, precision=precision) as writer:
        assert (writer.complete, writer.bytes_written) == (complete, 0)
        writer.put(complete, features[complete:])
        assert writer.bytes_written == feature_bytes(5, SHAPE, precision) - feature_bytes(complete, SHAPE, precision)
        writer.finish()
    assert path.read_bytes() == write(tmp_path / "at once", features, precision).read_bytes()


def test_a_process_killed_at_any_moment_leaves_whole_records(tmp_path):
    path = tmp_path / "features"
    code = f"""
import numpy as np
from pathlib import Path
from edgetune.data.features import FeatureWriter
writer = FeatureWriter(Path({str(path)!r}), count=10**6, shape=(3, 5), precision="int8", key="a")
for number in range(10**6):
    writer.put(number, np.full((1, 3, 5), number, np.float32))
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if int(line) >= 50:
                break
        child.kill()
    with make(path, 10**6, precision="int8") as writer:
        assert 51 <= writer.complete < 10**6


@pytest.mark.parametrize("precision", PRECISIONS)
@given(data=st.data())
def test_a_torn_file_in_the_making_is_taken_up_to_the_tear(precision, data, tmp_path_factory):
    features, path = made(5), tmp_path_factory.mktemp("features") / "f"
    with make(path, 5, precision=precision) as writer:
        writer.put(0, features)
        partial = writer.partial_path
    content = bytearray(partial.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:  # after a power cut, what was not yet on the disk may read as anything
        content[place] ^= data.draw(st.integers(1, 255))
    partial.write_bytes(content)
    whole = max(0, (place - HEADER_BYTES) // (feature_bytes(1, SHAPE, precision) - HEADER_BYTES))
    with make(path, 5, precision=precision) as writer:
        assert writer.complete == whole
        writer.put(whole, features[whole:])
        writer.finish()
    with FeatureFile.open(path, "a") as file:
        assert close_to(file.read(range(5)), features, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(data=st.data())
def test_a_damaged_file_never_gives_other_values(precision, data, tmp_path_factory):
    features = made(3)
    path = write(tmp_path_factory.mktemp("features") / "f", features, precision)
    with FeatureFile.open(path, "a") as file:
        expected = file.read(range(3))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["cut", "flip", "zero", "longer"])):
        case "cut":
            del content[place:]
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "zero":
            content[place : place + 512] = bytes(len(content[place : place + 512]))
        case "longer":
            content += bytes(place + 1)
    path.write_bytes(content)
    file = FeatureFile.open(path, "a")
    if file is None:
        return
    bad = 0
    with file:
        for index in range(3):
            try:
                assert np.array_equal(file.read([index])[0], expected[index])
            except InputError:
                bad += 1
    assert bad or bytes(content[HEADER_BYTES:]) == write(path, features, precision).read_bytes()[HEADER_BYTES:]


def test_a_file_cut_after_it_was_opened_is_found_out(tmp_path):
    path = write(tmp_path / "f", made(3))
    with FeatureFile.open(path, "a") as file:
        os.truncate(path, path.stat().st_size - 1)
        assert file.read([0]).any()
        with pytest.raises(InputError, match="delete it"):
            file.read([2])


def test_a_record_in_anothers_place_or_of_another_key_is_found_out(tmp_path):
    path, other = write(tmp_path / "f", made(3)), write(tmp_path / "g", made(3), key="b")
    content, size = path.read_bytes(), feature_bytes(1, SHAPE, "fp16") - HEADER_BYTES
    first, second = content[HEADER_BYTES:][:size], content[HEADER_BYTES + size :][:size]
    path.write_bytes(content[:HEADER_BYTES] + second + first + content[HEADER_BYTES + 2 * size :])
    with FeatureFile.open(path, "a") as file:
        for index in (0, 1):
            with pytest.raises(InputError, match=rf"{path} is damaged at record {index}; delete it"):
                file.read([index])
        assert file.read([2]).any()
    path.write_bytes(content[:HEADER_BYTES] + other.read_bytes()[HEADER_BYTES:])
    with FeatureFile.open(path, "a") as file, pytest.raises(InputError, match="damaged"):
        file.read([2])


def test_only_a_file_of_the_same_key_is_opened(tmp_path):
    path = write(tmp_path / "f", made(2))
    assert FeatureFile.open(path, "b") is None
    assert FeatureFile.open(tmp_path / "g", "a") is None
    for content in (b"", b"\0" * 4096, b"{}" * 3000):
        path.write_bytes(content)
        assert FeatureFile.open(path, "a") is None
    with pytest.raises(InputError, match="can't be read"):
        FeatureFile.open(tmp_path, "a")


@pytest.mark.parametrize("change", [{"key": "b"}, {"count": 4}, {"shape": (5, 3)}, {"precision": "int8"}])
def test_another_file_in_the_making_is_not_gone_on_with(change, tmp_path):
    with make(tmp_path / "f", 3) as writer:
        writer.put(0, made(2))
    with make(tmp_path / "f", **({"count": 3} | change)) as writer:
        assert writer.complete == 0
        assert writer.partial_path.stat().st_size == HEADER_BYTES


def test_a_former_file_stays_until_the_new_one_is_whole(tmp_path):
    path = write(tmp_path / "f", made(3))
    with make(path, 3, key="b") as writer:
        writer.put(0, made(2, seed=1))
        with pytest.raises(ValueError, match="1 of 3 records are missing"):
            writer.finish()
        assert FeatureFile.open(path, "a") is not None
        writer.put(2, made(1, seed=2))
        writer.finish()
    assert FeatureFile.open(path, "a") is None
    assert FeatureFile.open(path, "b") is not None


def test_what_does_not_belong_is_refused(tmp_path):
    with make(tmp_path / "f", 3) as writer:
        writer.put(0, made(1))
        for start, features in ((0, made(1)), (2, made(1)), (1, made(3)), (1, np.zeros((1, 5, 3), np.float32))):
            with pytest.raises(ValueError, match="record 1 of 3 is next"):
                writer.put(start, features)
        for wrong in (np.nan, np.inf):
            with pytest.raises(InputError, match="image 1 is no number"):
                writer.put(1, np.full((1, *SHAPE), wrong, np.float32))
        assert writer.complete == 1
        with pytest.raises(InputError, match="another run"):
            make(tmp_path / "f", 3)
        writer.discard()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="too long"):
        make(tmp_path / "f", 3, key="a" * 600)


def test_a_disk_that_fills_up_leaves_nothing_that_passes_for_whole(tmp_path):
    features, path = made(100), tmp_path / "f"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with make(path, 100) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (feature_bytes(60, SHAPE, "fp16") + 7, limit[1]))
        try:
            with pytest.raises(StorageError, match=r"f\.partial could not be written"):
                writer.put(0, features)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, ignored)
        assert writer.complete == 60
    assert FeatureFile.open(path, "a") is None
    with make(path, 100) as writer:
        assert writer.complete == 60
        writer.put(60, features[60:])
        writer.finish()
    with FeatureFile.open(path, "a") as file:
        assert close_to(file.read(range(100)), features, "fp16")


def test_a_file_too_large_for_its_disk_is_refused_at_once(tmp_path):
    with pytest.raises(StorageError, match="are needed"):
        make(tmp_path / "f", 1 << 50)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        make(tmp_path / "file" / "f", 1)


def test_reading_many_records_takes_no_memory(tmp_path):
    count, shape = 200, (50, 384)
    with make(tmp_path / "f", count, shape=shape) as writer:
        for number in range(count):
            writer.put(number, np.full((1, *shape), number, np.float32))
        writer.finish()
    code = f"""
import re, sys
from pathlib import Path
from edgetune.data.features import FeatureFile
assert "torch" not in sys.modules
resident = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
file = FeatureFile.open(Path({str(tmp_path / "f")!r}), "a")
file.read(range(8))
before = resident()
for start in range(0, {count}, 8):
    assert file.read(range(start, start + 8))[3, 0, 0] == start + 3
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 1 << 20  # of 7.7 MB
