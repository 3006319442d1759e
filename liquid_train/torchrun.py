"""torchrun without its own log and trace: `python -m liquid_train.torchrun [its arguments]` starts ranks on this
machine, and says in one line which of them failed, where and how."""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from liquid_train.distributed.exit_status import LOST_PEER, MAY_HELP
from liquid_train.distributed.hang_detection import EXIT_STATUS
from liquid_train.distributed.heartbeat import HOST

# of ranks that have told in one line why they end, or that were killed from outside; any other has left a traceback
TOLD = (2, EXIT_STATUS, LOST_PEER, -signal.SIGKILL, -signal.SIGTERM)


def first_failure(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that failed first; one that torchrun itself ended (SIGTERM) only where there is no other."""
    return min(failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp, item[0]))


def describe_failure(rank: int, failure: ProcessFailure) -> str:
    """For example "rank 1 on node7 ended with exit code 1 (its message is above)"."""
    if failure.exitcode < 0:
        hint = "; often it ran out of memory, see the kernel's log" if failure.exitcode == -signal.SIGKILL else ""
        return f"rank {rank} on {HOST} was killed by {signal.Signals(-failure.exitcode).name}{hint}"
    return f"rank {rank} on {HOST} ended with exit code {failure.exitcode} (its message is above)"


def end_others_within(seconds: int) -> None:
    """Once a rank has failed, give the others so long to end: they wait for it in a collective, and torch would leave
    them there for 30 s, whatever --shutdown-timeout says."""
    close = PContext.close

    def close_soon(self: PContext, death_sig: signal.Signals | None = None, timeout: int = seconds) -> None:
        close(self, death_sig, timeout)

    PContext.close = close_soon  # type: ignore[method-assign]


def main(arguments: list[str]) -> int:
    """Exit status: 0; 2 where a rank has told in one line what was wrong; 1 after a rank's traceback or crash; either
    with MAY_HELP, unless it was the user's mistake."""
    logging.disable(logging.CRITICAL)  # torchrun would repeat what the line below says, with its own trace
    parsed = parse_args(arguments)
    if parsed.shutdown_timeout is not None:
        end_others_within(parsed.shutdown_timeout)
    try:
        run(parsed)
    except ChildFailedError as error:
        rank, failure = first_failure(error.failures)
        print(f"liquid train: {describe_failure(rank, failure)}", file=sys.stderr)
        return (2 if failure.exitcode in TOLD else 1) | (0 if failure.exitcode == 2 else MAY_HELP)
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
