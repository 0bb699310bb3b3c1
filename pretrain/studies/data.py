"""The data of a study. Imports no torch."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from data_pipeline.dataset.blend import is_prepared
from pretrain.studies.definition import Corpus
from pretrain.studies.local_files import files_of_input
from pretrain.studies.processes import Runner, require_success
from pretrain.studies.unit import owned


def prepare_data(corpus: Corpus, parent: Path, run: Runner, show: Callable[[str], None]) -> Path:
    """The prepared folder of a corpus, made with `loopmdm prepare` if it is not there. Other options have another folder.

    Raises:
        UserError, DataError: it cannot be prepared.
    """
    folder = corpus_folder(corpus, parent)
    with owned(parent, lambda: not run.stopping):
        if not is_prepared(folder):
            words = ["prepare", "--input", *corpus.input, "--output", str(folder)]
            words += ["--validation-fraction", str(corpus.validation_fraction)]
            words += ["--seq-len", str(corpus.seq_len)] if corpus.seq_len else []
            words += ["--vocab-size", str(corpus.vocab_size)] if corpus.vocab_size else []
            log = folder.with_suffix(".log")
            show(f"preparing the data, {' '.join(corpus.input)}; log: {log}")
            require_success(run(words, log, 0), f"preparing {' '.join(corpus.input)}", log)
    return folder


def corpus_folder(corpus: Corpus, parent: Path) -> Path:
    """Where the data is prepared: changed local files have another folder.

    Raises:
        UserError, DataError: an input is not there.
    """
    name = "".join(c if c.isalnum() else "_" for c in corpus.input[0].rstrip(":"))
    files = [state for value in corpus.input for state in files_of_input(value)]
    content = corpus.model_dump() | ({"files": files} if files else {})
    digest = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return parent / f"{name[-40:]}-{digest[:8]}"
