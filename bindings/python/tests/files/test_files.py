"""Files and the system: what is replaced, with which rights; after an error everything is as it was."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  safetensors asks numpy for bfloat16 by name
import pytest
from safetensors.numpy import load_file

import libmoe
from arrays import normal
from child import ENVIRONMENT

INDEX = "m.safetensors.index.json"
SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "n_experts": 4, "top_k": 2}
LAYER = libmoe.Layer(**SIZES, seed=3)


def of_set(path: Path) -> None:
    libmoe.save(path, {"a": normal(3), "b": normal(4)}, max_shard_size=12)


# Everything that writes a file, by the name it is given.
SAVES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "save": ("file", lambda path: libmoe.save(path, {"a": normal(3)})),
    "save_sharded": (INDEX, of_set),
    "layer": ("file", LAYER.save),
    "layer_sharded": (INDEX, lambda path: LAYER.save(path, max_shard_size=300)),
    "training": ("file", lambda path: libmoe.save_training(path, step=3, layers=[LAYER])),
}


@pytest.fixture(params=SAVES)
def saving(request: pytest.FixtureRequest) -> tuple[str, Callable[[Path], None]]:
    return SAVES[request.param]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def run(code: str, *arguments: object) -> str:
    """Run Python in a process of its own; as somebody who is not root, after `leave_root()`."""
    begin = """
import os, sys, resource, numpy, libmoe
from pathlib import Path

def leave_root():
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

"""
    command = [sys.executable, "-c", begin + code, *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- what is replaced


@pytest.mark.parametrize("wanted", [0o600, 0o640, 0o444, 0o777])
def test_a_file_keeps_its_mode(
    wanted: int, saving: tuple[str, Callable[[Path], None]], tmp_path: Path
) -> None:
    name, save = saving
    (tmp_path / name).write_bytes(b"old")
    (tmp_path / name).chmod(wanted)
    save(tmp_path / name)
    assert (tmp_path / name).read_bytes() != b"old"
    # Shards are new files, and hold what the index speaks of.
    assert {mode(path) for path in tmp_path.iterdir()} == {wanted}


def test_a_new_file_has_the_mode_of_new_files(
    saving: tuple[str, Callable[[Path], None]], tmp_path: Path
) -> None:
    name, save = saving
    for mask in (0o022, 0o077, 0o002):
        folder = tmp_path / str(mask)
        folder.mkdir()
        before = os.umask(mask)
        try:
            save(folder / name)
        finally:
            os.umask(before)
        assert {mode(path) for path in folder.iterdir()} == {0o666 & ~mask}


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(saving: tuple[str, Callable[[Path], None]], tmp_path: Path) -> None:
    name, save = saving
    (tmp_path / name).write_bytes(b"old")
    os.chown(tmp_path / name, 1234, 4321)
    (tmp_path / name).chmod(0o4750)
    save(tmp_path / name)
    for path in tmp_path.iterdir():
        assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (1234, 4321, 0o4750)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file of another group")
def test_rights_of_a_group_are_not_for_another(tmp_path: Path) -> None:
    """Who may not give the file to its group does not open it to his own."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 65534, 4321)
    path.chmod(0o664)
    tmp_path.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/tmp") and str(folder).startswith("/tmp"):
            folder.chmod(0o777)
    run("numpy.random; leave_root(); libmoe.save(sys.argv[1], {'a': numpy.zeros(1, numpy.float32)})", path)
    assert path.stat().st_gid == 65534 and mode(path) == 0o644


def test_behind_a_link_the_file_is_replaced(
    saving: tuple[str, Callable[[Path], None]], tmp_path: Path
) -> None:
    name, save = saving
    folder, links = tmp_path / "folder", tmp_path / "links"
    folder.mkdir()
    links.mkdir()
    (folder / "target").write_bytes(b"old")
    (folder / "target").chmod(0o600)
    (links / "next").symlink_to("../folder/target")  # relative to the link
    (links / name).symlink_to(links / "next")
    for _ in range(2):
        save(links / name)
        assert (links / name).is_symlink() and (links / "next").is_symlink()
        assert not (folder / "target").is_symlink() and mode(folder / "target") == 0o600
        assert len(libmoe.Checkpoint(links / name)) > 0
        assert [path.name for path in folder.iterdir()] == ["target"]
    (folder / "target").unlink()
    save(links / name)  # a link to what is not there: that is made
    assert (links / name).is_symlink() and (folder / "target").is_file()
    (links / "next").unlink()
    (links / "next").symlink_to(name)
    before = {path.name for path in links.iterdir()}
    with pytest.raises(libmoe.FileError, match="[Tt]oo many levels"):
        save(links / name)
    assert {path.name for path in links.iterdir()} == before


def test_other_names_keep_the_old_file(saving: tuple[str, Callable[[Path], None]], tmp_path: Path) -> None:
    name, save = saving
    (tmp_path / "other").write_bytes(b"old")
    os.link(tmp_path / "other", tmp_path / name)
    save(tmp_path / name)
    assert (tmp_path / "other").read_bytes() == b"old" and (tmp_path / name).read_bytes() != b"old"


def test_what_is_no_file_is_never_replaced(
    saving: tuple[str, Callable[[Path], None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, save = saving
    places = [tmp_path / "pipe" / name, tmp_path / "socket" / name, tmp_path / "folder" / name]
    for place in places:
        place.parent.mkdir()
    os.mkfifo(places[0])
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(places[1].parent)  # the names of sockets are short
        server.bind(name)
    places[2].mkdir()
    for kind in ("full", "null"):
        link = tmp_path / kind / name
        link.parent.mkdir()
        link.symlink_to(f"/dev/{kind}")
        places.append(link)
    if os.getuid() == 0:
        node = tmp_path / "node" / name
        node.parent.mkdir()
        try:
            os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        except OSError:
            node.parent.rmdir()  # a container without devices
        else:
            places.append(node)
    for place in places:
        before = (os.lstat(place).st_ino, os.stat(place).st_mode)
        with pytest.raises(libmoe.FileError, match=r"a device, a pipe or a socket|Is a directory"):
            save(place)
        assert (os.lstat(place).st_ino, os.stat(place).st_mode) == before
        assert [path.name for path in place.parent.iterdir()] == [name]
        for reads in (libmoe.Checkpoint, LAYER.load, lambda path: libmoe.MappedFile(path, 100)):
            with pytest.raises(libmoe.FileError, match=r"a device, a pipe or a socket|Is a directory"):
                reads(place)


def test_names_as_long_as_the_system_has_them(tmp_path: Path) -> None:
    for name in ("n" * 255, "ä" * 127, "n" + "\U0001f600" * 63, "n" * 235):
        for _ in range(2):
            libmoe.save(tmp_path / name, {"a": normal(3)})
        assert (libmoe.Checkpoint(tmp_path / name)["a"] == normal(3)).all()
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    with pytest.raises(libmoe.FileError, match="too long"):
        libmoe.save(tmp_path / ("n" * 256), {"a": normal(3)})
    index = tmp_path / ("n" * 228 + ".safetensors.index.json")  # whose shards' names have 255 bytes
    of_set(index)
    assert len(libmoe.Checkpoint(index)) == 2


# ---- errors


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_may_not_grow(
    there: bool, saving: tuple[str, Callable[[Path], None]], tmp_path: Path
) -> None:
    """RLIMIT_FSIZE stands for a full disk."""
    name, save = saving
    if there:
        save(tmp_path / name)
    before = contents(tmp_path)
    code = """
sys.path.insert(0, sys.argv[3])
import signal, test_files
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which would end the process
for limit in (0, 10, 200, 500):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        test_files.SAVES[sys.argv[2]][1](Path(sys.argv[1]))
        print("saved", limit)
        break
    except libmoe.FileError as error:
        assert "File too large" in str(error), error
print("done")
"""
    kind = next(key for key, value in SAVES.items() if value[1] is save)
    found = run(code, tmp_path / name, kind, Path(__file__).parent)
    assert found.endswith("done\n") and "saved 0" not in found and "saved 10" not in found
    if "saved" not in found:
        assert contents(tmp_path) == before
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("there", [False, True])
def test_no_descriptors_are_left(
    there: bool, saving: tuple[str, Callable[[Path], None]], tmp_path: Path
) -> None:
    """With every number of descriptors it is saved, or all is as it was."""
    name, save = saving
    if there:
        save(tmp_path / name)
    before = contents(tmp_path)
    code = """
sys.path.insert(0, sys.argv[3])
import test_files
path = Path(sys.argv[1])
before = test_files.contents(path.parent)
test_files.normal(1)  # what is imported late
free = os.open("/", os.O_RDONLY)
refused = 0
most = resource.getrlimit(resource.RLIMIT_NOFILE)
for more in range(12):
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1 + more, most[1]))
    try:
        test_files.SAVES[sys.argv[2]][1](path)
        saved = True
    except libmoe.FileError as error:
        assert "Too many open files; close some" in str(error), error
        saved = False
        refused += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
    now = test_files.contents(path.parent)
    if saved:
        break
    assert now == before, (more, now.keys())
print(refused, saved)
"""
    kind = next(key for key, value in SAVES.items() if value[1] is save)
    refused, saved = run(code, tmp_path / name, kind, Path(__file__).parent).split()
    assert int(refused) >= 2 and saved == "True"
    assert before.keys() <= contents(tmp_path).keys() or "sharded" in kind
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("rights", [0o333, 0o555, 0o000, 0o111])
def test_folders_of_few_rights(
    rights: int, saving: tuple[str, Callable[[Path], None]], tmp_path: Path
) -> None:
    """It is saved and no error, or an error and everything as it was."""
    name, save = saving
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(b"old")
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
        os.chown(folder / name, 65534, 65534)
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/tmp") and str(parent).startswith("/tmp"):
            parent.chmod(0o755)
    folder.chmod(rights)
    code = """
sys.path.insert(0, sys.argv[3])
import test_files
test_files.normal(1)  # what is imported late, from where nobody may read
leave_root()
try:
    test_files.SAVES[sys.argv[2]][1](Path(sys.argv[1]))
    print("saved")
except libmoe.FileError:
    print("refused")
"""
    kind = next(key for key, value in SAVES.items() if value[1] is save)
    found = run(code, folder / name, kind, Path(__file__).parent).strip()
    folder.chmod(0o755)
    assert found == ("saved" if rights == 0o333 else "refused")
    if found == "refused":
        assert contents(folder) == {name: b"old"}
    else:
        assert len(libmoe.Checkpoint(folder / name)) > 0 and not list(folder.glob("*.tmp"))


def test_a_failed_set_leaves_the_old_one_alone(tmp_path: Path) -> None:
    """The second shard is larger than files may be: the first one, which was whole, goes again."""
    path = tmp_path / INDEX
    of_set(path)
    before = contents(tmp_path)
    code = """
tensors = {"a": numpy.zeros(3, numpy.float32), "b": numpy.zeros(4000, numpy.float32)}
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
try:
    libmoe.save(sys.argv[1], tensors, max_shard_size=12)
except libmoe.FileError as error:
    print(error)
"""
    assert "00002-of-00002" in run(code, path)
    assert contents(tmp_path) == before


# ---- files as memory


def test_a_mapping_that_finds_no_room_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.touch(mode=0o600)
    before = path.stat()
    for size in (1 << 50, 1 << 62):
        with pytest.raises((libmoe.FileError, libmoe.OutOfMemoryError)):
            libmoe.MappedFile(path, size)
        with pytest.raises((libmoe.FileError, libmoe.OutOfMemoryError)):
            libmoe.MappedFile(tmp_path / "new", size)
        now = path.stat()
        assert (now.st_size, now.st_blocks, now.st_ino) == (0, 0, before.st_ino)
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
for name in ("mapped", "new"):
    try:
        libmoe.MappedFile(Path(sys.argv[1]) / name, 8192)
    except libmoe.FileError as error:
        print(error)
"""
    assert run(code, tmp_path).count("File too large") == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["mapped"] and path.stat().st_size == 0
    with libmoe.MappedFile(path, 8192) as file:
        assert file.data.shape == (8192,)


def test_a_mapping_has_all_its_blocks(tmp_path: Path) -> None:
    """Also of a file with holes, which a full disk would make faults of."""
    size = 1 << 20
    for name in ("sparse", "empty", "none"):
        path = tmp_path / name
        if name != "none":
            path.touch()
        if name == "sparse":
            with path.open("r+b") as file:
                file.seek(size // 2)
                file.write(b"in the middle")
                file.truncate(size)
            assert path.stat().st_blocks * 512 < size // 2
        with libmoe.MappedFile(path, size) as mapped:
            assert path.stat().st_blocks * 512 >= size
            data = bytes(mapped.data)
        assert data.strip(b"\0") == (b"in the middle" if name == "sparse" else b"")
        assert path.read_bytes() == data


def test_a_sparse_file_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    try:
        os.truncate(path, 1 << 43)
    except OSError:
        os.truncate(path, 1 << 42)
    size = path.stat().st_size
    disk = os.statvfs(path)
    assert disk.f_bfree * disk.f_frsize < size, "this disk has room for it"
    before = path.stat().st_blocks
    with pytest.raises(libmoe.FileError, match="No space left"):
        libmoe.MappedFile(path, size)
    assert (path.stat().st_size, path.stat().st_blocks) == (size, before)


def test_a_mapping_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with libmoe.MappedFile(tmp_path / "link", 100) as file:
        file.data[3] = 7
        file.flush()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes()[3] == 7
    os.truncate(tmp_path / "target", 100)
    file = libmoe.MappedFile(tmp_path / "link", 100)
    os.truncate(tmp_path / "target", 50)
    with pytest.raises(libmoe.FileError, match="cut short"):
        file.flush()


# ---- saved again


def test_the_file_of_a_checkpoint_may_be_saved_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    libmoe.save(path, {"a": normal(3), "b": libmoe.to_bfloat16(normal(4))})
    for _ in range(2):
        libmoe.save(path, libmoe.Checkpoint(path))
    assert (load_file(path)["a"] == normal(3)).all()
