"""How a file is read, judged by its name. What is not known is refused: read as text, it would become a document of noise."""

import re
from pathlib import Path
from typing import Literal

from data_pipeline.errors import DataError
from data_pipeline.readers.input_files import InputFile

ReadAs = Literal["text", "jsonl", "parquet"]
Kind = Literal["lines", "text", "parquet", "dataset", "generated"]
KIND_OF: dict[ReadAs, Kind] = {"text": "text", "jsonl": "lines", "parquet": "parquet"}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMPRESSED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
JSON_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
TEXT_SUFFIXES = _words(
    # prose and markup
    ".txt .text .md .markdown .mdx .rst .adoc .org .tex .bib .sty .cls .html .htm .xhtml .xml .srt .vtt .wiki .po "
    # source code
    ".py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .hxx .inc .cu .cuh .m .mm .java .kt .kts .scala .groovy .js .jsx .mjs .cjs "
    ".ts .tsx .vue .svelte .css .scss .sass .less .go .rs .rb .php .pl .pm .lua .r .jl .swift .dart .cs .fs .vb .hs .ml .mli "
    ".ex .exs .erl .hrl .clj .cljs .lisp .el .scm .rkt .sql .sh .bash .zsh .fish .ps1 .bat .cmd .f .for .f90 .f95 .f03 .pas "
    ".d .nim .zig .cr .asm .s .v .sv .vhd .vhdl .lean .agda .proto .thrift .cmake .mk .gradle .tf "
    # settings and changes
    ".toml .yaml .yml .ini .cfg .conf .properties .diff .patch .log"
)

ARCHIVES = _words(".zip .tar .tgz .tbz .tbz2 .txz .tzst .7z .rar .jar")
COMPRESSIONS = _words(".lz4 .br .lzma .z .sz .snappy .lzo")
WEB_ARCHIVES = _words(".warc .wet .wat .arc")
TABLES = _words(".csv .tsv .xls .xlsx .ods .orc .avro")
ARROW_FILES = _words(".arrow .feather .ipc")
LAID_OUT = _words(".pdf .doc .docx .odt .rtf .epub .mobi .djvu .ppt .pptx")
SAY_HOW = "give it by path or by a pattern, with --as text, --as jsonl or --as parquet"
OR_AS_TEXT = ", or give it by path or by a pattern, with --as text"
REFUSED = (
    (ARCHIVES, "unpack the archive and give the folder"),
    (COMPRESSIONS, f"decompress it, or compress it as {', '.join(COMPRESSED_SUFFIXES)}"),
    (WEB_ARCHIVES, "extract the texts into a .jsonl or .parquet file, for example with datatrove"),
    (TABLES, f"convert the table to .parquet or .jsonl{OR_AS_TEXT}"),
    (ARROW_FILES, "give the folder that Dataset.save_to_disk wrote, or convert the file to .parquet"),
    (LAID_OUT, "extract its text into a .txt or .jsonl file"),
)
"""Suffixes that are refused, and what to do."""

DESCRIPTIONS = re.compile(
    r"(readme|licen[cs]es?|copying|checksums?)([-_].*)?|notice|citation|changelog|(md5|sha(1|224|256|384|512))(sums?)?"
)
CHECKSUM_SUFFIXES = _words(".md5 .sha1 .sha256 .sha512 .crc .asc .sig")
OTHER_NAMES = _words("_success _metadata _common_metadata dataset_info.json dataset_infos.json")


def file_kind(path: InputFile, read_as: ReadAs | None = None) -> Kind:
    """How a file is read.

    Args:
        read_as: how to read it if its suffix is none of JSON lines or Parquet. Archives are refused all the same.

    Raises:
        DataError: an archive, a compression that is not supported, or a suffix that does not say what the file holds.
    """
    inner = Path(path.stem) if is_compressed(path) else path
    suffix = inner.suffix.lower()
    shown = inner.suffix + path.suffix if inner != path else path.suffix
    for suffixes, advice in REFUSED:
        if suffix in suffixes and (read_as is None or suffixes in (ARCHIVES, COMPRESSIONS)):
            raise DataError(f"{path}: {shown} files cannot be read; {advice}")
    kind = _kind_of_suffix(inner.name, suffix)
    if read_as and kind in (None, "text"):
        kind = KIND_OF[read_as]
    if kind is None:
        what = f"the suffix {shown} does not say what it holds" if shown else "it has no suffix that says what it holds"
        raise DataError(f"{path}: {what}; {SAY_HOW}")
    if kind == "parquet" and is_compressed(path):
        raise DataError(f"{path}: Parquet files inside {path.suffix} cannot be read; decompress it")
    return kind


def without_as(why: str) -> str:
    """A reason of `file_kind`, for an option whose files `--as` does not apply to."""
    return why.replace(SAY_HOW, "rename it to .txt, .jsonl or .parquet").replace(OR_AS_TEXT, "")


def _kind_of_suffix(name: str, suffix: str) -> Kind | None:
    if suffix in JSON_SUFFIXES:
        return "lines"
    if suffix in PARQUET_SUFFIXES:
        return "parquet"
    return "text" if suffix in TEXT_SUFFIXES or describes_data(name) else None


def names_records(path: InputFile) -> bool:
    """Whether the suffix says that a file holds records: JSON lines or Parquet."""
    inner = Path(path.stem) if is_compressed(path) else path
    return inner.suffix.lower() in JSON_SUFFIXES | PARQUET_SUFFIXES


def describes_data(name: str) -> bool:
    """Whether a file stands beside data without being data: a README, a license, checksums, the mark of a finished job."""
    lower = name.lower()
    suffix = Path(lower).suffix
    if lower in OTHER_NAMES or suffix in CHECKSUM_SUFFIXES:
        return True
    return not names_records(Path(lower)) and DESCRIPTIONS.fullmatch(lower.partition(".")[0]) is not None


def is_compressed(path: InputFile) -> bool:
    """Whether a file has to be decompressed from its beginning, so that it cannot be cut into ranges."""
    return path.suffix.lower() in COMPRESSED_SUFFIXES
