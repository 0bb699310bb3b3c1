"""Exit statuses of the commands of this package."""

import sys
from collections.abc import Callable

from data_pipeline.errors import DataError
from data_pipeline.stop_signals import Stopped, raise_stopped


def exit_status(command: Callable[[], None], after_failure: Callable[[], None] = lambda: None) -> int:
    """Run a command: 0, 2 after an error, which is printed, or 128 + N when signal N stopped it.

    Args:
        after_failure: called in the last two cases, after the message.
    """
    try:
        with raise_stopped():
            command()
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        after_failure()
        return 2
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        after_failure()
        return 128 + stopped.signal_number
    return 0
