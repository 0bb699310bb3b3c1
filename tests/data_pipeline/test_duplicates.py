"""The search for duplicates: against plain Python, and what `prepare` makes of it."""

import random
import signal
import sys
import threading
import time
from itertools import chain

import numpy as np
import pytest
from conftest import make_texts, write_jsonl
from test_prepare import documents_of

from data_pipeline.dedup import BANDS, MIN_EQUAL_BYTES, SIGNATURE_BYTES, near_keys
from data_pipeline.documents import build_document
from data_pipeline.manifest import load_manifest
from data_pipeline.readers.values import TextValue
from data_pipeline.tasks import duplicate_search
from data_pipeline.tasks.duplicate_search import find_repeated
from data_pipeline.tasks.signatures import signature_file


def some_documents(rng, count):
    """Digests, band keys and signatures, of which some are copies of an earlier document, more or less changed."""
    documents = []
    for _ in range(count):
        digest, bands = rng.randbytes(16), [rng.randrange(40 if rng.random() < 0.1 else 2**60) for _ in range(BANDS)]
        signature = bytearray(rng.randbytes(SIGNATURE_BYTES))
        if documents and rng.random() < 0.5:
            of, old_bands, old_signature = rng.choice(documents)
            digest = of if rng.random() < 0.3 else digest
            bands = [old if rng.random() < 0.5 else new for old, new in zip(old_bands, bands, strict=True)]
            signature = bytearray(old_signature)
            for i in rng.sample(range(SIGNATURE_BYTES), rng.randrange(60)):
                signature[i] ^= 1
            if digest == of:  # the same text
                bands, signature = old_bands, old_signature
        documents.append((digest, bands, bytes(signature)))
    return documents


def expected(documents, near):
    """Position of each repeated document -> whether its text came before, and the first document of its cluster."""
    firsts, exact = {}, {}
    for i, (digest, _, _) in enumerate(documents):
        if firsts.setdefault(digest, i) != i:
            exact[i] = firsts[digest]
    if not near:
        return {i: (True, first) for i, first in exact.items()}
    cluster = list(range(len(documents)))
    for band in range(BANDS):
        seen = {}
        for i, (_, bands, signature) in enumerate(documents):
            members = seen.setdefault(bands[band], [])
            for j in {*members[:1], *members[-1:]}:
                if sum(a == b for a, b in zip(signature, documents[j][2], strict=True)) >= MIN_EQUAL_BYTES:
                    old, new = sorted((cluster[i], cluster[j]), reverse=True)
                    cluster = [new if each == old else each for each in cluster]
            members.append(i)
    return {i: (i in exact, first) for i, first in enumerate(cluster) if first != i}


@pytest.fixture(params=[1, 2])
def threads(request):
    return request.param


@pytest.mark.parametrize("near", [False, True])
def test_the_search_finds_what_plain_python_finds(tmp_path, monkeypatch, near, threads):
    monkeypatch.setattr(duplicate_search, "MEMORY_LIMIT", "200MB")
    folder = tmp_path / "set [v2]'s *"  # not a pattern
    folder.mkdir()
    documents = some_documents(random.Random(3 + near), 400)
    parts = {number: documents[begin : begin + 57] for number, begin in enumerate(range(0, 400, 57))}
    files = {}
    for number, part in parts.items():
        keys = (np.array(bands, "<u8").tobytes() for _, bands, _ in part) if near else ()
        signatures = (signature for *_, signature in part) if near else ()
        places = [number for i in range(len(part)) for number in (i % 3, 10 * i)]
        content = signature_file(b"".join(each[0] for each in part), places, b"".join(keys), b"".join(signatures))
        files[number] = folder / f"{number}"
        files[number].write_bytes(content)
    found = {}
    with find_repeated(files, near, folder / "spill", threads) as repeated:
        for number in files:
            of_task = repeated.of_task(number)
            for position, is_exact, first in zip(
                of_task.positions, of_task.is_exact, of_task.first_digests, strict=True
            ):
                found[57 * number + position] = (is_exact, first.tobytes())
            assert (of_task.ranges == of_task.positions % 3).all() and (of_task.places == 10 * of_task.positions).all()
            firsts = 57 * of_task.first_tasks + of_task.first_places // 10
            assert [documents[i][0] for i in firsts] == [each.tobytes() for each in of_task.first_digests]
            assert (of_task.first_ranges == of_task.first_places // 10 % 3).all()
    want = expected(documents, near)
    assert found == {i: (is_exact, documents[first][0]) for i, (is_exact, first) in want.items()}
    assert len(want) > 20 and (not near or {True, False} == {is_exact for is_exact, _ in want.values()})
    assert not (folder / "spill").exists()


def test_signatures_estimate_the_similarity_of_texts():
    pytest.importorskip("rensa")
    rng = random.Random(1)
    words = [f"word{i}" for i in range(3000)]
    for share in (1.0, 0.9, 0.6, 0.0):
        kept = words[: int(share * 3000)]
        other = kept + [f"other{rng.random()}" for _ in range(3000 - len(kept))]
        first, second = (near_keys(build_document(TextValue(" ".join(each), 1), "text"))[1] for each in (words, other))
        similarity = len(kept) / (6000 - len(kept))
        found = np.mean(np.frombuffer(first, np.uint8) == np.frombuffer(second, np.uint8))
        assert found == pytest.approx(similarity, abs=0.13)  # three standard errors


def copies(rng):
    """300 texts, each also with other white space: four different documents."""
    texts = [" ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(40)) for _ in range(300)]
    return [(each, each + "\n", each + " ", each.replace(" ", "\r\n", 3)) for each in texts]


def test_near_copies_are_in_one_split(prepare, tmp_path):
    pytest.importorskip("rensa")
    groups = copies(random.Random(0))
    path = write_jsonl(tmp_path / "x.jsonl", chain(*groups))
    sides = {}
    for duplicates in ("keep", "near", "together"):
        output = tmp_path / duplicates
        words = ("--input", path, "--output", output, "--validation-fraction", 0.2, "--duplicates", duplicates)
        assert prepare(*words).code == 0
        splits = [set(texts) for texts in documents_of(output).values()]
        sides[duplicates] = sum(not any(split.isdisjoint(group) for split in splits) for group in groups)
        assert sum(map(len, splits)) == (300 if duplicates == "near" else 1200)
    assert sides["keep"] > 100 and sides["near"] == sides["together"] == 0
    assert load_manifest(tmp_path / "near").records == {"near duplicate": 900}
    assert load_manifest(tmp_path / "together").records == {}


def test_a_search_that_cannot_run_says_why(prepare, tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(5))
    words = ("--input", path, "--output", tmp_path / "data", "--duplicates", "exact", "--validation-fraction", 0)
    monkeypatch.setattr(duplicate_search, "MEMORY_LIMIT", "1MB")
    result = prepare(*words)
    assert result.code == 2 and "error: the search for duplicates failed: " in result.err and "with 1MB" in result.err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "duckdb", None)
    result = prepare(*words)
    assert result.code == 2 and "install it with: pip install 'duckdb" in result.err
    monkeypatch.undo()
    (decisions,) = (tmp_path / "data.work").glob("decisions")
    assert list(decisions.iterdir()) == []
    result = prepare(*words)
    assert result.code == 0, result.err


def test_a_signal_stops_the_search_and_leaves_no_large_files(prepare, tmp_path, monkeypatch):
    """Also what a killed process left of a search goes."""
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(5))
    words = ("--input", path, "--output", tmp_path / "data", "--duplicates", "exact", "--validation-fraction", 0)
    assert prepare(*words, "--stage", "start").code == 0
    (decided,) = (tmp_path / "data.work" / "decisions").iterdir()
    decided.rename(f"{decided}.partial-killed")
    endless = "SELECT count(*) FROM range(1000000) AS a, range(1000000) AS b WHERE a.range + b.range = -1;"
    monkeypatch.setattr(duplicate_search, "EXACT", f"{endless} {duplicate_search.EXACT}")
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGTERM])
    timer.start()
    begin = time.monotonic()
    result = prepare(*words)
    timer.join()
    assert result.code == 128 + signal.SIGTERM and "stopped by SIGTERM" in result.err
    assert time.monotonic() - begin < 20 and list(decided.parent.iterdir()) == []
    monkeypatch.undo()
    assert prepare(*words).code == 0
