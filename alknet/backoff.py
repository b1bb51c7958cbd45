"""How long to wait before trying again: longer each time, up to a cap, and never for exactly as long as others.

Pure: whoever uses it sleeps, and brings the random numbers.
"""

import random
from typing import Final

__all__ = ["Backoff"]

FIRST_S: Final = 1.0
MOST_S: Final = 60.0
FACTOR: Final = 2.0


class Backoff:
    """The waits between tries of one thing, in seconds.

    The step begins at `first_s` and grows by `factor` with each wait, up to `most_s`. A wait is drawn evenly from the
    upper half of the step: what failed for many at once (a hub that was restarted) is otherwise tried again by all of
    them at the same moment, fails for that reason, and does so again after every step. The lower half is left out, so
    that nobody tries again at once. Raises `ValueError` for steps that are not positive or would shrink.
    """

    def __init__(
        self, *, rng: random.Random, first_s: float = FIRST_S, most_s: float = MOST_S, factor: float = FACTOR
    ) -> None:
        if not 0.0 < first_s <= most_s:
            raise ValueError(f"the first wait must be above 0 and at most {most_s:g} s, not {first_s:g} s")
        if factor < 1.0:
            raise ValueError(f"waits must not shrink: the factor is {factor:g}")
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._factor = factor
        self._step_s = first_s

    def next_s(self) -> float:
        """How long to wait now; the wait after that is drawn from the next step."""
        step_s = self._step_s
        self._step_s = min(step_s * self._factor, self._most_s)
        return step_s * (1.0 + self._rng.random()) / 2.0

    def reset(self) -> None:
        """It has worked: begin with the first step again."""
        self._step_s = self._first_s
