"""How many replicas an actor wants, by KEDA's formula. Pure: whoever asks says what waits and what time it is."""

from __future__ import annotations

import math
from collections import deque

from oncue.manifests import Manifest, Scaling


class Scale:
    """One actor's wish: a replica for each `queue_length` messages, between `least` and `most`.

    From none to the first it follows at once, further up at most each `polling` seconds. It goes down to what was wanted
    at most within the last `cooldown` seconds, and to `least` when nothing has waited for as long.
    """

    def __init__(self, scaling: Scaling, replicas: int) -> None:
        self._scaling = scaling
        self._fixed = replicas
        self._polls: deque[tuple[float, int]] = deque()
        self._next = -math.inf
        self._active = -math.inf
        self._current = scaling.least

    @classmethod
    def of(cls, manifest: Manifest) -> Scale:
        """As a manifest says."""
        return cls(manifest.scaling, manifest.replicas)

    @property
    def elastic(self) -> bool:
        """Whether the number depends on what waits."""
        return self._scaling.enabled

    def wanted(self, waiting: int | None, now: float) -> int:
        """The number of replicas for so many messages that are ready or in work; None: the broker cannot tell."""
        scaling = self._scaling
        if not scaling.enabled:
            return self._fixed
        asked = 1 if waiting is None else math.ceil(waiting / scaling.queue_length)
        if asked:
            self._active = now
        elif now - self._active >= scaling.cooldown:
            self._polls.clear()
            self._current = scaling.least
            return self._current
        if now >= self._next or not self._current:
            self._next = now + scaling.polling
            self._polls.append((now, min(max(asked, scaling.least), scaling.most)))
        while len(self._polls) > 1 and now - self._polls[0][0] >= scaling.cooldown:
            self._polls.popleft()
        self._current = max(1, scaling.least, *(count for _, count in self._polls))
        return self._current
