"""How the embedded engine is configured: two files that are written anew at each start, readable by their owner alone.

The engine has one user, and two ways to be it. Every handle begins in the role `owner`, which may do everything. A handle that gives
this role up (`SET ROLE NONE`) is left with `SELECT ON hephaestus.*`: the engine itself then refuses writes, other tables and every
table function that reaches files or the network. The read-only door hands out only such handles.
"""

from __future__ import annotations

import os
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

DATABASE = "hephaestus"
CONFIG_DIR = "engine"

_USERS = f"""<clickhouse>
  <profiles><default/></profiles>
  <quotas><default/></quotas>
  <roles><owner><grants><query>GRANT ALL ON *.*</query></grants></owner></roles>
  <users>
    <default>
      <no_password/>
      <profile>default</profile>
      <quota>default</quota>
      <networks><ip>::1</ip><ip>127.0.0.1</ip></networks>
      <grants><query>GRANT SELECT ON {DATABASE}.*</query><query>GRANT owner</query></grants>
    </default>
  </users>
</clickhouse>
"""

_CONFIG = """<clickhouse>
  <logger><level>none</level></logger>
  <users_config>{users}</users_config>
  <user_directories><users_xml><path>{users}</path></users_xml></user_directories>
  <user_files_path>{nowhere}</user_files_path>
  <max_server_memory_usage>{memory_bytes}</max_server_memory_usage>
  <mark_cache_size>{mark_cache_bytes}</mark_cache_size>
  <uncompressed_cache_size>0</uncompressed_cache_size>
  <background_pool_size>2</background_pool_size>
  <background_schedule_pool_size>4</background_schedule_pool_size>
  <background_move_pool_size>1</background_move_pool_size>
  <background_fetches_pool_size>1</background_fetches_pool_size>
  <background_common_pool_size>2</background_common_pool_size>
  <merge_tree><max_bytes_to_merge_at_max_space_in_pool>10737418240</max_bytes_to_merge_at_max_space_in_pool></merge_tree>
</clickhouse>
"""


class EngineLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the embedded engine as a whole."""

    memory_bytes_max: int = 4 * 1024 * 1024 * 1024
    mark_cache_bytes: int = 64 * 1024 * 1024


def write_config(data_dir: Path, limits: EngineLimits) -> Path:
    """Writes the engine's two files (mode 0600) below `data_dir` and returns the path of the first; safe to call again."""
    folder = (data_dir / CONFIG_DIR).resolve()
    nowhere = folder / "user_files"  # the only place that `file()` may name; always empty
    nowhere.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    users = folder / "users.xml"
    config = folder / "config.xml"
    _write_private(users, _USERS)
    _write_private(
        config,
        _CONFIG.format(
            users=escape(str(users)),
            nowhere=escape(str(nowhere)),
            memory_bytes=limits.memory_bytes_max,
            mark_cache_bytes=limits.mark_cache_bytes,
        ),
    )
    return config


def _write_private(path: Path, text: str) -> None:
    """Replaces a file in one step, so that nobody ever reads half of it."""
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)
