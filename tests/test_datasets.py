"""The data sets: the forms of CIFAR-10 and of a user's own, digits, and every way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from tt_lib.datasets import Images, cifar10, load_cifar10, load_dataset, to_float, to_uint8
from tt_lib.datasets import folder as folders
from tt_lib.datasets.folder import holds_statistics, read_moments
from tt_lib.datasets.images import by_hash
from tt_lib.errors import BadValue, CorruptFile, MissingFile

TINY = {"train": 20, "test": 4}
"""Four images for each of the six batch files."""
REAL = cifar10.DIGESTS, cifar10.ORDER


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path, tmp_path_factory):
    """No data but what a test makes, and CIFAR-10 is the tiny made set."""
    monkeypatch.delenv("TT_CIFAR10", raising=False)
    monkeypatch.setenv("TT_DATA", str(tmp_path / "data"))
    pretend(monkeypatch, tmp_path_factory.mktemp("order"))


def pretend(monkeypatch, folder: Path) -> None:
    """Make the loader of CIFAR-10 know the images of :func:`made` in their order, in place of the real ones."""
    known, places = {}, {}
    for split in TINY:
        pixels, labels = map(torch.from_numpy, made(split))
        order, known[split] = by_hash(pixels, labels)
        places[split] = order.argsort().numpy().astype(np.uint16)
    np.savez(folder / "order.npz", **places)
    monkeypatch.setattr(cifar10, "DIGESTS", known)
    monkeypatch.setattr(cifar10, "ORDER", folder / "order.npz")


def made(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The pixels [N, 3, 32, 32] and labels of a tiny split; both splits have the classes 0..3."""
    generator = np.random.default_rng(len(split))
    pixels = generator.integers(0, 256, (TINY[split], 3, 32, 32), dtype=np.uint8)
    return pixels, generator.permutation(TINY[split]) % 4


def assert_made(images: Images, split: str) -> None:
    pixels, labels = made(split)
    assert torch.equal(images.pixels, torch.from_numpy(pixels))
    assert images.labels.tolist() == labels.tolist() and images.labels.dtype == torch.int64
    assert images.name == f"cifar10-{split}" and len(images) == TINY[split]
    assert images.digest == cifar10.DIGESTS[split]


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


def write_shard(path: Path, images: list, labels: list, column: str = "img", label: str = "label", kind=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": content, "path": None} for content in images]
    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = {column: pyarrow.array(rows, struct), label: pyarrow.array(labels, kind)}
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def write_parquet(root: Path, form: str = "PNG", column: str = "img") -> None:
    """Both splits, the training images in two files."""
    for split, shards in (("train", 2), ("test", 1)):
        pixels, labels = made(split)
        for i in range(shards):
            part = slice(i * len(pixels) // shards, (i + 1) * len(pixels) // shards)
            name = f"{split}-{i:05}-of-{shards:05}.parquet"
            write_shard(root / name, [encode(x, form) for x in pixels[part]], labels[part].tolist(), column)


def write_npz(root: Path, **replaced) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for split in TINY:
        pixels, labels = made(split)
        np.savez(root / f"{split}.npz", **({"images": pixels.transpose(0, 2, 3, 1), "labels": labels} | replaced))


def write_classes(root: Path, classes: tuple[str, ...] = ("airplane", "bird", "cat", "deer")) -> None:
    for split in TINY:
        for i, (pixels, label) in enumerate(zip(*made(split), strict=True)):
            path = root / split / classes[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels))


# The forms


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


@pytest.mark.parametrize(
    "classes", [("airplane", "bird", "cat", "deer"), tuple("0123"), ("00", "01", "2", "003")], ids=lambda it: it[0]
)
def test_class_folders(tmp_path, classes):
    write_classes(tmp_path, classes)
    (tmp_path / "train" / ".DS_Store").touch()
    picture = next((tmp_path / "test" / classes[0]).iterdir())
    picture.rename(picture.with_suffix(".PNG"))
    for split in TINY:
        assert_made(load_cifar10(split, tmp_path), split)
        assert_own(load_dataset("synthetic", split, tmp_path), "synthetic", split)


def assert_own(images: Images, name: str, split: str, called: str = "") -> None:
    """They are the made images, in whatever order, of no class; rows are read as they are asked for."""
    pixels = torch.from_numpy(made(split)[0])
    found = images.pixels[:]
    order, digest = by_hash(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    assert torch.equal(found[by_hash(found, images.labels)[0]], pixels[order]) and not images.labels.any()
    assert by_hash(found, images.labels)[1] == digest and images.digest == ""
    assert images.name == f"{name}-{called or split}" and images.pixels.shape == pixels.shape == found.shape
    assert found.is_contiguous() and found.dtype == torch.uint8
    assert torch.equal(images.pixels[1:3], found[1:3])
    rows = torch.tensor([3, 0, 3])
    assert torch.equal(images.pixels[rows], found[rows])


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_folder_of_pictures_of_any_depth(tmp_path, monkeypatch, form, depth):
    """One split: it has no train/ and no test/. Its name is the data set's, and a name is looked for in data/."""
    place = tmp_path / "data" / "rooms"
    for i, pixels in enumerate(made("train")[0]):
        path = place.joinpath(*(str(i % (2 + level)) for level in range(depth)), f"{i:02}.{form.lower()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels, form))
    (place / ".thumbnails").mkdir()
    monkeypatch.chdir(place)
    for name in ("rooms", str(place), "../rooms", "."):
        images = load_dataset(name, "train")
        if form == "JPEG":
            assert len(images) == 20 and images.pixels.shape == (20, 3, 32, 32) and images.name == "rooms-all"
        else:
            assert_own(images, "rooms", "train", "all")
    with pytest.raises(BadValue, match=r"rooms has one split, and test images .*; put the images into .*/train and"):
        load_dataset("rooms", "test")


@pytest.mark.parametrize("name", ["images", "arr_0"])
@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_by_its_path(tmp_path, monkeypatch, name, compressed):
    """Read whole, or mapped where it is large and not compressed."""
    pixels = made("train")[0].transpose(0, 2, 3, 1)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "rooms.npz", **{name: pixels})
    assert_own(load_dataset(str(tmp_path / "rooms.npz"), "train"), "rooms", "train", "all")
    monkeypatch.setattr(folders, "MAPPED", 0)
    mapped, map_of = [], np.memmap
    monkeypatch.setattr(np, "memmap", lambda *words, **options: mapped.append(1) or map_of(*words, **options))
    assert_own(load_dataset(str(tmp_path / "rooms.npz"), "train"), "rooms", "train", "all")
    assert bool(mapped) != compressed
    with pytest.raises(BadValue, match=r"rooms.npz has one split"):
        load_dataset(str(tmp_path / "rooms.npz"), "test")


def test_the_listing_changes_with_every_file(tmp_path):
    write_classes(tmp_path / "a")
    listings = [load_dataset(str(tmp_path / "a"), "train").pixels.listing for _ in range(2)]
    picture = next((tmp_path / "a" / "train" / "bird").iterdir())
    os.utime(picture, ns=(0, 0))
    listings.append(load_dataset(str(tmp_path / "a"), "train").pixels.listing)
    picture.rename(picture.with_stem("x"))
    listings.append(load_dataset(str(tmp_path / "a"), "train").pixels.listing)
    (tmp_path / "a" / "train" / "bird" / "x.png").unlink()
    listings.append(load_dataset(str(tmp_path / "a"), "train").pixels.listing)
    other = next((tmp_path / "a" / "train" / "cat").iterdir())
    before, content = other.stat(), bytearray(other.read_bytes())
    other.write_bytes(content[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    listings.append(load_dataset(str(tmp_path / "a"), "train").pixels.listing)
    assert listings[0] == listings[1] and len(set(listings)) == 5


def test_names_that_are_no_text(tmp_path):
    """Files may be called in any bytes; a data set is called so in rows."""
    Image.fromarray(HWC[0]).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    assert load_dataset(str(tmp_path), "train").pixels[:].shape == (1, 3, 32, 32)
    for name in (os.fsdecode(b"caf\xe9"), "a\rb", "/"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        with pytest.raises(BadValue, match="is empty or not printable"):
            load_dataset(str(folder), "train")


def test_one_place_is_meant(tmp_path):
    write_npz(tmp_path)
    with pytest.raises(
        BadValue, match=r"train\.npz exists, and --data names another place, elsewhere; leave one of them out"
    ):
        load_dataset(str(tmp_path / "train.npz"), "train", "elsewhere")


@pytest.mark.parametrize("name", ["cifar10", "synthetic"])
@pytest.mark.parametrize("layout", ["C", "Fortran", "compressed"])
def test_npz(tmp_path, name, layout):
    write_npz(tmp_path)
    if layout != "C":
        for split in TINY:
            arrays = dict(np.load(tmp_path / f"{split}.npz"))
            arrays = {key: np.asfortranarray(value) for key, value in arrays.items()}
            (np.savez if layout == "Fortran" else np.savez_compressed)(tmp_path / f"{split}.npz", **arrays)
    for split in TINY:
        images = load_dataset(name, split, tmp_path)
        if name == "cifar10":
            assert_made(images, split)
        else:
            assert_own(images, "synthetic", split)


def test_parquet_in_row_groups_and_without_labels(tmp_path):
    write_parquet(tmp_path)
    for path in tmp_path.glob("*.parquet"):
        table = pyarrow.parquet.read_table(path, partitioning=None).drop_columns(["label"])
        pyarrow.parquet.write_table(table, path, row_group_size=3)
    assert_own(load_dataset("synthetic", "train", tmp_path), "synthetic", "train")
    with pytest.raises(CorruptFile, match=r"columns img .*; accepted: .* and label"):
        load_cifar10("train", tmp_path)


def test_the_digest_is_of_pixels_labels_and_shape():
    pixels, labels = map(torch.from_numpy, made("train"))
    order, digest = by_hash(pixels, labels)
    assert sorted(order.tolist()) == list(range(20))
    hashes = [
        hashlib.sha256(x.tobytes() + int(n).to_bytes(8, "little")).digest() for x, n in zip(*made("train"), strict=True)
    ]
    assert digest == hashlib.sha256(b"[3, 32, 32]" + b"".join(sorted(hashes))).hexdigest()
    other = {digest}
    for changed in (
        by_hash(pixels ^ torch.eye(32, dtype=torch.uint8), labels),
        by_hash(pixels, labels.roll(1)),
        by_hash(pixels[:19], labels[:19]),
        by_hash(pixels[[0, *range(19)]], labels[[0, *range(19)]]),
        by_hash(pixels.reshape(20, 3, 16, 64), labels),
    ):
        other.add(changed[1])
    assert len(other) == 6


def test_grey_images_and_any_number_of_classes(tmp_path):
    grey = made("train")[0][:, :1].transpose(0, 2, 3, 1)
    np.savez(tmp_path / "train.npz", images=grey, labels=np.arange(20, dtype=np.uint8))
    images = load_dataset("my-grey-2", "train", tmp_path)
    assert images.pixels.shape == (20, 1, 32, 32)
    for i in range(20):
        (tmp_path / "b" / "train" / f"{i}").mkdir(parents=True)
        Image.fromarray(grey[i, :, :, 0]).save(tmp_path / "b" / "train" / f"{i}" / "x.png")
    stored = folders.read_split(tmp_path / "b", "train")
    order = stored.labels().argsort()
    assert torch.equal(stored[order], images.pixels[:]), "class 10 is not class 2"


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
    with pytest.raises(MissingFile, match=r"which holds nothing; expected .*cifar-10-batches-py"):
        load_cifar10("test", tmp_path / "empty")
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(MissingFile, match=r"which holds empty, holiday\.jpg; expected"):
        load_cifar10("test", tmp_path)
    with pytest.raises(MissingFile, match=r"no such file or folder as .*gone \(root\)"):
        load_cifar10("test", tmp_path / "gone")
    with pytest.raises(MissingFile, match=r"is a file but not cifar-10-python\.tar\.gz"):
        load_cifar10("test", tmp_path / "holiday.jpg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("mnist", "train"),
            "no data set 'mnist': it is none of cifar10, digits, and there is no such folder .*check the path",
        ),
        (("mnist.npz", "train"), "no data set 'mnist.npz': it is none of"),
        (("", "train", "a-folder"), "got ''"),
        (("synthetic", "valid", "a-folder"), "test, train"),
        (("cifar10", "valid"), "test, train"),
        (("digits", "valid"), "test, train"),
        (("digits", "train", "a-folder"), "'a-folder'; leave it out"),
    ],
)
def test_unknown_names(words, message):
    with pytest.raises((BadValue, MissingFile), match=message):
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


def test_truncated_archive(archive):
    archive.write_bytes(archive.read_bytes()[:-1000])
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
    with pytest.raises(CorruptFile, match="not a readable parquet file"):
        load_cifar10("test", tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    for name in ("cifar10", "synthetic"):
        with pytest.raises(CorruptFile, match=r"train-00000-of-00002.parquet is one of 2 files, .* holds 1"):
            load_dataset(name, "train", tmp_path)
    (tmp_path / "train-00000-of-00002.parquet").rename(tmp_path / "train-0.parquet")
    with pytest.raises(CorruptFile, match=r"holds 10 images of \[3, 32, 32\].*not CIFAR-10's train images"):
        load_cifar10("train", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "train-00000-of-00002 (1).parquet",
        "train-00000-of-00002-b.parquet",
        "train-00001-of-00003.parquet",
    ],
)
def test_each_shard_is_there_once(tmp_path, name):
    """A copy of one file took the place of the other, and half of the images were there twice."""
    write_parquet(tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").rename(tmp_path / name)
    with pytest.raises(CorruptFile, match="must hold each of 2 files once, numbered 0 to 1, and holds"):
        load_dataset("synthetic", "train", tmp_path)


def test_shards_named_with_a_hash_are_counted(tmp_path):
    write_parquet(tmp_path)
    for i in range(2):
        (tmp_path / f"train-0000{i}-of-00002.parquet").rename(tmp_path / f"train-0000{i}-of-00002-1a2b{i}.parquet")
    assert len(load_dataset("synthetic", "train", tmp_path)) == TINY["train"]
    (tmp_path / "train-00000-of-00002-1a2b0.parquet").unlink()
    with pytest.raises(CorruptFile, match=r"is one of 2 files, .* holds 1"):
        load_dataset("synthetic", "train", tmp_path)


def test_two_columns_of_images(tmp_path):
    write_parquet(tmp_path)
    path = tmp_path / "test-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.append_column("image", table["img"]), path)
    with pytest.raises(CorruptFile, match=r"has the columns img .*image .*accepted: img or image"):
        load_dataset("synthetic", "test", tmp_path)


def saved(form: str, **options) -> bytes:
    """A picture in another format or of another kind."""
    stream = io.BytesIO()
    mode = options.pop("mode", "RGB")
    picture = Image.fromarray(made("test")[0][3].transpose(1, 2, 0))
    (Image.new("I;16", (32, 32), 40_000) if mode == "I;16" else picture.convert(mode)).save(stream, form, **options)
    return stream.getvalue()


def animated() -> bytes:
    frames = [Image.fromarray(x.transpose(1, 2, 0)) for x in made("test")[0]]
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    return stream.getvalue()


PICTURES = {
    "text": (b"no image", "no picture or a damaged one"),
    "empty": (b"", "empty"),
    "BMP": (saved("BMP"), "a BMP file"),
    "another size": (encode(np.zeros((3, 8, 24), np.uint8)), "24x8 with 3 channels, the first picture 32x32"),
    "grey": (saved("PNG", mode="L"), "32x32 with 1 channels, the first picture 32x32 with 3"),
    "RGBA": (saved("PNG", mode="RGBA"), "PNG of 8 bits, mode RGBA"),
    "16 bits grey": (saved("PNG", mode="I;16"), "PNG of 16 bits"),
    "transparent": (saved("PNG", transparency=(0, 0, 0)), "transparent"),
    "animated": (animated(), "several frames"),
    "turned": (
        saved("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
        "EXIF says to turn",
    ),
    "truncated": (saved("PNG")[:-400], "a damaged or truncated PNG"),
    "damaged": (saved("PNG")[:900] + b"\0" + saved("PNG")[901:], "a damaged or truncated PNG"),
    "truncated JPEG": (saved("JPEG")[:-400], "a damaged or truncated JPEG"),
    "CMYK": (saved("JPEG", mode="CMYK"), "mode CMYK"),
}


@pytest.mark.parametrize("name", ["cifar10", "synthetic"])
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_another_kind(tmp_path, kind, name):
    content, message = PICTURES[kind]
    good = [encode(x) for x in made("test")[0]]
    write_shard(tmp_path / "a" / "test-0.parquet", [*good[:3], content], [0, 1, 2, 3])
    with pytest.raises(CorruptFile, match=f"row 3 of .*test-0.parquet is .*{message}.*; accepted: PNG"):
        load_dataset(name, "test", tmp_path / "a").pixels[:]
    write_classes(tmp_path / "b")
    (tmp_path / "b" / "test" / "cat" / "z.png").write_bytes(content)
    with pytest.raises(CorruptFile, match=f"z.png is .*{message}.*; accepted: PNG"):
        load_dataset(name, "test", tmp_path / "b").pixels[:]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 2, 3], {"column": "photo"}, r"columns photo \(struct.*, label \(int64\); accepted: img or image"),
        ([0, 1, 2, 3], {"label": "fine_label"}, r"fine_label \(int64\); accepted: .* label"),
        (["cat", "dog", "cat", "frog"], {}, r"labels in .*object, such as 'cat'"),
        ([0.0, 1.0, 2.0, 3.5], {}, r"labels in .*float64"),
        ([0, 1, 2, None], {}, "without a label"),
        ([0, 1, 2, -1], {}, r"outside 0\.\.\d+: \[-1\]"),
        ([], {}, "no rows"),
    ],
)
def test_parquet_with_other_columns_or_labels(tmp_path, labels, options, message):
    good = [encode(x) for x in made("test")[0]]
    write_shard(
        tmp_path / "test-0.parquet",
        good[: len(labels)],
        labels,
        **({"kind": pyarrow.int64()} if not labels else {}) | options,
    )
    with pytest.raises(CorruptFile, match=message):
        load_cifar10("test", tmp_path)
    if "column" in options or not labels:
        with pytest.raises(CorruptFile, match=message):
            load_dataset("synthetic", "test", tmp_path)
    else:
        assert_own(load_dataset("synthetic", "test", tmp_path), "synthetic", "test")


HWC = made("test")[0].transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": HWC / 255}, r"float64 \[4, 32, 32, 3\]; accepted: images \(or arr_0\) uint8"),
        ({"images": HWC.transpose(0, 3, 1, 2)}, r"uint8 \[4, 3, 32, 32\] \(channels first\?\)"),
        ({"images": HWC, "arr_0": HWC}, "holds the arrays images, .*arr_0; accepted: images"),
        ({"images": HWC[..., [0, 1, 2, 2]]}, r"\[4, 32, 32, 4\]"),
        ({"images": HWC[:0], "labels": np.arange(0)}, r"\[0, 32, 32, 3\]"),
        ({"images": np.array([1, "a", None, {}], object)}, "holds Python objects"),
        ({"labels": np.array([0, 1, 2, 3.5])}, "float64, such as .*accepted: integers"),
        ({"labels": np.array(["cat"] * 4)}, "<U3, such as .*cat"),
        ({"labels": np.array([0, 1, 2, -3])}, r"outside .*\[-3\]"),
        ({"labels": np.eye(4, dtype=int)}, r"labels in .* are \[4, 4\] for 4 images"),
    ],
)
def test_npz_with_other_arrays(tmp_path, arrays, message):
    write_npz(tmp_path, **arrays)
    with pytest.raises(CorruptFile, match=message):
        load_cifar10("test", tmp_path)
    if "images" in arrays:
        with pytest.raises(CorruptFile, match=message):
            load_dataset("synthetic", "test", tmp_path)
    else:
        assert_own(load_dataset("synthetic", "test", tmp_path), "synthetic", "test")


@pytest.mark.parametrize("content", ["cut", "npy", "other names", "attack"])
def test_npz_that_is_none(tmp_path, content):
    path, mark = tmp_path / "test.npz", tmp_path / "attacked"
    write_npz(tmp_path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif content == "npy":
        with open(path, "wb") as stream:
            np.save(stream, HWC)
    elif content == "other names":
        np.savez(path, pictures=HWC)
    else:
        path.write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises(
        CorruptFile, match=r"test.npz (holds|is not a readable npz).*accepted: images \(or arr_0\) uint8"
    ):
        load_dataset("synthetic", "test", tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("count", [-1, 3, 5])
def test_a_mapped_npz_is_as_long_as_its_header_says(tmp_path, monkeypatch, count):
    """What lies behind the images in the file are no images."""
    monkeypatch.setattr(folders, "MAPPED", 1)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (count, *HWC.shape[1:])}
    )
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("images.npy", stream.getvalue() + HWC.tobytes())
        archive.writestr("other.npy", HWC.tobytes())
    with pytest.raises(CorruptFile, match="not as long as its header says"):
        load_dataset(str(tmp_path / "own.npz"), "train")


def test_images_that_are_not_cifar10(tmp_path):
    pixels, labels = made("train")
    hwc = pixels.transpose(0, 2, 3, 1)
    for images, classes, found in (
        (hwc[:19], labels[:19], "19 images"),
        (hwc[[0] * 20], labels, "20 images of .*, 1 of them different"),
        (hwc, (labels + 1) % 4, "in 4 classes of 5 to 5"),
        (hwc, np.zeros(20, int), "in 1 classes of 20 to 20"),
        (hwc ^ (np.arange(32) == 7).astype(np.uint8)[:, None], labels, "20 of them different"),
        (hwc[:, :16], labels, r"images of \[3, 16, 32\]"),
    ):
        np.savez(tmp_path / "train.npz", images=images, labels=classes)
        with pytest.raises(CorruptFile, match=f"{found}.*not CIFAR-10's train images.*--dataset FOLDER"):
            load_cifar10("train", tmp_path)
        assert len(load_dataset("synthetic", "train", tmp_path)) == len(images)
    write_npz(tmp_path)
    (tmp_path / "test.npz").rename(tmp_path / "train.npz")
    with pytest.raises(CorruptFile, match="holds CIFAR-10's test images, which are not CIFAR-10's train"):
        load_cifar10("train", tmp_path)
    lossy = [saved("WEBP", quality=90)] * 4
    write_shard(tmp_path / "lossy" / "test-0.parquet", lossy, made("test")[1])
    with pytest.raises(CorruptFile, match=r"1 of them different.*stored with loss"):
        load_cifar10("test", tmp_path / "lossy")


def broken(root: Path, kind: str) -> None:
    """A folder of pictures that is wrong in some way."""
    write_classes(root)
    train = root / "train"
    if kind == "text":
        (train / "cat" / "notes.txt").touch()
    elif kind == "flat":
        (train / "9_cat.png").write_bytes(saved("PNG"))
    elif kind == "edm":
        (train / "dataset.json").touch()
    elif kind == "empty":
        shutil.rmtree(train)
        train.mkdir()
    elif kind == "loop":
        (train / "cat" / "loop").symlink_to(train)
    elif kind == "dangling":
        (train / "cat" / "z.png").symlink_to(root / "gone.png")
    elif kind == "twice":
        write_npz(root)
    elif kind == "loose":
        (root / "a.png").write_bytes(saved("PNG"))
    elif kind == "spelled":
        (root / "train").rename(root / "Training")
        (root / "test").rename(root / "val")
    elif kind == "a class":
        shutil.rmtree(root / "test")
        (root / "car").mkdir()


@pytest.mark.parametrize("name", ["cifar10", "synthetic"])
@pytest.mark.parametrize(
    ("kind", "message"),
    {
        "text": r"notes\.txt is not a picture \(\.png, \.webp, \.jpg, \.jpeg\)",
        "flat": r"9_cat\.png is in no class folder",
        "edm": r"dataset\.json is not a picture .*: move it away",
        "empty": "train is empty",
        "loop": r"loop leads back to .*train, in which it is",
        "dangling": "cannot read .*z.png: No such file",
        "twice": r"the train images twice, train/ and train\.npz",
        "loose": r"holds test/ beside a\.png: is it a split or a class\?",
        "spelled": r"holds Training/ beside val: is it a split or a class\?",
        "a class": r"holds train/ beside car: is it a split or a class\?",
    }.items(),
)
def test_folders_that_are_wrong(tmp_path, kind, message, name):
    broken(tmp_path, kind)
    if (name, kind) in {("synthetic", "flat"), ("cifar10", "a class"), ("cifar10", "loose")}:
        assert len(load_dataset(name, "train", tmp_path)) == TINY["train"] + (kind == "flat")
    else:
        missing = (name, kind) == ("cifar10", "spelled")
        with pytest.raises(
            MissingFile if missing else CorruptFile, match="holds Training, val" if missing else message
        ):
            load_dataset(name, "train", tmp_path)


def test_folders_that_are_links_are_read(tmp_path):
    write_classes(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train").symlink_to(tmp_path / "a" / "train")
    assert_own(load_dataset("synthetic", "train", tmp_path / "b"), "synthetic", "train")


# The statistics of pytorch-fid


MU, SIGMA = np.array([1.0, 2, 3]), np.diag([2.0, 1, 0])


def test_statistics_are_told_from_images(tmp_path):
    path = tmp_path / "rooms.npz"
    np.savez(path, mu=MU, sigma=SIGMA.astype(np.float32))
    assert holds_statistics(path) and not holds_statistics(tmp_path)
    mean, covariance = read_moments(path)
    assert mean.tolist() == MU.tolist() and covariance.tolist() == SIGMA.tolist() and covariance.dtype == np.float64
    with pytest.raises(BadValue, match=r"rooms.npz holds mu and sigma of pytorch-fid and no images.*source=generated"):
        load_dataset(str(path), "train")
    np.savez(path, mu=MU, sigma=SIGMA, arr_0=HWC)
    with pytest.raises(CorruptFile, match=r"both images and the statistics .*\(arr_0, mu, sigma\)"):
        load_dataset(str(path), "train")
    path.write_bytes(b"PK\3\4")
    with pytest.raises(CorruptFile, match=r"rooms.npz is not a readable npz file"):
        holds_statistics(path)


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (MU * np.nan, SIGMA, "mu in .* holds NaN"),
        (MU, SIGMA[:2], r"sigma float64 \[2, 3\]; accepted: floats of 32 or 64 bits, \[D\]"),
        (MU.astype(int), SIGMA, r"mu in .* is int64 \[3\]"),
        (MU, -SIGMA, "not a covariance"),
        (MU, SIGMA + np.diag([3.0, 0], 1) + np.diag([3.0, 0], -1), "no variance below 0"),
    ],
)
def test_statistics_that_are_wrong(tmp_path, mu, sigma, message):
    np.savez(tmp_path / "rooms.npz", mu=mu, sigma=sigma)
    with pytest.raises(CorruptFile, match=message):
        read_moments(tmp_path / "rooms.npz")


def test_own_folder_that_is_none(tmp_path):
    with pytest.raises(MissingFile, match=r"gone does not exist; give a folder of pictures, or one with train/ \("):
        load_dataset("synthetic", "train", tmp_path / "gone")
    (tmp_path / "edm.zip").touch()
    with pytest.raises(MissingFile, match=r"edm\.zip is a file but no \.npz"):
        load_dataset("synthetic", "train", tmp_path / "edm.zip")
    with pytest.raises(MissingFile, match=r"edm\.zip is a file but not .*train\.npz"):
        load_dataset("cifar10", "train", tmp_path / "edm.zip")
    for name in ("cifar10", "synthetic"):
        with pytest.raises(CorruptFile, match=r"cannot read .*aaa: File name too long"):
            load_dataset(name, "train", tmp_path / ("a" * 300))
        with pytest.raises(MissingFile, match="~nobody-of-this-name"):
            load_dataset(name, "train", "~nobody-of-this-name/images")
    with pytest.raises(CorruptFile, match=r"edm\.zip is not a picture"):
        load_dataset("synthetic", "train", tmp_path)
    write_npz(tmp_path / "b", images=(HWC > 127).astype(np.uint8), labels=np.arange(4))
    (tmp_path / "b" / "test.npz").unlink()
    with pytest.raises(MissingFile, match=r"no test images of synthetic in .*, which holds train\.npz; expected test/"):
        load_dataset("synthetic", "test", tmp_path / "b")
    with pytest.raises(CorruptFile, match=r"no value above 1: .*store 0\.\.255"):
        load_dataset("synthetic", "train", tmp_path / "b").pixels[:]


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
    assert train.digest != test.digest == by_hash(test.pixels, test.labels)[1]
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
def test_real_cifar10(cifar10_root, monkeypatch, tmp_path):
    monkeypatch.setattr(cifar10, "DIGESTS", REAL[0])
    monkeypatch.setattr(cifar10, "ORDER", REAL[1])
    train, test = load_cifar10("train", cifar10_root), load_cifar10("test", cifar10_root)
    # The mean and deviation that many have published of the official files, to the last digits: no pixel differs.
    values, counts = np.arange(256), torch.bincount(train.pixels.flatten(), minlength=256).numpy()
    mean = int(values @ counts) / train.pixels.numel()
    assert mean == 120.70756512369792
    deviation = (counts @ (values - mean) ** 2 / train.pixels.numel()) ** 0.5
    assert deviation == pytest.approx(64.1500758911213, rel=1e-14)
    assert train.labels.bincount().tolist() == [5000] * 10 and test.labels.bincount().tolist() == [1000] * 10
    assert len({row.tobytes() for row in train.pixels.numpy()}) == 50_000
    # The order of the shipped numbers, from rows in another order.
    assert train.labels[:12].tolist() == [1, 1, 6, 0, 4, 7, 2, 8, 0, 1, 2, 7]
    assert test.labels[:12].tolist() == [9, 6, 5, 8, 6, 4, 3, 6, 3, 6, 6, 8]
    rows = torch.randperm(10_000)
    np.savez(tmp_path / "test.npz", images=test.pixels[rows].permute(0, 2, 3, 1), labels=test.labels[rows])
    again = load_cifar10("test", tmp_path)
    assert torch.equal(again.pixels, test.pixels) and torch.equal(again.labels, test.labels)


def test_the_stored_order_is_a_permutation():
    for split, count in (("train", 50_000), ("test", 10_000)):
        assert sorted(np.load(REAL[1])[split].tolist()) == list(range(count))
