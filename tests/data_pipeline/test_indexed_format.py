import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.indexed import IndexedReader, IndexedWriter, token_dtype

VOCAB_SIZES = [300, 65_499, 65_500, 65_536, 200_000]


def write(prefix, documents, vocab_size, batch=3):
    with IndexedWriter(prefix, vocab_size) as writer:
        for i in range(0, len(documents), batch):
            group = documents[i : i + batch]
            writer.append(np.concatenate(group), np.array([len(document) for document in group]))


@pytest.fixture
def documents():
    rng = np.random.default_rng(0)
    return lambda vocab_size: [rng.integers(0, vocab_size, size=n) for n in (1, 5, 200, 1, 33, 2, 77)]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_megatron_reads_it_token_for_token(tmp_path, documents, vocab_size):
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    assert token_dtype(vocab_size) == indexed_dataset.DType.optimal_dtype(vocab_size)
    written = documents(vocab_size)
    written[0][0] = vocab_size - 1
    write(tmp_path / "train", written, vocab_size)
    theirs = indexed_dataset.IndexedDataset(str(tmp_path / "train"))
    assert len(theirs) == len(written)
    assert theirs.document_indices.tolist() == list(range(len(written) + 1))
    for i, document in enumerate(written):
        assert np.array_equal(theirs[i], document)


def test_bytes_equal_those_megatron_writes(tmp_path, documents):
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    written = documents(300)
    write(tmp_path / "ours", written, 300)
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for document in written:
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_our_reader_returns_the_documents(tmp_path, documents, vocab_size):
    written = documents(vocab_size)
    write(tmp_path / "train", written, vocab_size)
    reader = IndexedReader(tmp_path / "train")
    assert len(reader) == len(written)
    assert reader.lengths.tolist() == [len(document) for document in written]
    assert all(np.array_equal(reader.document(i), document) for i, document in enumerate(written))
    assert np.array_equal(reader.tokens, np.concatenate(written))


def test_a_split_without_documents(tmp_path):
    write(tmp_path / "train", [], 300)
    reader = IndexedReader(tmp_path / "train")
    assert len(reader) == 0 and reader.tokens.size == 0


def test_the_writer_refuses_lengths_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="3 tokens for documents of 4"), IndexedWriter(tmp_path / "x", 300) as writer:
        writer.append(np.zeros(3, np.int32), np.array([4]))
    assert not (tmp_path / "x.idx").exists()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("x.idx", lambda data: data[:20], "is truncated"),
        ("x.idx", lambda data: data[:-8], "its header describes"),
        ("x.idx", lambda data: b"NOTMAGIC" + data[8:], "not a Megatron index"),
        ("x.idx", lambda data: data[:17] + b"\x07" + data[18:], "not a Megatron index"),
        ("x.bin", lambda data: data[:-2], "its index describes"),
        ("x.bin", None, "missing"),
        ("x.idx", None, "missing"),
    ],
)
def test_damage_is_named(tmp_path, documents, name, damage, message):
    write(tmp_path / "x", documents(300), 300)
    path = tmp_path / name
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(DataError, match=message) as raised:
        IndexedReader(tmp_path / "x")
    assert name in str(raised.value)
