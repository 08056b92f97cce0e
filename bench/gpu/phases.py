"""Run phases one after the other within a deadline: failures are noted, phases without time are left out."""

import faulthandler
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.gpu.session import Session

_GRACE_SECONDS = 10.0
"""Time after the deadline in which a phase may still end by itself."""


@dataclass(frozen=True)
class Phase:
    """A part of the command."""

    name: str
    run: Callable[[Session], None]
    seconds: float
    """seconds at the published size on an H100, as far as known"""
    importance: int
    """1 is the highest; when time is short, less important phases are left out for more important later ones"""


def run_phases(session: Session, phases: Sequence[Phase]) -> bool:
    """Run the phases that there is time for; one that fails writes its traceback, and the next goes on.

    Returns:
        Whether all of the highest importance have been done.
    """
    outcomes: list[dict[str, object]] = []
    for number, phase in enumerate(phases):
        reserved = sum(later.seconds for later in phases[number + 1 :] if later.importance < phase.importance)
        outcome = _run(session, phase, reserved)
        outcomes.append(outcome)
        session.report.add("phases", outcomes)
        session.report.say(f"{phase.name}: {outcome['outcome']} ({outcome['seconds']:.1f} s)")
    return all(one["outcome"] == "done" for one, phase in zip(outcomes, phases, strict=True) if phase.importance == 1)


def _run(session: Session, phase: Phase, reserved: float) -> dict[str, object]:
    left = session.deadline.left() - reserved
    if left < phase.seconds / 2:
        return {"name": phase.name, "seconds": 0.0, "outcome": f"left out: {max(0.0, left):.0f} s were left for it"}
    session.report.say(f"{phase.name} …")
    started = time.monotonic()
    try:
        phase.run(session)
        outcome = "done"
    except Exception as error:
        session.report.say(traceback.format_exc())
        outcome = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
    return {"name": phase.name, "seconds": round(time.monotonic() - started, 2), "outcome": outcome}


def end_at_deadline(session: Session, on_end: Callable[[], None]) -> None:
    """End the process soon after the deadline, whatever it is doing; print its stack to standard error.

    A compiler or a kernel that hangs listens to no signal; all results so far are on disk.
    """

    def watch() -> None:
        while session.deadline.left() > -_GRACE_SECONDS:
            time.sleep(0.5)
        try:
            for child in session.children:
                child.kill()
            session.report.say("the time is over in the middle of a phase; the process ends here")
            faulthandler.dump_traceback(all_threads=True)
            on_end()
        finally:
            os._exit(3)

    threading.Thread(target=watch, daemon=True, name="deadline").start()
