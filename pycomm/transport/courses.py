"""Transfers that go on by steps: whoever waits advances them, and else a thread does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Any

Steps = Generator["Look | None", None, Any]
"""Yields wherever it has to wait for somebody; a Look where nobody will ring."""


class Look:
    """Something that has to be looked at often, from its making until `end`.

    Args:
        note: is told +1 now and −1 at the end.
    """

    def __init__(self, note: Callable[[int], None]):
        self._note: Callable[[int], None] | None = note
        note(1)

    def end(self) -> None:
        """Look no more; also by who gives up what it was for."""
        note, self._note = self._note, None
        if note is not None:
            note(-1)


class Course:
    """A transfer under way, by any thread.

    Args:
        steps: what it does.
        kind: what it does, in a word.
        context: the number of its communicator.
    """

    def __init__(self, steps: Steps, kind: str, context: int):
        self.kind = kind
        self.context = context
        self.finished = False
        self._steps = steps
        self._look: Look | None = None
        self._turn = threading.Lock()
        self._result: Any = None
        self._error: BaseException | None = None

    def advance(self) -> bool:
        """Go on as far as that is possible now; say whether it is finished."""
        if not self.finished and self._turn.acquire(blocking=False):
            try:
                self._advance()
            finally:
                self._turn.release()
        return self.finished

    def result(self) -> Any:
        """Return what the steps returned, or raise what they raised."""
        if self._error is not None:
            raise self._error
        return self._result

    def give_up(self) -> None:
        """Look no more at what the steps wait for; their memory stays."""
        if self._look is not None:
            self._look.end()

    def _advance(self) -> None:
        if self.finished:
            return
        try:
            self._look = next(self._steps)
        except StopIteration as end:
            self._result, self.finished = end.value, True
        except BaseException as error:
            self._error, self.finished = error, True
            if not isinstance(error, Exception):
                raise


class Background:
    """Advances courses on a thread, which ends when there has been none for a while.

    Args:
        pause: returns when there may be something to do.
    """

    LINGER_S = 1.0

    def __init__(self, pause: Callable[[], None]):
        self._pause = pause
        self._courses: list[Course] = []
        self._lock = threading.Lock()
        self._more = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, course: Course) -> None:
        """Advance a course from now on, until it is finished."""
        with self._lock:
            self._courses.append(course)
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="pycomm-device", daemon=True)
                self._thread.start()
        self._more.set()

    def stop(self) -> None:
        """End the thread: what there is goes on no more by itself."""
        with self._lock:
            self._stopped, thread = True, self._thread
        self._more.set()
        if thread is not None:
            thread.join()

    def advance(self) -> None:
        """Advance all of them."""
        with self._lock:
            courses = list(self._courses)
        if any([course.advance() for course in courses]):
            with self._lock:
                self._courses = [course for course in self._courses if not course.finished]

    def drop(self, which: Callable[[Course], bool]) -> list[Course]:
        """Give some up; return them."""
        with self._lock:
            dropped = list(filter(which, self._courses))
            self._courses = [course for course in self._courses if course not in dropped]
        for course in dropped:
            course.give_up()
        return dropped

    def any(self, which: Callable[[Course], bool]) -> bool:
        """Say whether there are such courses under way."""
        with self._lock:
            return any(map(which, self._courses))

    def _run(self) -> None:
        while self._has_more():
            self._pause()
            self.advance()

    def _has_more(self) -> bool:
        """Say whether there are courses, after waiting for some for a while."""
        end = time.monotonic() + self.LINGER_S
        while True:
            with self._lock:
                if self._courses and not self._stopped:
                    return True
                if self._stopped or time.monotonic() > end:
                    self._thread = None
                    return False
                self._more.clear()
            self._more.wait(self.LINGER_S)
