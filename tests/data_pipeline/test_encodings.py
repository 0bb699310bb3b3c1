"""Text in other encodings than UTF-8: named where the content shows it, else the message says how to convert it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kinds import texts_of

from data_pipeline.readers.not_text import BEGINNING_BYTES, objection

CHINESE = "今天天气很好,我们去公园散步吧。"
RUSSIAN = "Привет, мир! Как дела сегодня?\n"
UNICODE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


def name_of(codec):
    return codec.upper().replace("-LE", "LE").replace("-BE", "BE")


@pytest.mark.parametrize("codec", UNICODE)
@pytest.mark.parametrize(
    "text", [CHINESE * 5, f"{CHINESE}\n" * 5, RUSSIAN * 3, "plain text", CHINESE * 400 + "😀" * 900]
)
@pytest.mark.parametrize("as_lines", [False, True])
def test_unicode_without_a_mark_is_named(tmp_path, codec, text, as_lines):
    path = tmp_path / ("x.jsonl" if as_lines else "x.txt")
    path.write_bytes((json.dumps({"text": text}, ensure_ascii=False) + "\n" if as_lines else text).encode(codec))
    texts, counter = texts_of(path)
    expected = f"looks like {name_of(codec)}; convert it with iconv -f {name_of(codec)} -t UTF-8"
    assert texts == [] and counter.examples[0].why == expected


@pytest.mark.parametrize(
    ("codec", "text"), [("iso2022-jp", "今日は天気がいい。\n" * 900), ("iso2022-kr", "오늘은 날씨가 좋다.\n" * 900)]
)
@pytest.mark.parametrize("as_lines", [False, True])
def test_encodings_of_seven_bits_do_not_pass_for_ascii(tmp_path, codec, text, as_lines):
    path, name = tmp_path / ("x.jsonl" if as_lines else "x.txt"), codec.upper().replace("2022", "-2022")
    path.write_bytes((json.dumps({"text": text}, ensure_ascii=False) + "\n" if as_lines else text).encode(codec))
    texts, counter = texts_of(path)
    assert texts == [] and counter.examples[0].why == f"looks like {name}; convert it with iconv -f {name} -t UTF-8"


@pytest.mark.parametrize(
    "text", ["ESC $ B is \x1b$B in ISO-2022-JP\n", "\x1b[31mred\x1b[0m costs 3\x1b$Broad and more\n"]
)
def test_a_text_with_escapes_stays_a_text(tmp_path, text):
    path = tmp_path / "x.txt"
    path.write_text(text)
    assert texts_of(path)[0] == [text]


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("latin-1", "Ein schöner Tag für Kühe\n" * 5 + "\x1a"),
        ("cp1252", "“quoted” text with dashes … and so on\n"),
        ("gbk", f"{CHINESE}\n" * 5),
        ("shift-jis", "今日は天気がいいから散歩しましょう。\n" * 5),
    ],
)
@pytest.mark.parametrize("as_lines", [False, True])
def test_what_shows_no_encoding_says_how_to_convert_it(prepare, tmp_path, codec, text, as_lines):
    path = tmp_path / ("x.jsonl" if as_lines else "x.txt")
    path.write_bytes((json.dumps({"text": text}, ensure_ascii=False) + "\n" if as_lines else text).encode(codec))
    result = prepare("--input", path, "--output", tmp_path / "data")
    assert result.code == 2 and "if the file is in another encoding, convert it" in result.err
    assert "iconv -f LATIN1 -t UTF-8" in result.err and "looks like" not in result.err


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200), cut=st.integers(0, 3))
def test_no_text_in_utf_8_is_taken_for_another_encoding(text, cut):
    """Unless every second character is a control character, as in Russian of UTF-16."""
    ordinary = "".join(each for each in text if each >= " " or each in "\t\n\r\x1b")
    content = f"words {ordinary} and \x01 more words".encode()
    assert objection(content[: len(content) - cut][:BEGINNING_BYTES]) is None


@pytest.mark.parametrize("content", [bytes(100), bytes(range(256)) * 4, b"\x01\x00\x00\x00" * 50, b"\xff\xff\x01" * 20])
def test_binary_content_is_not_taken_for_unicode(content):
    assert objection(content) is None


@pytest.mark.parametrize("option", ["--decontaminate", "--drop-ids"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_other_texts_than_the_inputs_are_refused_too(prepare, tmp_path, jsonl, option, encoding):
    """Read as UTF-8, UTF-16 without a mark would be words that no document has."""
    path = tmp_path / "other.txt"
    path.write_bytes("\n".join(f"\xe9t\xe9 number {i} of a list" for i in range(20)).encode(encoding))
    result = prepare("--input", jsonl, "--output", tmp_path / "data", option, path)
    what = "byte 0xe9 at position 0; if the file is in another encoding, convert it"
    assert result.code == 2 and f"{option} {path}: " in result.err, result.err
    assert (what if encoding == "latin-1" else "looks like UTF-16") in result.err


@pytest.mark.parametrize("option", ["--decontaminate", "--drop-ids"])
def test_files_of_other_options_are_refused_by_what_helps(prepare, tmp_path, jsonl, option):
    for name, why in (
        ("a.csv", "convert the table to .parquet or .jsonl\n"),
        ("a.bin", "rename it to .txt, .jsonl or"),
    ):
        (tmp_path / name).write_text("x")
        result = prepare("--input", jsonl, "--output", tmp_path / "data", option, tmp_path / name)
        assert result.code == 2 and f"error: {option} {tmp_path / name}: " in result.err and why in result.err
        assert "--as" not in result.err
    missing = prepare("--input", jsonl, "--output", tmp_path / "data", option, tmp_path / "missing")
    assert missing.code == 2 and f"error: {option} {tmp_path / 'missing'}: " in missing.err
    assert "no such file" in missing.err.lower()
