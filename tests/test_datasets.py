"""The data sets: three forms of CIFAR-10, digits, and every way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from tt_lib.datasets import Images, cifar10, load_cifar10, load_dataset, to_float, to_uint8
from tt_lib.errors import BadValue, CorruptFile, MissingFile

TINY = {"train": 20, "test": 4}
"""Four images for each of the six batch files."""


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No data but what a test makes; counts as small as the made files."""
    monkeypatch.delenv("TT_CIFAR10", raising=False)
    monkeypatch.setenv("TT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(cifar10, "COUNTS", TINY)


def made(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The pixels [N, 3, 32, 32] and labels of a tiny split."""
    generator = np.random.default_rng(len(split))
    pixels = generator.integers(0, 256, (TINY[split], 3, 32, 32), dtype=np.uint8)
    return pixels, generator.integers(0, 10, TINY[split])


def assert_made(images: Images, split: str) -> None:
    pixels, labels = made(split)
    assert torch.equal(images.pixels, torch.from_numpy(pixels))
    assert images.labels.tolist() == labels.tolist() and images.labels.dtype == torch.int64
    assert images.name == f"cifar10-{split}" and len(images) == TINY[split]


@pytest.fixture
def batches(tmp_path, monkeypatch) -> Path:
    """A folder ``cifar-10-batches-py`` with six tiny batch files, whose hashes are those asked for."""
    folder = tmp_path / "torchvision" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    hashes: dict[str, dict[str, str]] = {}
    for split, names in cifar10.BATCH_MD5.items():
        pixels, labels = made(split)
        for name, part, classes in zip(names, np.split(pixels, len(names)), np.split(labels, len(names)), strict=True):
            batch = {"data": part.reshape(len(part), -1), "labels": classes.tolist(), "batch_label": name}
            content = pickle.dumps(batch, protocol=2)
            (folder / name).write_bytes(content)
            hashes.setdefault(split, {})[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(cifar10, "BATCH_MD5", hashes)
    return folder


@pytest.fixture
def archive(batches, tmp_path) -> Path:
    """The same files as ``cifar-10-python.tar.gz``, in the shuffled order that the official archive has."""
    path = tmp_path / "archive" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as out:
        for file in sorted(batches.iterdir(), reverse=True):
            out.add(file, f"cifar-10-batches-py/{file.name}")
    return path


def encode(pixels: np.ndarray, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, form, lossless=True)
    return stream.getvalue()


def write_shard(path: Path, images: list, labels: list, column: str = "img") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": content, "path": None} for content in images]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = {column: pyarrow.array(rows, kind), "label": pyarrow.array(labels, pyarrow.int64())}
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def write_parquet(root: Path, form: str = "PNG", column: str = "img") -> None:
    """Both splits, the training images in two files."""
    for split, shards in (("train", 2), ("test", 1)):
        pixels, labels = made(split)
        for i in range(shards):
            part = slice(i * len(pixels) // shards, (i + 1) * len(pixels) // shards)
            name = f"{split}-{i:05}-of-{shards:05}.parquet"
            write_shard(root / name, [encode(x, form) for x in pixels[part]], labels[part].tolist(), column)


# The three forms


@pytest.mark.parametrize("split", ["train", "test"])
def test_extracted_folder_and_archive(batches, archive, split):
    for root in (batches, str(batches.parent), archive, archive.parent):
        assert_made(load_cifar10(split, root), split)
    assert os.listdir(archive.parent) == [archive.name], "nothing was extracted"


@pytest.mark.parametrize("folder", [".", "plain_text", "split=train"])
@pytest.mark.parametrize(("form", "column"), [("PNG", "img"), ("WEBP", "image")])
def test_parquet(tmp_path, folder, form, column):
    root = tmp_path / "hub" if folder == "plain_text" else tmp_path / folder
    write_parquet(root / "plain_text" if folder == "plain_text" else root, form, column)
    for split in TINY:
        assert_made(load_cifar10(split, root), split)


def test_looked_for_in_the_environment_then_in_data(batches, tmp_path, monkeypatch):
    with pytest.raises(
        MissingFile, match=r"data.cifar10 \(\$TT_CIFAR10 is not set\).*kriz.*torchvision.*download=True"
    ):
        load_cifar10("test")
    write_parquet(tmp_path / "data" / "cifar10" / "plain_text")
    assert_made(load_cifar10("test"), "test")
    monkeypatch.setenv("TT_CIFAR10", str(tmp_path / "gone"))
    with pytest.raises(MissingFile, match=r"gone \(\$TT_CIFAR10\)"):  # a wrong setting is not passed over
        load_cifar10("test")
    monkeypatch.setenv("TT_CIFAR10", str(batches))
    assert_made(load_dataset("cifar10", "train"), "train")


# Bad input


def test_wrong_folder_says_what_is_in_it(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFile, match=r"no CIFAR-10 test images but nothing; expected .*cifar-10-batches-py"):
        load_cifar10("test", tmp_path / "empty")
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(MissingFile, match=r"images but empty, holiday\.jpg; expected"):
        load_cifar10("test", tmp_path)
    with pytest.raises(MissingFile, match=r"no such file or folder as .*gone \(root\)"):
        load_cifar10("test", tmp_path / "gone")
    with pytest.raises(MissingFile, match=r"is a file but not cifar-10-python\.tar\.gz"):
        load_cifar10("test", tmp_path / "holiday.jpg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mnist", "train"), "cifar10, digits"),
        (("cifar10", "valid"), "test, train"),
        (("digits", "valid"), "test, train"),
        (("digits", "train", "a-folder"), "'a-folder'; leave it out"),
    ],
)
def test_unknown_names(words, message):
    with pytest.raises(BadValue, match=message):
        load_dataset(*words)


def test_missing_or_damaged_batch_file(batches):
    content = bytearray((batches / "data_batch_2").read_bytes())
    content[len(content) // 2] ^= 1
    (batches / "data_batch_2").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"data_batch_2 .*md5"):
        load_cifar10("train", batches)
    (batches / "data_batch_3").unlink()
    with pytest.raises(MissingFile, match="lacks the batch files data_batch_3"):
        load_cifar10("train", batches)
    assert_made(load_cifar10("test", batches), "test")


@pytest.mark.parametrize("cut", [1000, 30_000])
def test_truncated_archive(archive, cut):
    archive.write_bytes(archive.read_bytes()[:-cut])
    with pytest.raises(CorruptFile, match="truncated: delete it and fetch"):
        load_cifar10("train", archive)


def test_archive_without_the_batches(archive):
    with tarfile.open(archive, "w:gz") as out:
        out.add(__file__, "cifar-10-batches-py/readme.html")
    with pytest.raises(CorruptFile, match="lacks test_batch"):
        load_cifar10("test", archive)


class Attack:
    """A pickle that makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("content", ["attack", "wrong keys", "ragged", "not a pickle"])
def test_batch_files_with_other_content(batches, tmp_path, monkeypatch, content):
    mark = tmp_path / "attacked"
    written = {
        "attack": pickle.dumps({"data": Attack(mark), "labels": []}),
        "wrong keys": pickle.dumps({"pixels": 1}),
        "ragged": pickle.dumps({"data": np.zeros((2, 100), np.uint8), "labels": [0, 0]}),
        "not a pickle": b"<html>404</html>",
    }[content]
    (batches / "test_batch").write_bytes(written)
    monkeypatch.setitem(cifar10.BATCH_MD5, "test", {"test_batch": hashlib.md5(written).hexdigest()})
    with pytest.raises(CorruptFile, match="not a CIFAR-10 batch"):
        load_cifar10("test", batches)
    assert not mark.exists()


def test_truncated_or_missing_parquet(tmp_path):
    write_parquet(tmp_path)
    path = tmp_path / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFile, match="not CIFAR-10 in parquet form"):
        load_cifar10("test", tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(CorruptFile, match=r"\[10, 3, 32, 32\].*expected \[20, 3, 32, 32\]"):
        load_cifar10("train", tmp_path)


@pytest.mark.parametrize(
    ("image", "label", "column", "message"),
    [
        (None, 1, "photo", "in parquet form .*image"),
        (None, 12, "img", "outside 0..9: \\[12\\]"),
        (None, None, "img", "without a label"),
        (b"no image", 1, "img", "row 3 of .* is not an image"),
        (b"", 1, "img", "row 3 of .* is not an image"),
        (encode(np.zeros((3, 8, 8), np.uint8)), 1, "img", "8x8"),
    ],
)
def test_damaged_parquet_rows(tmp_path, image, label, column, message):
    good = [encode(x) for x in made("test")[0]]
    images = [*good[:3], good[3] if image is None else image]
    write_shard(tmp_path / "test-0.parquet", images, [0, 1, 2, label], column)
    with pytest.raises(CorruptFile, match=message):
        load_cifar10("test", tmp_path)


# Digits, and images in memory


def test_digits_are_complete_and_split_once():
    from sklearn.datasets import load_digits

    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert (len(train), len(test), train.name) == (1500, 297, "digits-train")
    assert train.pixels.shape == (1500, 1, 8, 8) and train.pixels.max() == 255
    joined = torch.cat([train.pixels, test.pixels]).flatten(1).tolist()
    levels, labels = load_digits(return_X_y=True)
    assert sorted(joined) == sorted(torch.from_numpy(levels * 255 / 16).round().int().tolist())
    assert torch.cat([train.labels, test.labels]).bincount().tolist() == np.bincount(labels).tolist()
    # Fixed for good: shipped statistics belong to this split.
    assert test.labels[:12].tolist() == [5, 7, 4, 5, 9, 5, 5, 8, 7, 7, 8, 9]


def test_uint8_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_float(levels)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    assert torch.equal(to_uint8(x), levels)
    assert torch.equal(to_uint8(x.half()), levels)
    # Rounded to the nearest, not truncated; clamped outside [-1, 1].
    assert to_uint8(torch.tensor([100.6, 100.4]) / 127.5 - 1).tolist() == [101, 100]
    assert to_uint8(torch.tensor([-7.0, 1.02, float("inf")])).tolist() == [0, 255, 255]
    with pytest.raises(BadValue, match="uint8"):
        to_float(x)


def test_images_refuse_other_types_and_shapes():
    pixels, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(BadValue, match="pixels"):
        Images(pixels.float(), labels, "x")
    with pytest.raises(BadValue, match="labels"):
        Images(pixels, labels[:1], "x")


@pytest.mark.cifar10
def test_real_cifar10(cifar10_root, monkeypatch):
    monkeypatch.setattr(cifar10, "COUNTS", {"train": 50_000, "test": 10_000})
    train, test = load_cifar10("train", cifar10_root), load_cifar10("test", cifar10_root)
    means = train.pixels.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.49140, 0.48216, 0.44653], abs=1e-5)
    assert train.labels.bincount().tolist() == [5000] * 10 and test.labels.bincount().tolist() == [1000] * 10
    assert len({row.tobytes() for row in train.pixels.numpy()}) == 50_000
