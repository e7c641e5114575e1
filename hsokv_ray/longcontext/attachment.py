"""Give a model the retrieval attention, and take it back when the last user has gone."""

import threading
import weakref
from typing import Any

from hsokv_ray.longcontext.attention import base_of, register

_users: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def attach(model: Any) -> None:
    """Let `model` attend through retrieval caches; with every other cache it attends as before."""
    with _lock:
        if not _users.get(model):
            model.set_attn_implementation(register(model.config._attn_implementation))
        _users[model] = _users.get(model, 0) + 1


def detach(model: Any) -> None:
    """Undo one `attach`; the last one gives the model its own implementation back."""
    with _lock:
        _users[model] = _users.get(model, 0) - 1
        if not _users[model]:
            model.set_attn_implementation(base_of(model.config._attn_implementation))
