"""The few fields of a request that decide something: a view, not the document. The bytes are kept as they came."""

from __future__ import annotations

import msgspec

from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.operations import OPERATIONS

LABEL_CHARS_MAX = 256


def label(text: str, chars_max: int = LABEL_CHARS_MAX) -> str:
    """A text that somebody else chose, as it may stand in a record: printable, of bounded length."""
    if len(text) > chars_max:
        text = text[:chars_max]
    return text if text.isprintable() else "".join(character for character in text if character.isprintable())


def read_view(operation: str, body: bytes) -> RequestView:
    """The view of a request, read by its operation's dialect.

    Raises Malformed, with what to correct, if the body is not JSON in UTF-8 or a field that we read is not valid.
    """
    try:
        row = OPERATIONS[operation]
        assert row.dialect is not None, "only operations with a body are decoded"  # noqa: S101
        if not body.isascii() and not row.client_content_type:
            body.decode()
        return row.dialect.read_view(body)
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except msgspec.ValidationError as error:
        text = str(error)
        param = _param_of(text)
        raise Malformed(_wrong_with(text, param), param) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"the body is not valid JSON: {error}") from error


def _param_of(message: str) -> str | None:
    """The field that a validation error names, as in ``... - at `$.n` `` or ``missing required field `model` ``."""
    if "required field `" in message:
        return message.split("required field `", 1)[1].split("`", 1)[0]
    if "`$." in message:
        return message.rsplit("`$.", 1)[1].split("`", 1)[0]
    return None


def _wrong_with(message: str, param: str | None) -> str:
    """What a validation error says, in words that begin with what is wrong."""
    if "required field `" in message:
        return f"`{param}` is missing"
    if param is None:
        return f"the body must be a JSON object: {message}"
    return f"`{param}`: {message.partition(' - at `')[0]}"
