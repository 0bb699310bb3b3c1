"""Files whose content is not what their names say: other encodings, archives, joined files, several compressed members."""

import bz2
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
from functools import partial

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kinds import texts_of

from data_pipeline import documents
from data_pipeline.manifest import load_manifest
from data_pipeline.readers import long_documents, members, readers
from data_pipeline.readers.compression import DamagedFileError, TrailingBytesError, open_decompressed
from data_pipeline.rejects import Cause

MARK = b"\xef\xbb\xbf"
RECORDS = b'{"text": "one one one"}\n{"text": "two two two"}\n'


def tar_of(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("1.txt")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


PLAIN = "plain english text, saved in another encoding, of some length"
OTHER_CONTENT = [
    (PLAIN.encode("utf-16"), "not UTF-8", "looks like UTF-16; convert it with iconv -f UTF-16 -t UTF-8"),
    (PLAIN.encode("utf-16-le"), "not UTF-8", "looks like UTF-16LE; convert it with iconv -f UTF-16LE"),
    (PLAIN.encode("utf-16-be"), "not UTF-8", "looks like UTF-16BE"),
    (b"\xfe\xff" + "漢字".encode("utf-16-be"), "not UTF-8", "looks like UTF-16;"),
    (PLAIN.encode("utf-32"), "not UTF-8", "looks like UTF-32"),
    (b"text with a\0NUL", "not text", "a NUL as character 11: binary content"),
    (b"text " * 3000 + b"\0", "not text", "a NUL as character 15,000"),
    (tar_of(b"text"), "not text", "holds a tar archive; unpack it"),
    (gzip.compress(b"text", mtime=0), "not text", "holds gzip data; decompress it"),
    (b"PK\x03\x04" + bytes(30), "not text", "holds a zip archive"),
    (b"%PDF-1.7\n", "not text", "holds a PDF document"),
    (b"na\xefve words", "not UTF-8", "byte 0xef at position 2"),
]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("content", "cause", "why"), OTHER_CONTENT, ids=[why for _, _, why in OTHER_CONTENT])
def test_a_text_file_that_holds_no_utf_8_text(tmp_path, content, cause, why, suffix):
    packed = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True)}
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(packed[suffix](content))
    texts, counter = texts_of(path)
    assert texts == [] and dict(counter.rejected) == {cause: 1} and why in counter.examples[0].why


def test_such_a_file_is_a_failure_that_names_it(prepare, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(20):
        (tmp_path / "in" / f"{i:02}.txt").write_bytes(PLAIN.encode("utf-16-le" if i == 7 else "utf-8"))
    result = prepare("--input", tmp_path / "in", "--output", tmp_path / "data")
    assert result.code == 2 and "07.txt: looks like UTF-16LE" in result.err


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (RECORDS.decode().encode("utf-16"), "looks like UTF-16; convert it with iconv"),
        (RECORDS.decode().encode("utf-16-le"), "looks like UTF-16LE"),
        (tar_of(RECORDS), "holds a tar archive"),
        (
            json.dumps([{"text": "a"}, {"text": "b"}]).encode(),
            "begins with a JSON array; one object per line is expected",
        ),
        (MARK + b"\n " + json.dumps([{"text": "a"}], indent=2).encode(), "jq -c '.[]'"),
    ],
    ids=["UTF-16", "UTF-16LE", "tar", "array", "indented array"],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_of_other_content_than_json_lines(prepare, tmp_path, content, why, suffix):
    """Named once as a broken file, in each task that reads it, instead of a count of broken records."""
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    texts, counter = texts_of(path)
    assert texts == [] and dict(counter.rejected) == {"broken or truncated file": 1} and why in counter.broken[0].why
    good = tmp_path / "good.jsonl"
    good.write_bytes(RECORDS * 200)
    result = prepare("--input", good, path, "--output", tmp_path / "data")
    assert result.code == 2 and f"    {path}: " in result.err and why in result.err


@pytest.mark.parametrize("first", [b'{"text": "a"}\n', b'{"text": "a"}\r\n\r\n  \n'])
@pytest.mark.parametrize("long", [False, True])
def test_joined_files_with_a_mark_each(tmp_path, monkeypatch, first, long):
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        MARK + first + MARK + b'{"text": "b"}\n' + MARK + b"\n" + MARK + b'{"text": "' + b"c" * 300 + b'"}'
    )
    if long:
        monkeypatch.setattr(readers, "LONG_BYTES", 100)
    texts, counter = texts_of(path)
    assert texts == ["a", "b", "c" * 300] and not counter.rejected


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_joined_text_files_with_a_mark_each(tmp_path, monkeypatch, block):
    """Also where the file is read in blocks, which may end before, in or after a mark."""
    monkeypatch.setattr(long_documents, "CHUNK_BYTES", block)
    if block < 1 << 20:
        monkeypatch.setattr(readers, "LONG_BYTES", 4)
    (tmp_path / "a.txt").write_text(
        "\ufefffirst\n\ufeffsecond\r\n\ufeff\n in\ufeffside \ufeff", encoding="utf-8", newline=""
    )
    (found,) = texts_of(tmp_path / "a.txt")[0]
    assert found == "first\nsecond\r\n\n in\ufeffside \ufeff"


def test_several_marks_in_a_row_are_no_text(tmp_path, monkeypatch):
    (tmp_path / "x.jsonl").write_bytes(MARK * 2 + b'{"text": "a"}\n' + MARK * 3 + b'{"text": "b"}\n')
    texts, counter = texts_of(tmp_path / "x.jsonl")
    assert texts == ["a", "b"] and not counter.rejected
    (tmp_path / "x.txt").write_bytes(MARK * 2 + b"first\n" + MARK * 3 + b"second" + MARK)
    for long, block in ((1 << 20, 1 << 20), (4, 1), (4, 3), (4, 4)):
        monkeypatch.setattr(readers, "LONG_BYTES", long)
        monkeypatch.setattr(long_documents, "CHUNK_BYTES", block)
        assert texts_of(tmp_path / "x.txt")[0] == ["first\nsecond\ufeff"]


@pytest.mark.parametrize(
    ("between", "what"),
    [
        (b"", "at column 14: a second object, as where files were joined without a line end between them (one JSON"),
        (b"  ", "a second object, as where files were joined"),
        (b"\r", "a second object, as where files were joined"),
        (
            MARK,
            "a byte order mark and a second object, as where files were joined without a line end between them; join",
        ),
        (b", ", "a comma; one JSON object per line is expected, without commas"),
    ],
)
def test_two_objects_on_one_line(tmp_path, between, what):
    (tmp_path / "x.jsonl").write_bytes(RECORDS + b'{"text": "a"}' + between + b'{"text": "b"}\n')
    texts, counter = texts_of(tmp_path / "x.jsonl")
    assert texts == ["one one one", "two two two"] and what in counter.examples[0].why


@pytest.mark.parametrize("line", [b'{"text": "a"},', b'{"text": "a"} and more'])
def test_what_jq_cannot_rewrite_is_not_given_to_it(tmp_path, line):
    (tmp_path / "x.jsonl").write_bytes(RECORDS + line + b"\n")
    _, counter = texts_of(tmp_path / "x.jsonl")
    assert "Extra data at column 1" in counter.examples[0].why and "jq" not in counter.examples[0].why


@pytest.mark.parametrize("line", [b'{"text": "a"}{"text": "b"}', b"{"])
def test_objects_that_are_not_one_per_line_say_how_to_rewrite_them(tmp_path, line):
    (tmp_path / "x.jsonl").write_bytes(RECORDS + line + b"\n")
    _, counter = texts_of(tmp_path / "x.jsonl")
    assert "one JSON object per line is expected; jq -c . rewrites" in counter.examples[0].why


PACKERS = {
    ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress,
    ".zst": partial(pyarrow.compress, codec="zstd", asbytes=True),
}  # fmt: skip
OPENERS = {
    ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": partial(pyarrow.input_stream, compression="zstd"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("members")


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=40) | st.integers(0, 5000).map(bytes), min_size=1, max_size=4),
    suffix=st.sampled_from(sorted(PACKERS)),
    block=st.integers(1, 40),
    data=st.data(),
)
def test_members_are_read_as_pythons_own_readers_do(folder, parts, suffix, block, data):
    path = folder / f"x{suffix}"
    packed = b"".join(map(PACKERS[suffix], parts))
    path.write_bytes(packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "READ_BYTES", block)
        with open_decompressed(path) as file, OPENERS[suffix](path) as expected:
            content = file.content.read()
            file.require_end(len(content))
            assert content == expected.read() == b"".join(parts)
        # Cut anywhere but between two members, the file is damaged.
        cut = data.draw(st.integers(1, len(PACKERS[suffix](parts[-1])) - 1))
        path.write_bytes(packed[:-cut])
        with pytest.raises(DamagedFileError), open_decompressed(path) as file:
            file.require_end(len(file.content.read()))
        zeros = 0 if suffix == ".zst" else 8  # padding in the other formats
        path.write_bytes(packed + b"\0" * zeros + b"garbage")
        with open_decompressed(path) as file:
            assert file.content.read() == content
            with pytest.raises(
                TrailingBytesError, match=f"ends at byte {len(packed) + zeros:,} of {len(packed) + zeros + 7:,}"
            ):
                file.require_end(len(content))


@pytest.mark.parametrize("suffix", sorted(PACKERS))
def test_what_stands_before_the_garbage_is_kept_and_the_garbage_is_told(prepare, tmp_path, suffix):
    path = tmp_path / f"t.txt{suffix}"
    path.write_bytes(PACKERS[suffix](b"a text file") + b"garbage after the end")
    texts, counter = texts_of(path)
    assert texts == ["a text file"] and counter.rejected == {Cause.TRAILING_BYTES: 1}
    lines = tmp_path / f"l.jsonl{suffix}"
    lines.write_bytes(PACKERS[suffix](b'{"text": "one"}\n{"text": "two"}\n') + b"garbage after the end")
    words = ("--input", path, lines, "--output", tmp_path / "data", "--validation-fraction", 0, "--seq-len", 2)
    result = prepare(*words)
    assert result.code == 0, result.err
    assert "left out, bytes after the compressed content: 2\n" in result.out and f"{path.name}: the" in result.out
    assert result.out.count("and what follows is no") == 2
    manifest = load_manifest(tmp_path / "data")
    assert manifest.splits["train"].documents == 3 and manifest.records == {"bytes after the compressed content": 2}
    assert "already prepared" in prepare(*words).out
    result = prepare(*words, "--strict", "--output", tmp_path / "strict")
    assert result.code == 2 and "what follows is no" in result.err
    # So many bytes may be content with a damaged beginning.
    lines.write_bytes(lines.read_bytes() + bytes(range(1, 256)) * 17)
    result = prepare(*words, "--output", tmp_path / "other")
    assert result.code == 2 and "1 file is broken" in result.err and "the last 4,356 of its" in result.err


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_a_file_that_is_not_compressed_though_its_name_says_so(tmp_path, suffix):
    (tmp_path / f"x.txt{suffix}").write_bytes(b"plain text")
    texts, counter = texts_of(tmp_path / f"x.txt{suffix}")
    assert texts == [] and f"or not compressed and should not be named {suffix}" in counter.broken[0].why


def streamed(content):
    """A zstd frame of several blocks without its size, as when it is written to a pipe."""
    buffer = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


def test_every_layout_of_a_zstd_frame_is_followed_to_its_end(tmp_path):
    """With and without size, window and checksum; blocks that are compressed, stored and runs of one byte; empty."""
    random.seed(0)
    noise, run = random.randbytes(300_000), b"a" * 300_000
    checked = bytes.fromhex("28b52ffd045829000068656c6c6fa36d9f88")  # of `zstd -c`
    stored_run = b"\x28\xb5\x2f\xfd\x00\x58" + struct.pack("<I", 300 << 3 | 1 << 1 | 1)[:3] + b"z"
    skippable = struct.pack("<II", 0x184D2A5F, 3) + b"any"
    packed = [
        streamed(noise),
        streamed(run),
        streamed(b""),
        checked,
        stored_run,
        skippable,
        PACKERS[".zst"](noise + run),
    ]
    content = [noise, run, b"", b"hello", b"z" * 300, b"", noise + run]
    (tmp_path / "x.zst").write_bytes(b"".join(packed) + b"rest")
    with open_decompressed(tmp_path / "x.zst") as file:
        assert file.content.read() == b"".join(content)
        with pytest.raises(TrailingBytesError, match=f"ends at byte {sum(map(len, packed)):,} of"):
            file.require_end(sum(map(len, content)))


def test_zstd_of_several_frames_and_of_a_long_window(tmp_path):
    frame = pyarrow.compress(b'{"text": "framed"}\n', "zstd", asbytes=True)
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    (tmp_path / "M.JSONL.ZST").write_bytes(frame + skippable + frame + frame)
    assert texts_of(tmp_path / "M.JSONL.ZST")[0] == ["framed"] * 3
    block = struct.pack("<I", len(RECORDS) << 3 | 1)[:3] + RECORDS  # raw, the last one
    (tmp_path / "w.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes([0, (31 - 10) << 3]) + block)
    texts, counter = texts_of(tmp_path / "w.jsonl.zst")
    assert texts == [] and "zstd -dc --long=31 FILE | zstd" in counter.broken[0].why


@pytest.mark.parametrize("suffix", sorted(PACKERS))
def test_a_long_text_is_kept_before_garbage_as_a_short_one_is(tmp_path, monkeypatch, suffix):
    for module in (readers, long_documents, documents):
        monkeypatch.setattr(module, "LONG_BYTES", 1000)
    path = tmp_path / f"t.txt{suffix}"
    text = "a long text " * 1000
    for garbage, cause in ((b"garbage", Cause.TRAILING_BYTES), (b"garbage" * 1000, Cause.BROKEN_FILE)):
        path.write_bytes(PACKERS[suffix](text.encode()) + garbage)
        texts, counter = texts_of(path)
        assert texts == [text] and counter.rejected == {cause: 1}
        assert "what follows is no" in counter.examples[0].why and [each.documents for each in counter.broken] in (
            [],
            [1],
        )


def test_a_dictionary_of_zstd_is_named(tmp_path):
    """The file is whole; its header names dictionary 7."""
    content = b'{"text": "one"}'
    block = struct.pack("<I", len(content) << 3 | 1)[:3] + content
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x01\x58\x07" + block)
    _, counter = texts_of(tmp_path / "a.jsonl.zst")
    (example,) = counter.examples
    assert "needs the dictionary that it was compressed with" in example.why and "damaged" not in example.why
