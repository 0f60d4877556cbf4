"""Forms with files, as clients send them to the endpoints of audio and images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from controlplane.demo.provider.http import Request
from controlplane.demo.provider.problems import Problem

PARTS_MAX = 100
_BOUNDARY = re.compile(rb'boundary="?([^";]+)"?')
_NAME = re.compile(rb'[; ]name="([^"]*)"')
_FILENAME = re.compile(rb'filename="([^"]*)"')


@dataclass(frozen=True, slots=True)
class File:
    """A file in a form."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """The fields and the files of a form; a field that comes several times is a list."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[File]] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)

    def file(self, name: str) -> File:
        """The first file of a name. Raises Problem when there is none."""
        found = self.files.get(name) or self.files.get(f"{name}[]")
        if not found:
            raise Problem(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
        return found[0]


def read_form(request: Request) -> Form:
    """The form in the body of a request. Raises Problem when it is none."""
    content_type = request.headers.get(b"content-type", b"")
    boundary = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith(b"multipart/form-data") or boundary is None:
        raise Problem(400, "Could not parse multipart form")
    form = Form()
    parts = (b"\r\n" + request.body).split(b"\r\n--" + boundary[1])
    if len(parts) < 2 or not parts[-1].startswith(b"--") or len(parts) > PARTS_MAX + 2:
        raise Problem(400, "Could not parse multipart form")
    for part in parts[1:-1]:
        head, separator, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not separator or name is None:
            raise Problem(400, "Could not parse multipart form")
        _add(form, name[1].decode(errors="replace"), head, content)
    return form


def _add(form: Form, name: str, head: bytes, content: bytes) -> None:
    filename = _FILENAME.search(head)
    if filename is not None:
        form.files.setdefault(name, []).append(File(filename[1].decode(errors="replace"), content))
        return
    value = content.decode(errors="replace")
    form.fields[name] = value
    form.lists.setdefault(name.removesuffix("[]"), []).append(value)
