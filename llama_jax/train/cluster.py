"""Joining the processes of a cluster to one program: `jax.distributed`, when asked.

join(Cluster())                                       # a TPU pod, SLURM, GKE, Open MPI
join(Cluster("10.0.0.1:8476", processes=2, process=1))  # anywhere else
"""

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llama_jax.errors import UserError

# jax ends a process whose partner never came with a core dump; so long later than our one line.
LATER = 30
ENVIRONMENT = {
    "coordinator": "LLAMA_JAX_COORDINATOR",
    "processes": "LLAMA_JAX_PROCESSES",
    "process": "LLAMA_JAX_PROCESS_ID",
    "timeout": "LLAMA_JAX_JOIN_TIMEOUT",
    "heartbeat": "LLAMA_JAX_HEARTBEAT_TIMEOUT",
}


@dataclass(frozen=True)
class Cluster:
    """The processes that make up one program; what is None is found as jax finds it.

    Attributes:
      coordinator: "host:port" of process 0, where the others come to.
      processes: how many there are.
      process: which of them this is, from 0.
      timeout: seconds within which all must come.
      heartbeat: seconds of silence after which a process counts as dead, and all others end.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    timeout: int | None = None
    heartbeat: int | None = None

    def __post_init__(self):
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdigit():
                raise UserError(
                    f"coordinator {self.coordinator!r}: expected HOST:PORT, e.g. 10.0.0.1:8476"
                )
        if self.processes is not None and self.processes < 1:
            raise UserError(f"{self.processes} processes: expected 1 or more")
        if self.process is not None and not 0 <= self.process < (self.processes or sys.maxsize):
            raise UserError(
                f"process id {self.process} of {self.processes}: they are counted from 0"
            )
        for name, seconds in {"join": self.timeout, "heartbeat": self.heartbeat}.items():
            if seconds is not None and seconds < 1:
                raise UserError(f"a {name} timeout of {seconds} s: expected 1 or more")

    def completed(self) -> "Cluster":
        """With what is None taken from the environment, and the time-outs from here.

        Raises:
          UserError: a variable that is no number, or none that can be.
        """
        found = {}
        for field, variable in ENVIRONMENT.items():
            text = os.environ.get(variable)
            if getattr(self, field) is not None or not text:
                continue
            if field != "coordinator" and not text.isdigit():
                raise UserError(f"{variable}={text!r}: expected a whole number")
            found[field] = text if field == "coordinator" else int(text)
        full = replace(self, **found)
        # Neither is 0 here: that is refused above.
        return replace(full, timeout=full.timeout or 300, heartbeat=full.heartbeat or 100)


def join(cluster: Cluster) -> None:
    """Waits until all processes are here; afterwards `jax.devices()` are those of all.

    If they are not all here in time, the process says so and ends with status 2.

    Raises:
      UserError: nothing says where the others are.
    """
    import jax

    full = cluster.completed()
    assert full.timeout is not None and full.heartbeat is not None
    alarm = threading.Timer(full.timeout, _give_up, (full,))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            full.coordinator,
            full.processes,
            full.process,
            initialization_timeout=full.timeout + LATER,
            heartbeat_timeout_seconds=full.heartbeat,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the processes cannot be joined ({reason[:200]}); give --coordinator HOST:PORT "
            "--processes N --process-id I, or start it where jax knows the cluster (a TPU pod, "
            "SLURM, GKE, Open MPI)"
        ) from None
    finally:
        alarm.cancel()


def _give_up(cluster: Cluster) -> None:
    """Ends this process with the reason; jax itself would wait on, and then abort."""
    from jax._src import distributed  # where an address that jax found is kept

    address = cluster.coordinator or distributed.global_state.coordinator_address or "unknown"
    count = cluster.processes or distributed.global_state.num_processes
    if _answers(address):
        what = f"not all of {count or 'the'} processes came to the coordinator at {address}"
    else:
        what = f"no coordinator answers at {address}"
    advice = "start the same command for every process id, with the address of process 0"
    print(f"llama-jax: {what} within {cluster.timeout} s; {advice}", file=sys.stderr, flush=True)
    os._exit(2)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def member(cluster: Cluster) -> Iterator[None]:
    """Within the block this process is one of the cluster.

    An error that the others do not know of ends it at once: an orderly end would wait for them, and
    they for it. They notice by its missing heartbeat.
    """
    from llama_jax.train.processes import Together, several

    join(cluster)
    try:
        yield
    except Together:
        raise
    except Exception as error:
        if not several():
            raise
        if isinstance(error, UserError):
            print(f"llama-jax: {' '.join(str(error).split())}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 1)
