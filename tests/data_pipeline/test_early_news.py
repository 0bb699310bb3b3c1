"""What will not work is said as soon as it is known."""

import pytest
from conftest import make_texts, write_jsonl

from data_pipeline.dataset.blend import load_blend
from data_pipeline.errors import DataError


@pytest.mark.parametrize("pack", ["concat", "best_fit"])
def test_a_split_without_rows_is_refused_before_the_join(prepare, tmp_path, pack):
    """By each machine of --stage tokens, so before anything is copied into shards."""
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(30))
    words = ("--input", path, "--output", tmp_path / "data", "--validation-fraction", 1e-9, "--pack", pack)
    for stage in ("tokens", "join"):
        result = prepare(*words, "--stage", stage)
        assert result.code == 2 and "the validation split has 0 tokens in 0 documents" in result.err, result.err
        assert not list((tmp_path / "data.work" / "shards").iterdir())
    long = prepare(*words[:4], "--validation-fraction", 0, "--pack", pack, "--seq-len", 10**5, "--stage", "tokens")
    assert long.code == 2 and "the train split has" in long.err
    assert prepare(*words[:4], "--validation-fraction", 0, "--pack", pack, "--stage", "tokens").code == 0


def test_few_files_of_text_bring_a_note_about_the_validation_split(prepare, tmp_path):
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(make_texts(10)):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    words = ("--input", tmp_path / "texts", "--output", tmp_path / "data", "--seq-len", 8)
    said = prepare(*words).err
    note = "note: each of the 10 files is one document, and the validation split gets 0.02 of them"
    assert said.index(note) < said.index("tokenizing") and "with a probability of 82% none" in said
    for fraction in (0, 0.3):
        assert "note: each" not in prepare(*words, "--validation-fraction", fraction, "--overwrite").err
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(10))
    assert "note: each" not in prepare("--input", path, *words[2:], "--overwrite").err


def test_a_folder_that_a_blend_does_not_find_is_one_relative_to_its_file(tmp_path):
    (tmp_path / "blends").mkdir()
    blend = tmp_path / "blends" / "mine.yaml"
    for path, is_said in (("data/web", True), (tmp_path / "web", False)):
        blend.write_text(f"corpora: [{{path: {path}, weight: 1}}]")
        with pytest.raises(DataError) as caught:
            load_blend(blend)
        hint = f"(it names {path}, which is relative to the folder of the blend file, {tmp_path / 'blends'})"
        assert (hint in str(caught.value)) == is_said
