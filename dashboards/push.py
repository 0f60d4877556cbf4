"""Puts the boards into a running Grafana over its API, for installations that do not mount files."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec
from grafana_client.api import GrafanaApi
from grafana_client.client import GrafanaException

from dashboards.build import boards

FOLDER_UID = "hephaestus"
FOLDER_TITLE = "Hephaestus"
MESSAGE = "from dashboards as code"


class PushFailed(Exception):
    """Grafana did not take a board; the message says which and why, and holds no credential."""


def push(url: str, token: str, *, timeout_s: float = 10.0) -> list[str]:
    """Creates or replaces every board in the folder `Hephaestus`; blocks, and is safe to repeat. Returns the boards' addresses.

    token: of a service account that may edit dashboards. Raises PushFailed.
    """
    where = urlsplit(url).netloc.rpartition("@")[2]
    # Any: the client library has no types.
    grafana: Any = GrafanaApi.from_url(url, credential=token, timeout=timeout_s)
    try:
        known = {folder["uid"] for folder in grafana.folder.get_all_folders()}
        if FOLDER_UID not in known:
            grafana.folder.create_folder(FOLDER_TITLE, FOLDER_UID)
    except (GrafanaException, OSError) as error:
        raise PushFailed(f"the folder {FOLDER_TITLE!r} cannot be made at {where}: {error}") from error
    addresses = []
    for name, board in boards().items():
        body = {"dashboard": msgspec.to_builtins(board), "folderUid": FOLDER_UID, "overwrite": True, "message": MESSAGE}
        try:
            answer = grafana.dashboard.update_dashboard(body)
        except (GrafanaException, OSError) as error:
            raise PushFailed(f"{name} was not taken by {where}: {error}") from error
        addresses.append(f"{urlsplit(url).scheme}://{where}{answer['url']}")
    return addresses
