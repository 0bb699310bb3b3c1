import json

import numpy as np
import pytest
from conftest import make_texts, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.manifest import load_manifest
from data_pipeline.readers.inputs import resolve_input
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.sampling import collect_sample
from data_pipeline.tasks.task import cut_into_tasks
from data_pipeline.tokenizers.tokenizers import load_prepared_tokenizer, load_tokenizer
from data_pipeline.tokenizers.training import train_sentencepiece

NASTY = [
    "",
    " ",
    "   leading",
    "trailing   ",
    "\tdef f():\n\t\treturn 1\n",
    "    if x:\n        y = 1\n\n\n",
    "a\r\nb\rc\n",
    "▁",
    " ▁ ▁▁a▁",
    "a\x00b",
    "<|eod|> <unk> </s> <0x41> [MASK]",
    "e\u0301 é ﬁ \uff12 \u3000 \u00a0 \u200b \u2028 \ufeff",
    "👨‍👩‍👧 \U0010ffff \ud7ff ▅ ⁇ \ufffd",
    "12345 3.14e-10",
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file):
    return load_tokenizer(tokenizer_file)


def round_trip(tokenizer, text):
    return tokenizer.decode(tokenizer.encode_batch([text])[0])


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_survives(tokenizer, text):
    assert round_trip(tokenizer, text) == text


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("▁ \t\r\n"), max_size=60))
def test_any_text_survives(tokenizer_file, text):
    assert round_trip(_cached(tokenizer_file), text) == text


_LOADED = {}


def _cached(path):
    return _LOADED.setdefault(path, load_tokenizer(path))


def test_a_batch_gives_each_text_its_own_ids(tokenizer):
    batch = tokenizer.encode_batch(NASTY)
    assert [ids.dtype for ids in batch] == [np.int32] * len(NASTY)
    assert all(np.array_equal(ids, tokenizer.encode_batch([text])[0]) for ids, text in zip(batch, NASTY, strict=True))


def test_special_ids_come_only_from_the_pipeline(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.eod_id, tokenizer.pad_id) == (400, 1, None)
    assert not any(tokenizer.eod_id in ids or 0 in ids for ids in tokenizer.encode_batch(NASTY))


def test_digits_are_single_and_indentation_is_short(tokenizer):
    digits, indented = tokenizer.encode_batch(["12345", "        x"])
    assert digits.size == 5
    assert indented.size < 5


def test_training_is_deterministic(texts, tokenizer_file, tmp_path):
    train_sentencepiece(texts, 400, tmp_path / "elsewhere.model")
    assert (tmp_path / "elsewhere.model").read_bytes() == tokenizer_file.read_bytes()


def test_training_prints_nothing(texts, tmp_path, capfd):
    train_sentencepiece(texts, 380, tmp_path / "x.model")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("vocab_size", "message"), [(20_000, r"at most \d+"), (100, r"too small.* at least 2\d\d"), (0, "--vocab-size")]
)
def test_a_vocabulary_that_does_not_fit_names_the_limit(tmp_path, texts, vocab_size, message):
    with pytest.raises(DataError, match=message):
        train_sentencepiece(texts, vocab_size, tmp_path / "x.model")
    assert not (tmp_path / "x.model").exists()


def sample_of(tmp_path, files, sample_bytes):
    """The sample of `files`, the tasks read for it, in order, and the records read of each."""
    read, work = [], tmp_path / f"work{sample_bytes}"
    (work / "samples").mkdir(parents=True)
    words = {"text_key": "text", "tokenizer": None, "vocab_size": 400, "model_type": "bpe", "seq_len": 32}
    options = Options(**words, packing="concat", validation_fraction=0.1, strict=False, sample_bytes=sample_bytes)

    def do_tasks(job, tasks):
        for task in tasks:
            if not job.is_done(task):
                job(task, lambda *counts: None)
                read.append((task.identity, job.result(task).counts.accepted))

    tasks = cut_into_tasks([resolve_input(str(path)) for path in files])
    sample, counts = collect_sample(work, options, tasks, do_tasks)
    assert [task.number for task, _ in counts] == sorted(task.number for task, _ in counts)
    again = collect_sample(work, options, tasks[::-1], lambda *_: None)
    assert again[0] == sample and again[0].digest == sample.digest
    return sample, read


def test_the_sample_reads_the_beginnings_of_tasks_chosen_by_hash(tmp_path):
    """64 of 100 tasks give a 64th of the sample each, and no task is read further."""
    files = [write_jsonl(tmp_path / f"{i:03}.jsonl", make_texts(30, seed=i)) for i in range(100)]
    sample, read = sample_of(tmp_path, files, 64_000)
    assert 64_000 <= sample.num_bytes < 64_000 + 2_000
    assert 56 < len(read) <= 64 and [identity for identity, _ in read] == sorted(identity for identity, _ in read)
    assert sum(records for _, records in read) < 3 * 64  # documents have about 1,000 bytes
    assert list(sample.in_order()) == [sample.texts[digest] for digest in sorted(sample.texts)]
    # Fewer tasks, and one of them much larger than the others: the limit is raised until the large one gives enough.
    small, large = files[:5], write_jsonl(tmp_path / "large.jsonl", make_texts(800, seed=7))
    sample, read = sample_of(tmp_path, [*small, large], 400_000)
    assert sample.num_bytes >= 400_000 and len(read) > 6
    # More than there is: all documents of the training split.
    sample, _ = sample_of(tmp_path, files[:3], 10**9)
    assert 60 < len(sample.texts) <= 90


def test_a_text_is_in_the_sample_once_and_only_the_head_of_a_long_one(tmp_path):
    texts = make_texts(20, seed=3)
    files = [write_jsonl(tmp_path / "a.jsonl", [*texts, *texts]), write_jsonl(tmp_path / "b.jsonl", texts[::-1])]
    files.append(write_jsonl(tmp_path / "long.jsonl", [str(i) * 1_000_000 for i in range(1, 4)]))
    sample, _ = sample_of(tmp_path, files, 10**8)
    assert len(sample.texts) == len(set(sample.texts.values())) > 15
    lengths = sorted(map(len, sample.texts.values()))
    assert lengths[-1] == 100_000 and {length for length in lengths if length > 10_000} == {100_000}


def test_the_size_of_the_sample_is_an_option(prepare, jsonl, tmp_path):
    words = ("--input", jsonl, "--vocab-size", 300, "--output")
    assert prepare(*words, tmp_path / "a", "--sample-bytes", "20kB", train=True).code == 0
    assert prepare(*words, tmp_path / "b", train=True).code == 0
    options = [load_manifest(tmp_path / name).options["sample_bytes"] for name in "ab"]
    assert options == [20_000, 10_000_000]
    models = [(tmp_path / name / "tokenizer.model").read_bytes() for name in "ab"]
    assert models[0] != models[1]
    refused = prepare(*words, tmp_path / "b", "--sample-bytes", "some", train=True)
    assert refused.code == 2 and "--sample-bytes some: should be a size" in refused.err


@pytest.fixture
def huggingface(tmp_path):
    """A byte-level BPE with an end token, a template that adds it, padding and truncation."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|stop|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(NASTY, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    model.enable_truncation(5)
    model.enable_padding(length=5)
    model.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("text", NASTY)
def test_huggingface_text_survives_and_adds_nothing(huggingface, text):
    assert round_trip(load_tokenizer(huggingface), text) == text


def test_huggingface_text_never_yields_special_ids(huggingface):
    tokenizer = load_tokenizer(huggingface)
    assert tokenizer.eod_id == 0
    assert 0 not in tokenizer.encode_batch(["a <|endoftext|> b"])[0]


@pytest.mark.parametrize("eos", ["<|stop|>", {"content": "<|stop|>"}])
def test_huggingface_config_names_the_end_token(huggingface, eos):
    huggingface.with_name("tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "pad_token": None}))
    assert load_tokenizer(huggingface.parent).eod_id == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{}", "not a Hugging Face"),
        ("x.model", "abc", "not a SentencePiece"),
        ("x.txt", "abc", "expected a SentencePiece"),
        ("missing.model", None, "no tokenizer at"),
        ("folder/readme", "", "has no tokenizer"),
    ],
)
def test_a_bad_tokenizer_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(path.parent if path.parent != tmp_path else path)


def test_prepared_tokenizer_shows_the_special_ids(prepared):
    manifest = load_manifest(prepared)
    tokenizer = load_prepared_tokenizer(prepared, manifest)
    assert (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.eod_id, tokenizer.pad_id) == (401, 400, 1, 1)
    hello, world = (ids.tolist() for ids in tokenizer.encode_batch(["the loop", " return\n"]))
    ids = [*hello, 400, 400, *world, 1, *hello]
    assert tokenizer.decode(ids) == "the loop[MASK][MASK] return\n<|eod|>the loop"
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(ids)


def test_a_tokenizer_without_an_end_token_gets_one_before_the_mask(prepare, jsonl, tmp_path, huggingface):
    fields = json.loads(huggingface.read_text().replace("<|endoftext|>", "<|start|>"))
    huggingface.write_text(json.dumps(fields))
    result = prepare("--input", jsonl, "--output", tmp_path / "data", "--tokenizer", huggingface)
    assert result.code == 0, result.err
    manifest = load_manifest(tmp_path / "data")
    ids = manifest.tokenizer
    assert (ids.vocab_size, ids.eod_id, ids.mask_id, ids.pad_id, manifest.vocab_size) == (300, 300, 301, 300, 302)
    assert load_prepared_tokenizer(tmp_path / "data", manifest).decode([300, 301]) == "<|eod|>[MASK]"
