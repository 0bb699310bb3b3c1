"""A look at some texts of a corpus before the work, in every process the same."""

from collections.abc import Iterator, Sequence
from itertools import islice

from data_pipeline.documents import Document
from data_pipeline.errors import DataError, ReadError
from data_pipeline.manifest import TextLoss
from data_pipeline.rejects import RecordCounter
from data_pipeline.tasks.options import Options
from data_pipeline.tasks.reading import task_documents
from data_pipeline.tasks.task import Task
from data_pipeline.tokenizers.text_loss import text_loss
from data_pipeline.tokenizers.tokenizers import Tokenizer

TASKS = 8
# Of each task, and of one document, so that others are seen too.
TASK_CHARS = 1 << 18
DOCUMENT_CHARS = 1 << 16


def first_texts(tasks: Sequence[Task], options: Options) -> list[str]:
    """The beginnings of the first documents of a few tasks in equal distances. What cannot be read is left to the tasks."""
    chosen = [tasks[i * len(tasks) // TASKS] for i in range(TASKS)] if len(tasks) > TASKS else tasks
    return [text for task in chosen for text in _of_task(task, options)]


def loss_of_first_texts(tokenizer: Tokenizer, tasks: Sequence[Task], options: Options) -> TextLoss | None:
    """What a tokenizer loses of them, None for nothing."""
    return None if tokenizer.is_lossless else text_loss(tokenizer, first_texts(tasks, options))


def _of_task(task: Task, options: Options) -> Iterator[str]:
    left = TASK_CHARS
    documents = task_documents(task, RecordCounter(), options.text_key, options.filters)
    try:
        for document in documents:
            yield (text := _beginning(document))
            left -= len(text)
            if left <= 0:
                return
    except (DataError, ReadError):
        return


def _beginning(document: Document) -> str:
    return "".join(islice(document.chunks, 1))[:DOCUMENT_CHARS]
