"""GGUF files as checkpoints: their blocks' numbers, and that nothing in them is believed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from numpy.typing import NDArray

import libmoe

TYPES = [Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_NL, Q.IQ4_XS]
TYPES += [Q.MXFP4, Q.NVFP4]


def write(path: Path, tensors: dict[str, tuple[NDArray[Any], Q]], **keys: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in keys.items():
        writer.add_uint32(name.replace("__", "."), value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def any_blocks(kind: Q, rows: int, blocks: int) -> NDArray[np.uint8]:
    """Random bytes, the float16 among them finite."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    drawn = np.random.default_rng(int(kind)).integers(0, 256, (rows, blocks * size), np.uint8)
    whole = drawn.reshape(-1, size)
    for place in {Q.Q2_K: (81, 83), Q.Q3_K: (109,), Q.Q6_K: (209,), Q.MXFP4: (), Q.NVFP4: ()}.get(
        kind, (1, 3)
    ):
        if place == 1 or kind in (Q.Q4_1, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q2_K, Q.Q3_K, Q.Q6_K):
            whole[:, place] &= 0xBF  # an exponent below the largest
    if kind == Q.MXFP4:
        whole[:, 0] %= 252  # six times the largest scales is no float32
    return drawn


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_are_those_of_the_package(kind: Q, tmp_path: Path) -> None:
    data = any_blocks(kind, 37, 5)
    path = write(tmp_path / "a.gguf", {"a": (data, kind)})
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(data, kind)
    with libmoe.Checkpoint(path) as checkpoint:
        found = checkpoint["a"]
        assert checkpoint.dtype("a") == kind.name.lower()
        assert checkpoint.raw("a").tobytes() == data.tobytes()
    assert np.isfinite(wanted).all()
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.astype(np.float32).tobytes()


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.MXFP4, Q.BF16, Q.F16, Q.F32])
def test_what_the_package_quantises_is_read(kind: Q, tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(0, 1, (4, 6, 64)).astype(np.float32)
    data = gguf.quants.quantize(values, kind)
    path = write(tmp_path / "a.gguf", {"a": (data, kind), "b.c": (values[0, 0], Q.F32)})
    with libmoe.Checkpoint(path) as checkpoint:
        assert list(checkpoint) == ["a", "b.c"]
        assert checkpoint["a"].shape == (4, 6, 64)
        assert checkpoint["a"].astype(np.float32).tobytes() == gguf.quants.dequantize(data, kind).tobytes()
        np.testing.assert_array_equal(checkpoint["b.c"], values[0, 0])


def test_blocks_are_not_written_as_safetensors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", {"a": (any_blocks(Q.Q8_0, 2, 2), Q.Q8_0)})
    with libmoe.Checkpoint(path) as checkpoint, pytest.raises(libmoe.InvalidArgumentError, match="Q8_0"):
        libmoe.save(tmp_path / "b.safetensors", checkpoint)


# ---- nothing is believed


def header(
    tensors: list[bytes],
    keys: Sequence[bytes] = (),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    n = counts or (len(tensors), len(keys))
    return b"GGUF" + struct.pack("<IQQ", version, *n) + b"".join(keys) + b"".join(tensors)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    packed = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return text(name) + packed


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


F32 = info(b"a", (2, 2), 0, 0)
HUGE = 1 << 62


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (header([info(b"a", (), Q.Q4_0, 0)]), "rows of 1 numbers are not whole blocks of 32"),
        (header([F32], version=1), "version 1"),
        (header([F32], version=4), "version is neither"),
        (header([F32], version=3 << 24), "big-endian"),
        (header([], counts=(1 << 63, 0)), "63 bits"),
        (header([], counts=(HUGE, 0)), "a name is empty"),
        (header([], counts=(0, HUGE)), "65536 keys"),
        (header([], counts=(0, 3)), "a name is empty"),
        (header([]), "without tensors"),
        (header([struct.pack("<Q", HUGE)], counts=(1, 0)), "cut short"),
        (header([info(b"", (2,), 0, 0)]), "a name is empty"),
        (header([info(b"x" * 256, (2,), 0, 0)]), "too long"),
        (header([info(b"a\0b", (2,), 0, 0)]), "other characters"),
        (header([info(b"a", (1, 1, 1, 1, 1), 0, 0)]), "4 dimensions"),
        (header([info(b"a", (HUGE, 4), 0, 0)]), "63 bits"),
        (header([info(b"a", (1 << 63, 1), 0, 0)]), "63 bits"),
        (header([info(b"a", (256, HUGE), 12, 0)]), "63 bits"),
        (header([info(b"a", (1 << 20, 1 << 20), 0, 0)]), "cut short"),
        (header([info(b"a", (33,), 8, 0)]), "not whole blocks of 32"),
        (header([info(b"a", (32,), 12, 0)]), "not whole blocks of 256"),
        (header([info(b"a", (2,), 4, 0)]), "type, number 4"),
        (header([info(b"a", (256,), 16, 0)]), "type, number 16"),
        (header([info(b"a", (2,), 0, 7)]), "multiple of the alignment"),
        (header([info(b"a", (2,), 0, HUGE)]), "cut short"),
        (header([info(b"a", (2,), 0, (1 << 63) - 32)]), "multiple of the alignment"),
        (header([F32, F32]), "overlaps|this name"),
        (header([F32, info(b"b", (2,), 0, 0)]), "overlaps"),
        (header([F32], [key(b"k", 13, b"")]), "unknown type"),
        (header([F32], [key(b"k", 8, struct.pack("<Q", HUGE))]), "cut short"),
        (header([F32], [key(b"k", 9, struct.pack("<IQ", 4, HUGE))]), "longer than the file|cut short"),
        (header([F32], [key(b"k", 9, struct.pack("<IQ", 8, HUGE))]), "cut short"),
        (header([F32], [key(b"k", 9, struct.pack("<IQ", 9, 1) * 9)]), "nested too deeply"),
        (header([F32], [key(b"k", 0, b"1")] * 2), "two keys"),
        (header([F32], [key(b"general.alignment", 4, struct.pack("<I", 0))]), "power of two"),
        (header([F32], [key(b"general.alignment", 4, struct.pack("<I", 33))]), "power of two"),
        (header([F32], [key(b"general.alignment", 8, text(b"32"))]), "power of two"),
        (header([F32], [key(b"split.count", 2, b"\2\0"), key(b"split.no", 2, b"\5\0")]), "split"),
    ],
)
def test_what_is_wrong_is_said(raw: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(raw + bytes(-len(raw) % 32 + 64))
    with libmoe.Context(1) as context:
        before = context.memory()[0]
        for call in (libmoe.Checkpoint, libmoe.Model.from_pretrained, libmoe.describe_pretrained):
            with pytest.raises(libmoe.InvalidArgumentError, match=says):
                call(path, context=context)
            assert context.memory()[0] == before


def test_files_that_are_cut_or_spoilt_are_refused_or_read(tmp_path: Path) -> None:
    """None ends the process, and what is cut within its header or its tensors is always refused."""
    path = tmp_path / "a.gguf"
    write(path, {"a": (any_blocks(Q.Q4_K, 2, 1), Q.Q4_K), "b": (np.ones(4, np.float32), Q.F32)}, llama__x=3)
    whole = path.read_bytes()
    with libmoe.Context(1) as context:
        for length in range(0, len(whole) - 17, 3):  # the last tensor has 16 bytes, then come 16 of padding
            path.write_bytes(whole[:length])
            with pytest.raises(libmoe.MoeError):
                libmoe.Checkpoint(path, context=context)
        rng = np.random.default_rng(1)
        for _ in range(500):
            spoilt = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 220), rng.integers(1, 5)):
                spoilt[place] = rng.integers(0, 256)
            path.write_bytes(bytes(spoilt))
            try:
                with libmoe.Checkpoint(path, context=context) as checkpoint:
                    for name in checkpoint:
                        checkpoint.raw(name)
            except libmoe.InvalidArgumentError:
                pass
