"""Prompts and templates: their tokens, and what is refused."""

import json

import pytest

from data_pipeline.tokenizers.tokenizers import ByteTokenizer
from pretrain.commands.prompts import Prompt, read_prompts, read_template
from pretrain.errors import UserError

MASK = 999


def row(text, length=12, **about):
    return Prompt(text, "--prompt", **about).row(ByteTokenizer(), MASK, length)


def test_a_prompt_is_followed_by_tokens_to_fill():
    assert row("ab", 4) == [97, 98, MASK, MASK]
    assert row("", 2) == [MASK, MASK]


def test_gaps():
    assert row("a[MASK]b[MASK:3]", 8) == [97, MASK, 98, MASK, MASK, MASK, MASK, MASK]
    assert row("[MASK:2]b", is_template=True) == [MASK, MASK, 98]
    assert row("[mask][MASK:x]", 15) == [*b"[mask][MASK:x]", MASK]  # any other spelling is text


@pytest.mark.parametrize(
    ("text", "template", "message"),
    [
        ("a" * 12, False, "--prompt: its 12 tokens leave no room in a sample of 12; shorten it or raise --length"),
        ("a" * 11 + "[MASK:99999999999999]", False, "leave no room in a sample of 12"),
        ("abc", True, "--prompt: has no [MASK]; write one for each token to fill, or [MASK:20] for 20"),
        ("a" * 12 + "[MASK]", True, "--prompt: has 13 tokens, more than 12; shorten it or raise --length"),
        ("a[MASK:0]", False, "--prompt: [MASK:0] fills nothing"),
    ],
)
def test_what_cannot_be_filled(text, template, message):
    with pytest.raises(UserError) as error:
        row(text, is_template=template)
    assert message in str(error.value)


def test_a_file_of_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  two \n")
    prompts = read_prompts(path)
    assert [prompt.text for prompt in prompts] == ["one", "  two "]
    assert [prompt.source for prompt in prompts] == [f"{path}:1", f"{path}:3"]


def test_a_file_of_json(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "one\ntwo", "id": 7}, {"template": "a[MASK]"}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    first, second = read_prompts(path)
    assert (first.text, first.is_template, first.record) == ("one\ntwo", False, lines[0])
    assert (second.text, second.is_template) == ("a[MASK]", True)


WRONG = {
    b"": "has no prompt; write one per line",
    b"\n \n": "has no prompt; write one per line",
    b"{\n": "prompts.jsonl:1: is not JSON (",
    b"\n[]": 'prompts.jsonl:2: must be an object such as {"prompt": "..."}',
    b'{"text": "x", "id": 1}': "prompts.jsonl:1: must have one of the keys prompt and template, not only text, id",
    b'{"prompt": "x", "template": "y"}': "prompts.jsonl:1: must have one of the keys prompt and template, not both",
    b'{"prompt": 5}': "prompts.jsonl:1: prompt must be a text, not int",
    b'{"prompt": "\\ud800"}': "prompts.jsonl:1: prompt has half of a surrogate pair",
    b'{"prompt": "d\xe9"}': "prompts.jsonl: byte 0xe9 at position 13 is not UTF-8; convert it",
}


@pytest.mark.parametrize("content", WRONG)
def test_wrong_files(content, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_prompts(path)
    assert WRONG[content] in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    for name, reason in (("none", "no such file"), (".", "cannot be read (Is a directory)")):
        with pytest.raises(UserError) as error:
            read_template(tmp_path / name)
        assert str(error.value) == f"--template {tmp_path / name}: {reason}"


def test_the_newline_at_the_end_of_a_template_is_not_part_of_it(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"a\n[MASK]\r\n")
    assert read_template(tmp_path / "t.txt").text == "a\n[MASK]"
