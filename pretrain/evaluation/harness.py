"""Adapter for EleutherAI's lm-eval, version 0.4.13 or newer (optional): its requests, answered by a masked diffusion model.

Log-likelihoods are those of `pretrain.evaluation.likelihood`, by default the Monte-Carlo bound with the same random numbers for
all continuations of a context; generation uses the samplers. Every rank gives all requests to this adapter, and the ranks share
the work inside; a request's answer depends on its text and on which of its repeats it is, not on the other requests.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from pretrain.errors import UserError
from pretrain.evaluation.item_files import ItemFile
from pretrain.evaluation.likelihood import Text, rolling
from pretrain.evaluation.sampler_settings import SamplerSettings
from pretrain.evaluation.tasks.documents import WINDOW_BITS
from pretrain.evaluation.tasks.rows import answer_row, nats_of_texts
from pretrain.evaluation.tasks.runner import run_task
from pretrain.evaluation.tasks.task import Record, TaskModel

DEFAULT_ANSWER_LENGTH = 256
GROUP_BITS, KEY_BITS = 23, 60


@dataclass(frozen=True)
class _Request:
    """A request of lm-eval.

    Attributes:
        key: follows from its content.
        size: tokens of its longest row.
        content: what `_Requests.compute` needs.
    """

    key: int
    size: int
    content: Any


@dataclass(frozen=True)
class _Requests:
    """What `run_task` needs of a task."""

    name: str
    of_key: dict[int, _Request]
    compute: Callable[[Sequence[Any]], list[Any]]

    @property
    def sizes(self) -> dict[int, int]:
        return {key: request.size for key, request in self.of_key.items()}

    def run(self, model: TaskModel, items: Sequence[int]) -> list[Record]:
        answers = self.compute([self.of_key[item].content for item in items])
        return [{"item": item, "answer": answer} for item, answer in zip(items, answers, strict=True)]


class Tasks(TaskManager):
    """The tasks that lm-eval knows.

    Attributes:
        greedy: names of the loaded ones that use whether greedy decoding gives one of several continuations.
    """

    greedy: frozenset[str] = frozenset()

    def load(self, task_list: Any) -> Any:
        """Called by lm-eval, which sets the seeds before: some tasks shuffle their choices when they are loaded."""
        loaded = super().load(task_list)
        self.greedy = frozenset(name for name, task in loaded["tasks"].items() if "exact_match" in task.aggregation())
        return loaded


class DiffusionHarness(TemplateLM):
    """A model as lm-eval sees it.

    Args:
        model: the model and its sampler.
        method, masks: how likelihoods are computed, see `nats_of_texts`.
        tasks: from which the requests come.
        kept: answers of an earlier run, to which new ones are added; None on ranks other than the main one.
        say: prints progress.
    """

    def __init__(
        self,
        model: TaskModel,
        method: str,
        masks: int,
        tasks: Tasks,
        kept: ItemFile | None,
        say: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.model, self.method, self.masks = model, method, masks
        self._tasks, self._kept, self._say = tasks, kept, say

    @property
    def eot_token_id(self) -> int:
        """The end of a document. It stands before a text without context."""
        return self.model.tokenizer.eod_id

    @property
    def tokenizer_name(self) -> str:
        """Part of the names of lm-eval's caches."""
        return "loopmdm"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, without any special token."""
        return self.model.tokenizer.encode_batch([string])[0].tolist()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p of each continuation given its context, and whether greedy decoding gives it.

        The second is computed for documents with one continuation and for all of tasks that use it; else it is False.
        """
        pairs = defaultdict(set)
        for request in requests:
            pairs[request.task_name, request.doc_id].add(request.args)
        made = []
        for request in requests:
            alone = len(pairs[request.task_name, request.doc_id]) == 1
            one = (*request.args, alone or request.task_name in self._tasks.greedy)
            key, text = _number(KEY_BITS, "loglikelihood", *one), self._continuation(*request.args)
            made.append(_Request(key, len(text.tokens), (key, text, one)))
        return [(log_p, bool(greedy)) for log_p, greedy in self._answers("loglikelihood", made, self._loglikelihoods)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of each whole text, in windows of half a row with as much context as fits."""
        texts = [request.args[0] for request in requests]
        made = [
            _Request(_number(KEY_BITS, "rolling", text), self.model.seq_len, (text, self._windows(text)))
            for text in texts
        ]
        return self._answers("loglikelihood_rolling", made, self._rolling)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each context, up to one of the texts that end it, by the sampler of the command line.

        Of the request's options `until`, `max_gen_toks`, `do_sample`, `temperature` and `top_p` count. A document's request that
        comes again, as lm-eval's `repeats` has it, is answered anew.
        """
        made, asked = [], Counter()
        for request in requests:
            context, options = request.args
            key = _number(KEY_BITS, "generate_until", context, sorted(options.items(), key=str), request.idx)
            same = (request.task_name, request.doc_id, key)
            if asked[same]:
                key = _number(KEY_BITS, "repeat", key, asked[same])
            asked[same] += 1
            row, given = self._prompt_row(context, options)
            made.append(_Request(key, len(row), (key, row, given, options)))
        return self._answers("generate_until", made, self._generated)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("loglikelihood does not go through it")

    def _answers(
        self, kind: str, requests: Sequence[_Request], compute: Callable[[Sequence[Any]], list[Any]]
    ) -> list[Any]:
        """The answers to requests. Those with one key have one answer."""
        task = _Requests(f"lm-eval {kind}", {request.key: request for request in requests}, compute)
        records = run_task(task, self.model, list(task.of_key), self._kept, self._say)
        found = {record["item"]: record["answer"] for record in records}
        return [found[request.key] for request in requests]

    def _continuation(self, context: str, continuation: str) -> Text:
        given, tokens = [self.eot_token_id], []
        if context:
            given, tokens = self._encode_pair(context, continuation)
        else:
            tokens = self.tok_encode(continuation)
        room = self.model.seq_len - len(tokens)
        if room < 0:
            raise UserError(
                f"lm-eval: a continuation has {len(tokens)} tokens, more than the {self.model.seq_len} of a row: "
                f"{continuation[:60]!r}"
            )
        return Text.after(given[max(0, len(given) - room) :] if room else [], tokens)

    def _loglikelihoods(self, contents: Sequence[Any]) -> list[tuple[float, bool]]:
        texts = [text for _, text, _ in contents]
        groups = [_number(GROUP_BITS, context) << WINDOW_BITS for _, _, (context, *_) in contents]
        nats = nats_of_texts(self.model, texts, groups, self.method, self.masks)
        asked = [i for i, (*_, (*_, wanted)) in enumerate(contents) if wanted and len(texts[i].targets)]
        numbers = [contents[i][0] for i in asked]
        greedy = dict(zip(asked, self._is_greedy([texts[i] for i in asked], numbers), strict=True))
        return [(-value, greedy.get(i, False)) for i, value in enumerate(nats.tolist())]

    def _is_greedy(self, texts: Sequence[Text], numbers: Sequence[int]) -> list[bool]:
        """Whether the sampler fills in these tokens at temperature 0."""
        if not texts:
            return []
        rows = []
        for text in texts:
            row = text.tokens.copy()
            row[text.targets] = self.model.tokenizer.mask_id
            rows.append(row.tolist())
        greedy = self._with(temperature=0.0, top_k=None, top_p=None, stop=False)
        samples = greedy.fill(rows, numbers)
        return [sample.tokens == text.tokens.tolist() for sample, text in zip(samples, texts, strict=True)]

    def _windows(self, text: str) -> list[Text]:
        tokens = self.tok_encode(text)
        if not tokens:
            return []
        first, *others = rolling([self.eot_token_id, *tokens], self.model.seq_len, max(1, self.model.seq_len // 2))
        return [Text(first.tokens, first.targets[1:]), *others]

    def _rolling(self, contents: Sequence[Any]) -> list[float]:
        owners = [i for i, (_, windows) in enumerate(contents) for _ in windows]
        flat = [window for _, windows in contents for window in windows]
        groups = [
            (_number(GROUP_BITS, text) << WINDOW_BITS) + i for text, windows in contents for i in range(len(windows))
        ]
        sums = [0.0] * len(contents)
        if flat:
            nats = nats_of_texts(self.model, flat, groups, self.method, self.masks)
            for owner, value in zip(owners, nats.tolist(), strict=True):
                sums[owner] -= value
        return sums

    def _prompt_row(self, context: str, options: dict[str, Any]) -> tuple[list[int], int]:
        """The row of a context, cut at its beginning to leave room for the answer; and the tokens of the context in it."""
        length = int(options.get("max_gen_toks", min(DEFAULT_ANSWER_LENGTH, self.model.seq_len // 2)))
        ids = self.tok_encode(context) or [self.eot_token_id]
        room = self.model.seq_len - length
        if room < 1:
            raise UserError(
                f"lm-eval: max_gen_toks {length} leaves no room for a context in the {self.model.seq_len} of a row"
            )
        given = ids[-room:]
        row = answer_row(given, length, self.model.seq_len, self.model.tokenizer.mask_id, "lm-eval")
        return row, len(given)

    def _generated(self, contents: Sequence[Any]) -> list[str]:
        """Requests with the same way of drawing go through the sampler together."""
        answers: dict[int, str] = {}
        drawings = {key: _drawing(options) for key, _, _, options in contents}
        for drawing in sorted(set(drawings.values()), key=str):
            same = [content for content in contents if drawings[content[0]] == drawing]
            model = self._with(**dict(drawing), stop=True)
            samples = model.fill([row for _, row, _, _ in same], [key for key, *_ in same])
            for (key, _, given, options), sample in zip(same, samples, strict=True):
                answers[key] = _cut(self.model.tokenizer.decode(sample.tokens[given:]), options)
        return [answers[key] for key, *_ in contents]

    def _with(self, **changes: Any) -> TaskModel:
        settings: SamplerSettings = replace(self.model.sampler, **changes)
        return replace(self.model, sampler=settings)


def _drawing(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Settings of the sampler that a request's options ask for."""
    if not options.get("do_sample", False) or options.get("temperature") == 0:
        return (("temperature", 0.0), ("top_k", None), ("top_p", None))
    return tuple((name, float(options[name])) for name in ("temperature", "top_p") if options.get(name) is not None)


def _cut(text: str, options: dict[str, Any]) -> str:
    """The text before the first of the texts that end it."""
    until = options.get("until") or []
    for end in [until] if isinstance(until, str) else until:
        text = text.partition(end)[0] if end else text
    return text


def _number(bits: int, *values: Any) -> int:
    """A number that identifies values."""
    digest = hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)
