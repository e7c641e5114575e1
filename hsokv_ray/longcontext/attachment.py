"""Give a model the retrieval attention, and take it back when the last user has gone."""

import threading
import weakref
from typing import Any

from hsokv_ray.longcontext.attention import base_of, register

_users: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Attachment:
    """While it is held, `model` attends through retrieval caches; with every other cache it attends as before."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.is_held = True
        with _lock:
            if not _users.get(model):
                model.set_attn_implementation(register(model.config._attn_implementation))
            _users[model] = _users.get(model, 0) + 1

    def release(self) -> None:
        """Let go; the last one gives the model its own implementation back. Letting go twice does nothing."""
        with _lock:
            if not self.is_held:
                return
            self.is_held = False
            _users[self.model] -= 1
            if not _users[self.model]:
                self.model.set_attn_implementation(base_of(self.model.config._attn_implementation))
