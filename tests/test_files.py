"""Files: whole or not at all, checked by hash, and errors that say which file and what to do."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tt_lib import files
from tt_lib.errors import AlreadyDone, BadValue, CorruptFile, MissingFile
from tt_lib.files import (
    atomic_path,
    check_hash,
    check_suffix,
    check_writable,
    data_folder,
    file_hash,
    file_name,
    hold,
    read_json,
    refuse_overwrite,
    spell,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Written whole or not at all


def test_atomic_path_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic_path(path) as temporary:
        # In the same folder: a rename over another file system would be a copy, which can end half way.
        assert temporary.parent == path.parent and not path.exists()
        temporary.write_text("old")
    assert path.read_text() == "old" and names(path.parent) == ["file.txt"]
    with atomic_path(str(path)) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(path.parent) == ["file.txt"]


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("hal")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_killed_write_leaves_the_old_file(tmp_path):
    """No code runs after SIGKILL: the old file must be whole, and the next write must work."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    program = (
        "import os, signal, sys\nfrom tt_lib.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('hal')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], cwd=files.PACKAGE_ROOT)
    assert ended.returncode == -signal.SIGKILL and path.read_text() == "old"
    left = set(names(tmp_path)) - {"file.txt"}
    # What is left is hidden and named so that .gitignore covers it.
    assert all(name.startswith(".file.txt.") and name.endswith(".tmp") for name in left)
    write_text(path, "new")
    assert path.read_text() == "new" and set(names(tmp_path)) == left | {"file.txt"}


def test_written_files_have_the_usual_mode(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "ours", "x")
        (tmp_path / "plain").write_text("x")
        assert os.umask(0o027) == 0o027  # the umask is put back
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("where", ["below a file", "/proc/no-such-folder/file.txt"])
def test_unwritable_output_is_named(tmp_path, where):
    (tmp_path / "plain").write_text("a file, not a folder")
    path = tmp_path / "plain" / "out.txt" if where == "below a file" else Path(where)
    with pytest.raises(BadValue, match="choose another output folder") as caught:
        write_text(path, "x")
    assert str(path) in str(caught.value)
    assert names(tmp_path) == ["plain"] and (tmp_path / "plain").read_text() == "a file, not a folder"


# JSON


def test_json_round_trip(tmp_path):
    value = {"name": "Fréchet", "times": [1.0, 0.1], "none": None}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == read_json(str(tmp_path / "a.json")) == value
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Fréchet" in text and text.endswith("}\n") and len(text.splitlines()) > 4


def test_json_that_no_one_else_reads_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", [math.nan])
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": 1', b"\xff\xfe\x00", b"[NaN]", b"[-Infinity]", b"[1e999]", b"9" * 400, b"9" * 5000, b"[" * 100_000],
    ids=lambda content: content[:12],
)
def test_damaged_json(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"a\.json is not JSON.*restore it"):
        read_json(tmp_path / "a.json")


def test_missing_json(tmp_path):
    with pytest.raises(MissingFile, match=r"a\.json; make it"):
        read_json(tmp_path / "a.json", "make it")
    with pytest.raises(FileNotFoundError):  # a folder is no file
        read_json(tmp_path)


@pytest.mark.parametrize("value", [0.95, 1.0, 2e-05, 1e-3, 0.1 + 0.2, 0.9500001, 1 / 3, 1e300, 5, 100_000_000])
def test_a_number_in_a_name_reads_back_as_just_this_number(value):
    assert float(spell(value)) == value and len(spell(value)) <= len(repr(value))


# Hashes


def test_check_hash(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(MissingFile, match=f"{path}.*download it again"):
        check_hash(path, "0", remedy="download it again")
    path.write_bytes(b"content")
    right = hashlib.sha256(b"content").hexdigest()
    assert file_hash(path) == right
    check_hash(path, right)
    path.write_bytes(b"contenT")
    with pytest.raises(CorruptFile, match="download it again") as caught:
        check_hash(path, right, remedy="download it again")
    for part in (str(path), "sha256", right, file_hash(path)):
        assert part in str(caught.value)


# What is there already, and where data lies


def test_refuse_overwrite(tmp_path):
    path = tmp_path / "out.csv"
    refuse_overwrite(path, force=False)
    path.write_text("x")
    refuse_overwrite(path, force=True)
    with pytest.raises(AlreadyDone, match=r"out\.csv exists; give --force"):
        refuse_overwrite(path, force=False)
    assert path.read_text() == "x"


def test_places_are_looked_at_before_the_work(tmp_path):
    check_suffix("a.png", ".png")
    with pytest.raises(BadValue, match=r"ends in \.png, got a\.pdf"):
        check_suffix("a.pdf", ".png")
    (tmp_path / "plain").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "out.csv")
    for good in ("new/far/out.csv", "plain", "link", "n" * 240):
        check_writable(tmp_path / good)
        refuse_overwrite(tmp_path / good, force=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for bad, reason in (
        (tmp_path, "it is a folder; give the path of a file"),
        (tmp_path / "plain" / "out.csv", "Not a directory; choose another output folder"),
        (tmp_path / "plain" / "new" / "out.csv", "Not a directory"),
        (tmp_path / "loop" / "out.csv", "loop"),
        (tmp_path / "pipe", "not a plain file"),
        # As an administrator one may write there, and would put a file in its place.
        (Path("/dev/full"), "not a plain file"),
        (Path("/proc/out.csv"), "No such file"),
        (tmp_path / ("n" * 250), "File name too long"),
        (tmp_path / "new" / ("n" * 250) / "out.csv", "File name too long"),
    ):
        for force in (False, True):
            with pytest.raises(BadValue, match=reason) as caught:
                refuse_overwrite(bad, force)
            assert str(bad) in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path) == ["link", "loop", "pipe", "plain"], "nothing is left of it"


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_read_only_is_refused(tmp_path, what):
    """As a user who is no administrator: for that one no permission counts."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out.csv").write_text("old")
    for each in (*tmp_path.parents, tmp_path):
        if each.stat().st_uid == os.getuid():
            each.chmod(each.stat().st_mode | 0o011)
    (folder / "out.csv").chmod(0o444 if what == "file" else 0o666)
    folder.chmod(0o777 if what == "file" else 0o555)
    program = (
        "import os, sys\nfrom tt_lib.files import check_writable\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try:\n    check_writable(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(folder / "out.csv")], cwd=files.PACKAGE_ROOT, capture_output=True, text=True
    )
    reason = "it is read-only" if what == "file" else "Permission denied"
    assert reason in ended.stdout, ended.stderr
    folder.chmod(0o755)


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "file.txt")
    for text in ("old", "new"):
        write_text(tmp_path / "link.txt", text)
        assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "there" / "file.txt").read_text() == text


def test_names_of_files_on_any_system():
    assert file_name("cifar10-ddpm-w64") == "cifar10-ddpm-w64" and file_name("google/ddpm") == "google--ddpm"
    assert file_name("unipc,order=2-uniform-5-learned-gain.json") == "unipc,order=2-uniform-5-learned-gain.json"
    assert file_name("C:\\a?b") == "C----a--b" and file_name("..") == "--" and file_name("a. ") == "a"


FULL = """
import resource, signal, sys
import numpy, torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file
from tt_lib.files import TTError, atomic_path

tensors, path = {"x": torch.zeros(100_000)}, sys.argv[1]
writers = {
    "text": lambda file: file.write_text("x" * 100_000),
    "torch": lambda file: torch.save(tensors, file),
    "safetensors": lambda file: save_file(tensors, file),
    "numpy": lambda file: numpy.save(open(file, "wb"), tensors["x"].numpy()),
    "picture": lambda file: Image.effect_noise((500, 500), 80).save(file, "PNG"),
    "figure": lambda file: Figure(figsize=(20, 20)).savefig(file, format="png"),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for name, write in writers.items():
    try:
        with atomic_path(path) as file:
            write(file)
    except TTError as error:
        print(name, error)
    else:
        print(name, "was written")
"""


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path):
    """A limit to the size of files stands for the disk: Python, C++ and Rust meet it as they meet a full one."""
    path = tmp_path / "file"
    path.write_text("old")
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], cwd=files.PACKAGE_ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 6 and all(f"cannot write {path}: " in line and "free some space" in line for line in lines), (
        lines
    )
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TT_DATA", str(tmp_path / "elsewhere"))
    assert data_folder() == tmp_path / "elsewhere"  # it need not be there yet
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("TT_DATA")
        else:
            monkeypatch.setenv("TT_DATA", unset)
        assert data_folder() == Path(__file__).resolve().parent.parent / "data"
    # Installed without the repository, it is a folder of the reader's own.
    monkeypatch.setattr(files, "PACKAGE_ROOT", tmp_path)
    assert data_folder() == Path("data")
    (tmp_path / "data").mkdir()
    assert data_folder() == tmp_path / "data"


# Locks


def test_a_lock_is_held_by_one_and_let_go(tmp_path):
    path = tmp_path / "work" / "cell.lock"
    with hold(path) as first, hold(path) as second:
        assert first and not second
    with pytest.raises(ZeroDivisionError), hold(path, wait=True):
        _ = 1 / 0
    with hold(path) as again:
        assert again
    program = f"import os, pathlib\nfrom tt_lib.files import hold\nhold(pathlib.Path({str(path)!r})).__enter__()\n"
    ended = subprocess.run([sys.executable, "-c", program + "os.kill(os.getpid(), 9)"], cwd=files.PACKAGE_ROOT)
    assert ended.returncode == -signal.SIGKILL
    with hold(path) as again:
        assert again, "who is killed lets go"


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(BadValue, match=r"cannot write to .*plain: .*--work"), hold(tmp_path / "plain" / "cell.lock"):
        pass
