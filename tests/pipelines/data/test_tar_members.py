"""Headers of tars: held against the standard library's reader; hostile ones never lead outside."""

import gzip
import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.sources.source import Tally
from pipelines.data.sources.tar_members import BLOCK, Member, scan

from .tar_made import tar_bytes


def read(data: bytes, folder: Path) -> tuple[list[Member], dict[str, int], list[tuple[str, str]]]:
    """(members, counts of what is left out, problems)."""
    path = folder / "x.tar"
    path.write_bytes(data)
    tally, problems = Tally(), []
    members = list(scan(path, "x.tar", tally, problems))
    return members, {e.reason: e.count for e in tally.told()}, problems


def contents(data: bytes, members: list[Member]) -> list[tuple[str, bytes]]:
    return [(m.path, data[m.offset : m.offset + m.size]) for m in members]


def entry(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields) -> bytes:
    """One member by itself, with any field of its header set."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % BLOCK)


SIZES = (0, 1, 511, 512, 513, 2000)
END = bytes(2 * BLOCK)
NAMES = [
    "a.jpg",
    "n01440764/n01440764_10026.JPEG",
    "long/" + 30 * "folder/" + "name.jpg",  # over 100 bytes: GNU's or pax's long name
    "x" * 99 + "/" + "y" * 90,  # fits ustar's prefix only
    "äöü/猫.jpg",  # pax writes it as a record of its own, ustar as bytes
    "a name\nof two lines.jpg",
]


@pytest.mark.parametrize(
    "format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_all_forms_of_names_and_sizes_are_read_as_the_standard_library_does(format, tmp_path):
    names = [name for name in NAMES if format != tarfile.USTAR_FORMAT or len(name) < 200]
    files = [(name, os.urandom(size)) for size, name in zip(SIZES, names, strict=False)]
    headers = {"comment": "a global one"} if format == tarfile.PAX_FORMAT else {}
    data = tar_bytes(files, format, **headers)
    members, left_out, problems = read(data, tmp_path)
    assert contents(data, members) == files
    assert not left_out and not problems


def test_old_tars_without_magic_and_with_blanks_in_numbers(tmp_path):
    header = bytearray(entry("v7.jpg", tarfile.AREGTYPE, b"abc"))
    header[257:265] = bytes(8)
    header[124:136] = b"         3 \0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:BLOCK])
    data = bytes(header) + END
    assert contents(data, read(data, tmp_path)[0]) == [("v7.jpg", b"abc")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/x.jpg", "with a name that leads out of the archive"),
        ("../x.jpg", "with a name that leads out of the archive"),
        ("a/../../x.jpg", "with a name that leads out of the archive"),
    ],
)
def test_names_that_lead_out_are_left_out(name, reason, tmp_path):
    data = entry(name, data=b"evil") + entry("good.jpg", data=b"good") + END
    members, left_out, problems = read(data, tmp_path)
    assert contents(data, members) == [("good.jpg", b"good")]
    assert left_out == {reason: 1} and not problems


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "links"),
        (tarfile.LNKTYPE, "links"),
        (tarfile.CHRTYPE, "devices"),
        (tarfile.FIFOTYPE, "pipes"),
        (b"Q", "of a type that is no file"),
    ],
)
def test_what_is_no_file_is_left_out_and_counted(kind, reason, tmp_path):
    data = entry("odd.jpg", kind, linkname="/etc/passwd") + entry("good.jpg", data=b"g") + END
    members, left_out, problems = read(data, tmp_path)
    assert [m.path for m in members] == ["good.jpg"]
    assert left_out == {reason: 1} and not problems


def test_sparse_files_of_both_kinds_are_left_out(tmp_path):
    old = bytearray(entry("old.jpg", b"S", b"data"))
    old[482] = 1  # a block of more places follows the header
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old[:BLOCK])
    old[BLOCK:BLOCK] = bytes(BLOCK)
    info = tarfile.TarInfo("new.jpg")
    info.size, info.pax_headers = 4, {"GNU.sparse.major": "1"}
    new = info.tobuf(tarfile.PAX_FORMAT) + b"data".ljust(BLOCK, b"\0")
    data = bytes(old) + new + entry("good.jpg", data=b"g") + END
    members, left_out, problems = read(data, tmp_path)
    assert [m.path for m in members] == ["good.jpg"] and not problems
    assert left_out == {"sparse files": 2}


def test_tars_one_behind_the_other_are_one(tmp_path):
    """`cat a.tar b.tar`: the standard library and GNU tar stop at the end of the first."""
    data = tar_bytes([("a.jpg", b"a")]) + tar_bytes([("b.jpg", b"b")])
    assert contents(data, read(data, tmp_path)[0]) == [("a.jpg", b"a"), ("b.jpg", b"b")]


def test_a_tar_in_a_tar_is_a_folder_and_three_are_enough(tmp_path):
    data = tar_bytes([("deep.jpg", b"deep")])
    for level in range(4):
        data = tar_bytes([(f"{level}.tar", data), (f"{level}.jpg", b"%d" % level)])
    members, left_out, _ = read(data, tmp_path)
    assert contents(data, members) == [("3/2/1.jpg", b"1"), ("3/2.jpg", b"2"), ("3.jpg", b"3")]
    assert left_out == {"tars more than 3 deep": 1}


GOOD = tar_bytes([("a.jpg", b"a" * 700), ("b.jpg", b"b" * 700)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (gzip.compress(GOOD), "compressed with gzip, not a plain tar: unpack it with gunzip"),
        (b"BZh91AY&SY" + bytes(600), "compressed with bzip2"),
        (b"\xfd7zXZ\0" + bytes(600), "compressed with xz"),
        (b"<html>not found</html>".ljust(BLOCK), "no tar file"),
        (b"short", "cut short"),
        (entry("a.jpg", data=b"a", size=10**12), "cut short"),
        (entry("a.jpg", b"L", b"", size=10**11) + END, "name of 100,000,000,000 bytes"),
    ],
)
def test_what_cannot_be_read_is_one_line(data, reason, tmp_path):
    members, _, problems = read(data, tmp_path)
    assert not members
    [(name, told)] = problems
    assert name == "x.tar" and reason in told and "\n" not in told


def test_a_tar_without_an_end_mark_is_taken_and_said(tmp_path):
    members, left_out, problems = read(entry("a.jpg", data=b"a"), tmp_path)
    assert len(members) == 1 and not problems
    assert left_out == {"end marks of tars, which may be cut short": 1}


@pytest.mark.parametrize("size", [100, BLOCK + 100, 2 * BLOCK + 300, 3 * BLOCK + 10])
def test_a_tar_that_is_cut_gives_what_lies_before(size, tmp_path):
    members, _, problems = read(GOOD[:size], tmp_path)
    assert [m.path for m in members] == ["a.jpg"][: size > 2 * BLOCK]
    assert len(problems) == 1 and "cut short" in problems[0][1]


def test_a_broken_header_in_the_middle_is_no_silent_end(tmp_path):
    data = bytearray(GOOD)
    data[3 * BLOCK + 5] ^= 0xFF  # in the second member's name
    members, _, problems = read(bytes(data), tmp_path)
    assert [m.path for m in members] == ["a.jpg"]
    assert problems == [("x.tar", "is broken at byte 1,536: download or make it anew")]
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        assert tar.getnames() == ["a.jpg"]  # why it is not used here: nothing was said


def test_a_broken_tar_inside_does_not_hide_what_follows(tmp_path):
    data = tar_bytes([("n1.tar", GOOD[:900]), ("n2.tar", GOOD)])
    members, _, problems = read(data, tmp_path)
    assert [m.path for m in members] == ["n2/a.jpg", "n2/b.jpg"]
    assert [name for name, _ in problems] == ["x.tar:n1"]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_bytes_a_tar_has_only_ranges_inside_it_come_out(tmp_path_factory, data):
    inner = tar_bytes([("c/1.jpg", b"one"), ("c/2.jpg", bytes(600))], tarfile.PAX_FORMAT)
    whole = bytearray(tar_bytes([("n1.tar", inner), ("ü" * 60 + "/3.jpg", b"three")]))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # with its checksum mended, so that more of it is believed
        for start in range(0, len(whole), BLOCK):
            block = whole[start : start + BLOCK]
            if block[257:262] == b"ustar" and len(block) == BLOCK:
                block[148:156] = b" " * 8
                whole[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    del whole[data.draw(st.integers(0, len(whole))) :]
    members, _, _ = read(bytes(whole), tmp_path_factory.getbasetemp())
    for member in members:
        assert min(member.offset, member.size) >= 0
        assert member.offset + member.size <= len(whole)
        assert not member.path.startswith("/") and ".." not in member.path.split("/")
    assert max(Counter(member.offset for member in members if member.size).values(), default=1) == 1
