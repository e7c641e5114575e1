"""From messages to the text that a model continues: the tokenizer's template, or a plain one where it has none."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from hsokv_ray.errors import ConfigError
from serve.calls import ChatMessage

PLAIN_STOP = "\nUser:"
"""Where a model without a template would go on to write what the user says next."""


def has_template(tokenizer: Any) -> bool:
    """Return whether `tokenizer` brings a template of its own."""
    return bool(getattr(tokenizer, "chat_template", None))


def render(tokenizer: Any, messages: Sequence[ChatMessage]) -> str:
    """Return the text of a chat, up to where the assistant speaks. Raises `ConfigError`: the template refuses it."""
    if not has_template(tokenizer):
        return render_plain(messages)
    values = [{"role": _role(each.role), "content": each.content} for each in messages]
    try:
        return tokenizer.apply_chat_template(values, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"the model's chat template does not take these messages: {cause}") from None


def render_plain(messages: Sequence[ChatMessage]) -> str:
    """Return `User: ...` and `Assistant: ...` lines, what a system message says before them."""
    parts = [_plain(message) for message in messages]
    return "\n".join([*parts, "Assistant:"])


def _plain(message: ChatMessage) -> str:
    role = _role(message.role)
    return f"{message.content}\n" if role == "system" else f"{role.capitalize()}: {message.content}"


def _role(role: str) -> str:
    return "system" if role == "developer" else role
