"""OME-Zarr: resolution levels, metadata that the field's validator accepts, and object storage."""

from collections import Counter

import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from evenslice import OutputError, open_volume
from evenslice.volumes import Destination, write_volume
from evenslice.volumes.write import files, zarr as zarr_module
from evenslice.volumes.write.zarr import halve, levels

arrays = hnp.arrays(
    st.sampled_from([np.uint8, np.int16, np.uint64]),
    st.tuples(*[st.integers(1, 5)] * 3),
    elements=st.integers(0, 3) | st.integers(120, 127),
)
steps_of = st.tuples(*[st.integers(1, 2)] * 3)


def boxes(array, steps):
    """Yield the index of each box, and its voxels in C order."""
    for index in np.ndindex(*(-(-length // step) for length, step in zip(array.shape, steps, strict=True))):
        part = tuple(slice(i * step, (i + 1) * step) for i, step in zip(index, steps, strict=True))
        yield index, array[part].ravel().tolist()


@given(arrays, steps_of)
def test_labels_become_the_most_frequent_of_a_box_and_whole_numbers_the_mean(array, steps):
    most, mean = (halve(array, steps, labels=labels) for labels in (True, False))
    assert most.dtype == mean.dtype == array.dtype
    for index, values in boxes(array, steps):
        counts = Counter(values)
        assert counts[most[index]] == max(counts.values())
        if len(values) == np.prod(steps):  # what a border cuts is counted with repeats, in another order
            assert most[index] == counts.most_common(1)[0][0]
        assert abs(int(mean[index]) - sum(values) / len(values)) <= 0.5


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_mean_of_real_numbers(dtype):
    array = np.array([[[1.0, 2.0], [4.0, 8.0]]], dtype)
    assert halve(array, (1, 2, 2), labels=False).tolist() == [[[3.75]]]
    largest = np.full((2, 2, 2), np.finfo(dtype).max, dtype)
    assert halve(largest, (2, 2, 2), labels=False).item() == np.finfo(dtype).max


def test_thick_slices_are_halved_when_the_pixels_have_caught_up():
    plan = levels((40, 3000, 2000), (50.0, 4.0, 4.0))
    assert [level.factors for level in plan] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 16, 16)]
    assert plan[-1].shape == (20, 188, 125)
    assert len(levels((500, 256, 256), None)) == 1


SHAPE = (5, 700, 530)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).choice([0, 3, 9], SHAPE).astype(np.uint16)


def test_levels_hold_what_the_metadata_say(labels, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SLAB_BYTES", 2**19)
    told = []
    volume = open_volume(labels, spacing=(30, 8, 8), unit="nm")
    write_volume(volume, tmp_path / "a.ome.zarr", progress=lambda *state: told.append(state))
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    ome = group.attrs["ome"]
    expected = labels
    for number, scale in enumerate([(30, 8, 8), (30, 16, 16), (60, 32, 32)]):
        dataset = ome["multiscales"][0]["datasets"][number]
        found = group[dataset["path"]][...]
        if number:
            expected = halve(expected, (number, 2, 2), labels=True)
            shift = [0, 4, 4] if number == 1 else [15, 12, 12]
            assert dataset["coordinateTransformations"][1] == {"type": "translation", "translation": shift}
        np.testing.assert_array_equal(found, expected)
        assert set(np.unique(found)) <= {0, 3, 9}
        assert dataset["coordinateTransformations"][0] == {"type": "scale", "scale": list(scale)}
        assert open_volume(tmp_path / "a.ome.zarr", level=number).spacing == scale
    assert len(ome["multiscales"][0]["datasets"]) == 3
    assert told[-1] == (sum(group[name].size for name in "012"),) * 2


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["nm", "inch", None])
def test_the_metadata_are_valid(unit, labels, tmp_path):
    write_volume(open_volume(labels, spacing=(30, 8, 8), unit=unit), tmp_path / "labels.ome.zarr")
    group = yaozarrs.validate_zarr_store(str(tmp_path / "labels.ome.zarr"))
    image = group.ome_metadata()
    assert isinstance(image, yaozarrs.v05.LabelImage)
    assert image.multiscales[0].ndim == 3
    picture = open_volume(labels.astype(np.float32))
    write_volume([picture, picture], tmp_path / "picture.ome.zarr")
    image = yaozarrs.validate_zarr_store(str(tmp_path / "picture.ome.zarr")).ome_metadata()
    assert not isinstance(image, yaozarrs.v05.LabelImage)
    assert [axis.name for axis in image.multiscales[0].axes] == ["c", "z", "y", "x"]


@pytest.fixture
def memory(monkeypatch):
    """A storage service in memory."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(zarr_module, "WRITABLE", ("s3", "memory"))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_a_remote_image_is_the_local_one_with_the_metadata_sent_last(labels, memory, tmp_path, monkeypatch):
    sent, put = [], type(memory).put_file

    def note(self, here, there, *rest, **options):
        sent.append(there.removeprefix("/bucket/a.ome.zarr/"))
        put(self, here, there, *rest, **options)

    monkeypatch.setattr(type(memory), "put_file", note)
    volume = open_volume(labels, spacing=(30, 8, 8), unit="nm")
    write_volume(volume, tmp_path / "a.ome.zarr")
    write_volume(volume, "memory://bucket/a.ome.zarr")
    assert sorted(sent[-4:-1]) == ["0/zarr.json", "1/zarr.json", "2/zarr.json"]
    assert sent[-1] == "zarr.json"
    assert sum(name.endswith("zarr.json") for name in sent) == 4
    local = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    remote = {path.removeprefix("/bucket/"): memory.cat(path) for path in memory.find("/bucket")}
    assert remote == local


@pytest.mark.parametrize("there", ["zarr.json", "0/c/0/0/0"])
def test_what_is_remote_is_never_replaced_or_touched(there, memory):
    memory.pipe({f"/bucket/a.zarr/{there}": b"precious", "/bucket/b.zarr.writable": b"of the user"})
    before = {path: memory.cat(path) for path in memory.find("/bucket")}
    Destination.of("memory://bucket/b.zarr").check()
    with pytest.raises(OutputError, match="cannot be replaced in one step; remove it first"):
        write_volume(open_volume(np.zeros((2, 2, 2))), "memory://bucket/a.zarr", force=True)
    assert {path: memory.cat(path) for path in memory.find("/bucket")} == before


@pytest.fixture(scope="module")
def bucket():
    """The address of a bucket of an S3 service on this machine."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        pytest.importorskip("boto3").client("s3").create_bucket(Bucket="volumes")
        yield "s3://volumes"
    server.stop()


@pytest.mark.slow
def test_an_image_goes_to_s3_and_opens_from_there(labels, bucket):
    volume = open_volume(labels, spacing=(30, 8, 8), unit="nm")
    write_volume(volume, f"{bucket}/sub/labels.ome.zarr/")
    again = open_volume(f"{bucket}/sub/labels.ome.zarr")
    np.testing.assert_array_equal(again[:], labels)
    assert (again.spacing, again.unit) == (volume.spacing, "nm")
    with pytest.raises(OutputError, match="labels.ome.zarr, which is read"):
        write_volume(again, f"{bucket}/sub/labels.ome.zarr/labels/cells.zarr")
    with pytest.raises(OutputError, match="a remote volume cannot be replaced"):
        write_volume(volume, f"{bucket}/sub/labels.ome.zarr", force=True)
    with pytest.raises(OutputError, match="no-such-bucket/a.zarr: cannot be written .*bucket does not exist"):
        Destination.of("s3://no-such-bucket/a.zarr").check()


def test_a_service_that_fails_is_one_line_and_keeps_what_others_wrote(labels, memory, monkeypatch):
    put = type(memory).put_file

    def fails_late(self, here, there, *rest, **options):
        if there.endswith("zarr.json"):
            memory.pipe_file("/bucket/a.zarr/notes.txt", b"of another process")
            raise PermissionError("An error occurred (AccessDenied)\nwhen calling PutObject")
        put(self, here, there, *rest, **options)

    monkeypatch.setattr(type(memory), "put_file", fails_late)
    with pytest.raises(OutputError, match=r"^memory://bucket/a.zarr: cannot be written \(An error"):
        write_volume(open_volume(labels), "memory://bucket/a.zarr")
    assert memory.find("/bucket") == ["/bucket/a.zarr/notes.txt"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("https://example.org/a.zarr", "cannot write to https:// addresses; .*s3://"),
        ("s3://bucket/a.tif", "TIFF is written to files only"),
        ("s3://key:secret@bucket/a.zarr", "contains a password"),
        ("s3://bucket/a.zarr?versionId=1", "contains a password, a query"),
    ],
)
def test_addresses_that_cannot_be_written(address, reason):
    with pytest.raises(OutputError, match=reason) as caught:
        write_volume(open_volume(np.zeros((2, 2, 2))), address)
    assert "secret" not in str(caught.value)
