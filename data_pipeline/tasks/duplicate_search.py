"""Find the documents of a corpus that repeat earlier ones, by queries of DuckDB.

DuckDB keeps what exceeds its memory limit in files, so memory does not grow with the number of documents. The result is a
function of the signatures: it does not depend on the number of threads, the memory limit or the order of evaluation.

Documents are numbered by their task and their position in it, so a smaller number is earlier in the corpus. Near duplicates are
clusters: the connected components of the pairs of similar documents. In each band, a document is compared with the first and
with the previous document that have its key, so that the number of comparisons grows with the number of documents only, also
where many pages share a template.
"""

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray

from data_pipeline.dedup import BANDS, MIN_EQUAL_BYTES, SIGNATURE_BYTES, equal_bytes
from data_pipeline.errors import DataError, first_line

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT = "4GB"
# How often to look for signals during a query.
POLL_SECONDS = 1.0
# A document's number: its task in the high bits, its position in the task in the low ones.
POSITION_BITS = 32

DOCUMENTS = """
CREATE VIEW documents AS
SELECT (CAST(parse_filename(filename, true) AS BIGINT) << {position_bits}) | file_row_number AS id,
       * EXCLUDE (filename, file_row_number)
FROM read_parquet('{links}/*.parquet', filename = true, file_row_number = true)
"""
EXACT = """
CREATE TABLE exact AS
SELECT id, first FROM documents
JOIN (SELECT high, low, min(id) AS first FROM documents GROUP BY high, low HAVING count(*) > 1) USING (high, low)
WHERE id <> first
"""
PAIRS_OF_BAND = """
INSERT INTO pairs
WITH members AS (
    SELECT id, key, first FROM (SELECT id, {band} AS key FROM documents)
    JOIN (SELECT {band} AS key, min(id) AS first FROM documents GROUP BY key HAVING count(*) > 1) USING (key)
)
SELECT first, id FROM members WHERE id <> first
UNION
SELECT previous, id FROM (SELECT id, lag(id) OVER (PARTITION BY key ORDER BY id) AS previous FROM members)
WHERE previous IS NOT NULL
"""
SIMILAR_PAIRS = """
CREATE TABLE candidates AS SELECT DISTINCT a, b FROM pairs;
CREATE TABLE compared AS
SELECT id, signature FROM documents WHERE id IN (SELECT a FROM candidates UNION SELECT b FROM candidates);
CREATE TABLE similar_pairs AS
SELECT a, b FROM candidates JOIN compared AS x ON x.id = a JOIN compared AS y ON y.id = b
WHERE equal_bytes(x.signature, y.signature) >= {min_equal};
DROP TABLE compared; DROP TABLE candidates; DROP TABLE pairs;
CREATE TABLE links AS SELECT a, b FROM similar_pairs UNION ALL SELECT b, a FROM similar_pairs;
CREATE TABLE clusters AS SELECT DISTINCT a AS id, a AS first FROM links;
"""
# Every document takes the smallest number among those of its neighbours, then that of the document it points to, which
# doubles the distance that a number travels in a round.
SPREAD_NUMBERS = """
CREATE OR REPLACE TABLE spread AS
SELECT id, min(first) AS first FROM (
    SELECT id, first FROM clusters UNION ALL SELECT b, first FROM links JOIN clusters ON id = a
) GROUP BY id;
CREATE OR REPLACE TABLE next_clusters AS
SELECT s.id, least(s.first, t.first) AS first FROM spread AS s JOIN spread AS t ON t.id = s.first;
"""
CHANGED = "SELECT count(*) FROM clusters JOIN next_clusters AS n USING (id) WHERE clusters.first <> n.first"
OF_EXACT = "SELECT id, first, true AS is_exact FROM exact"
OF_CLUSTERS = """
SELECT c.id, c.first, e.id IS NOT NULL AS is_exact FROM clusters AS c LEFT JOIN exact AS e ON e.id = c.id
WHERE c.id <> c.first
"""
REPEATED = """
CREATE TABLE repeated AS
SELECT r.id, r.is_exact, d.file_range, d.place, r.first, f.file_range AS first_range, f.place AS first_place, f.high, f.low
FROM ({repeated}) AS r JOIN documents AS d ON d.id = r.id JOIN documents AS f ON f.id = r.first ORDER BY r.id
"""
OF_TASK = "SELECT * FROM repeated WHERE id >= ? AND id < ? ORDER BY id"
TOTALS = "SELECT count(*), count(DISTINCT first) FROM repeated WHERE id >= ?"


class RepeatedOfTask(NamedTuple):
    """The documents of a task that repeat earlier ones of the corpus, in order; each array is [n].

    Attributes:
        positions: among the documents of the task.
        is_exact: whether it has the text of an earlier document.
        ranges, places: index of its file range within the task, and its place there, see `data_pipeline.provenance`.
        first_tasks, first_ranges, first_places: the same of the first document of its cluster.
        first_digests: digest of that document, [n, 16].
    """

    positions: NDArray[np.int64]
    is_exact: NDArray[np.bool_]
    ranges: NDArray[np.uint32]
    places: NDArray[np.int64]
    first_tasks: NDArray[np.int64]
    first_ranges: NDArray[np.uint32]
    first_places: NDArray[np.int64]
    first_digests: NDArray[np.uint8]


class Repeated:
    """The documents of a corpus that repeat earlier ones."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        self._connection = connection

    def totals(self, first_task: int) -> tuple[int, int]:
        """How many there are in the tasks from `first_task` on, and how many different documents they repeat."""
        return self._connection.execute(TOTALS, [first_task << POSITION_BITS]).fetchone()

    def of_task(self, number: int) -> RepeatedOfTask:
        """Those of one task."""
        begin = number << POSITION_BITS
        found = self._connection.execute(OF_TASK, [begin, (number + 1) << POSITION_BITS]).fetchnumpy()
        digests = np.column_stack([found["high"], found["low"]]).astype(">u8").view(np.uint8).reshape(-1, 16)
        return RepeatedOfTask(
            positions=np.asarray(found["id"], np.int64) - begin,
            is_exact=np.asarray(found["is_exact"], bool),
            ranges=np.asarray(found["file_range"], np.uint32),
            places=np.asarray(found["place"], np.int64),
            first_tasks=np.asarray(found["first"], np.int64) >> POSITION_BITS,
            first_ranges=np.asarray(found["first_range"], np.uint32),
            first_places=np.asarray(found["first_place"], np.int64),
            first_digests=digests,
        )


@contextmanager
def find_repeated(signatures: Mapping[int, Path], near: bool, spill: Path, threads: int) -> Iterator[Repeated]:
    """Search all documents of a corpus.

    Args:
        signatures: number of each task -> its file of signatures: Parquet with the columns `high` and `low`, the halves of the
            documents' digests, `file_range` and `place`; for near duplicates also `band0` and so on and `signature`, see
            `near_keys`.
        near: whether to look for near duplicates as well as for exact ones.
        spill: folder for what exceeds the memory limit; removed at the end.

    Raises:
        DataError: DuckDB is not installed, or it failed, for example because the disk is full.
    """
    duckdb = _duckdb()
    spill.mkdir()
    # DuckDB takes [, * and ? in a name for a pattern: it sees the files by links with plain names.
    with TemporaryDirectory(prefix="duplicates-") as links:
        (Path(links) / "spill").symlink_to(spill.resolve())
        for number, path in signatures.items():
            (Path(links) / f"{number:08}.parquet").symlink_to(path.resolve())
        settings = {"memory_limit": MEMORY_LIMIT, "threads": threads, "temp_directory": f"{links}/spill"}
        try:
            with duckdb.connect(config={**settings, "preserve_insertion_order": False}) as connection:
                quoted = links.replace("'", "''")
                _run(connection, DOCUMENTS.format(links=quoted, position_bits=POSITION_BITS))
                _run(connection, EXACT)
                if near:
                    _find_clusters(connection)
                _run(connection, REPEATED.format(repeated=OF_CLUSTERS if near else OF_EXACT))
                yield Repeated(connection)
        except duckdb.Error as error:
            raise DataError(
                f"the search for duplicates failed: {first_line(error)} (DuckDB, with {MEMORY_LIMIT} of memory and "
                f"files in {spill}); finished tasks are kept"
            ) from error
        finally:
            shutil.rmtree(spill, ignore_errors=True)


def _find_clusters(connection: "duckdb.DuckDBPyConnection") -> None:
    """Make the table `clusters`: every document that is similar to another, and the first document of its cluster."""
    connection.create_function("equal_bytes", _equal_bytes, ["BLOB", "BLOB"], "INTEGER", type="arrow")
    _run(connection, "CREATE TABLE pairs (a BIGINT, b BIGINT)")
    for i in range(BANDS):
        _run(connection, PAIRS_OF_BAND.format(band=f"band{i}"))
    _run(connection, SIMILAR_PAIRS.format(min_equal=MIN_EQUAL_BYTES))
    changed = True
    while changed:
        _run(connection, SPREAD_NUMBERS)
        (changed,) = _run(connection, CHANGED).fetchone()
        _run(connection, "DROP TABLE clusters; ALTER TABLE next_clusters RENAME TO clusters")


def _run(connection: "duckdb.DuckDBPyConnection", query: str) -> "duckdb.DuckDBPyConnection":
    """Run a query in a thread: in the main one, DuckDB would replace the exception of a signal handler by its own."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(connection.execute, query)
        try:
            while not running.done():
                wait([running], POLL_SECONDS)  # with a limit: another thread may have received the signal
            return running.result()
        except BaseException:
            connection.interrupt()
            raise


def _equal_bytes(first: pyarrow.ChunkedArray, second: pyarrow.ChunkedArray) -> pyarrow.Array:
    return pyarrow.array(equal_bytes(_as_rows(first), _as_rows(second)))


def _as_rows(column: pyarrow.ChunkedArray) -> NDArray[np.uint8]:
    """Signatures as uint8 [n, SIGNATURE_BYTES]."""
    content = b"".join(column.to_pylist())
    return np.frombuffer(content, np.uint8).reshape(-1, SIGNATURE_BYTES)


def _duckdb() -> "type[duckdb]":
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise DataError("--duplicates needs DuckDB; install it with: pip install 'duckdb>=1.4'") from error
    return duckdb
