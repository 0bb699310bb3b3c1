"""Trainings side by side, each in a slot of its own, which decides its share of the machine. Imports no torch."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from pretrain.studies.processes import Runner
from pretrain.studies.trials import Trial

Result = TypeVar("Result")

POLL = 1.0
"""Seconds between looks at the running trainings."""


def side_by_side(
    work: Callable[[Trial, int], Result],
    trials: Sequence[Trial],
    run: Runner,
    jobs: int,
    show: Callable[[str], None],
    look: Callable[[Sequence[Trial]], None] = lambda running: None,
) -> list[Result]:
    """Call `work(trial, slot)` for these trainings, `jobs` at a time; returns the results in their order.

    Args:
        run: runs the commands of `work`.
        look: called with those that are running, at least every `POLL` seconds.

    Raises:
        Exception: of the first that failed, also shown at once. No further one starts; those that run are finished first.
        Stopped: a signal arrived, also while they are finished. They have ended after `run.stop`.
    """
    waiting, free = deque(trials), deque(range(jobs))
    futures: list[Future[Result]] = []
    running: dict[Future[Result], tuple[Trial, int]] = {}

    def go_on() -> None:
        """Fill the free slots and wait until one is free again. Raises what its training raised."""
        while waiting and free:
            place = waiting.popleft(), free.popleft()
            futures.append(pool.submit(work, *place))
            running[futures[-1]] = place
        ended, _ = wait(running, POLL, FIRST_COMPLETED)
        for future in ended:
            free.append(running.pop(future)[1])
            future.result()
        look([trial for trial, _ in running.values()])

    with ThreadPoolExecutor(jobs) as pool:
        try:
            try:
                while waiting or running:
                    go_on()
            except Exception as error:
                if running:
                    show(f"{error}\nfinishing those that run: {'; '.join(trial.name for trial, _ in running.values())}")
                wait(running)
                raise
        except BaseException:  # a signal at any moment; after another error nothing runs any more
            run.stop()
            raise
    return [future.result() for future in futures]
