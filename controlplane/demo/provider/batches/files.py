"""The files of one upstream: kept within a number of bytes, the oldest of which are forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from controlplane.demo.provider.problems import Problem

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_LIST_MAX = 10_000
Document = dict[str, object]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file and what is said about it."""

    id: str
    created_s: int
    filename: str
    purpose: str
    content: bytes

    def described(self) -> Document:
        """The file object."""
        return {
            "object": "file",
            "id": self.id,
            "purpose": self.purpose,
            "filename": self.filename,
            "bytes": len(self.content),
            "created_at": self.created_s,
            "expires_at": None,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """Keeps files and finds them again."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._files: OrderedDict[str, StoredFile] = OrderedDict()
        self.kept_bytes = 0
        self.forgotten = 0  # because there was no room

    def keep(self, file: StoredFile) -> None:
        """Remembers a file. Raises Problem if it is too large to be kept at all."""
        if len(file.content) > self._bytes_max:
            raise Problem(413, "Your organization has exceeded its file storage quota.", code="quota_exceeded")
        self._files[file.id] = file
        self.kept_bytes += len(file.content)
        while self.kept_bytes > self._bytes_max:
            _, oldest = self._files.popitem(last=False)
            self.kept_bytes -= len(oldest.content)
            self.forgotten += 1

    def find(self, file_id: str) -> StoredFile:
        """A file. Raises Problem."""
        found = self._files.get(file_id)
        if found is None:
            raise Problem(404, f"No such File object: {file_id}", param="id")
        return found

    def delete(self, file_id: str) -> Document:
        """Forgets a file. Raises Problem."""
        self.kept_bytes -= len(self.find(file_id).content)
        del self._files[file_id]
        return {"object": "file", "id": file_id, "deleted": True}

    def listed(self, query: dict[str, str]) -> Document:
        """A page of the files, the newest first. Raises Problem."""
        wanted = query.get("purpose")
        found = [file.described() for file in self._files.values() if wanted in (None, file.purpose)]
        return page(found if query.get("order") == "asc" else found[::-1], query, limit=_LIST_MAX, limit_max=_LIST_MAX)


def page(items: list[Document], query: dict[str, str], *, limit: int, limit_max: int) -> Document:
    """A part of a list that is in its order already. Raises Problem."""
    said = query.get("limit", str(limit))
    if not said.isdigit() or not 1 <= int(said) <= limit_max:
        raise Problem(400, f"Invalid 'limit': expected an integer between 1 and {limit_max}.", param="limit")
    ids = [item["id"] for item in items]
    start = ids.index(query["after"]) + 1 if query.get("after") in ids else 0
    shown = items[start : start + int(said)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + int(said) < len(items),
    }
