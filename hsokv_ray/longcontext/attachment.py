"""Give a model the retrieval attention, and take it back when the last user has gone."""

import itertools
import threading
import weakref
from typing import Any

from hsokv_ray.longcontext.attention import base_of, register

_users: "weakref.WeakKeyDictionary[Any, set[int]]" = weakref.WeakKeyDictionary()
"""Model -> numbers of the attachments that are held."""
_numbers = itertools.count()
_lock = threading.RLock()
"""The garbage collector may release an attachment in the very thread that is making another."""


class Attachment:
    """While it is held, `model` attends through retrieval caches; with every other cache it attends as before."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.is_held = True
        self._number = next(_numbers)
        with _lock:
            users = _users.setdefault(model, set())
            users.add(self._number)  # first, so that a release that comes in between leaves the model as it is
            if len(users) == 1:
                model.set_attn_implementation(register(model.config._attn_implementation))

    def release(self) -> None:
        """Let go; the last one gives the model its own implementation back. Letting go twice does nothing."""
        with _lock:
            if not self.is_held:
                return
            self.is_held = False
            _users[self.model].remove(self._number)
            if not _users[self.model]:
                self.model.set_attn_implementation(base_of(self.model.config._attn_implementation))
