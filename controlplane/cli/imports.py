"""Moving in: other proxies' configuration in our words."""

from __future__ import annotations

import os
from pathlib import Path

import click

from controlplane.catalog.from_litellm import BYTES_MAX, Fate, counted, import_litellm
from controlplane.cli.output import json_option, print_json, print_table, speaks_plainly
from controlplane.errors import ConfigError


@click.group("import")
def import_() -> None:
    """Other proxies' configuration in our words."""


@import_.command("litellm")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where to write it; shown unless set.",
)
@json_option
@speaks_plainly
def litellm(file: Path, output: Path | None, as_json: bool) -> None:
    """Reads a LiteLLM proxy's config.yaml; says what was mapped, approximated and refused."""
    text = _text_of(str(file))
    imported = import_litellm(text, file=str(file), environ=os.environ, text_of=_text_of)
    if output is not None:
        if output.exists():
            raise ConfigError.at(str(output), "it is there already; name another file or move it away")
        output.write_text(imported.text, encoding="utf-8")
    if as_json:
        print_json({"config": imported.text, "lines": imported.lines})
        return
    order = [Fate.REFUSED, Fate.APPROXIMATED, Fate.MAPPED]
    lines = sorted(imported.lines, key=lambda line: order.index(line.fate))
    print_table(
        "what became of each setting",
        ("fate", "theirs", "ours", "why"),
        [(line.fate.value, line.place, line.ours, line.reason) for line in lines],
    )
    said = ", ".join(f"{number} {fate.value}" for fate, number in counted(imported.lines))
    if output is None:
        click.echo(f"\n{imported.text}")
        click.echo(f"# {said}. Write it to a file with --output hephaestus.yaml.")
        return
    click.echo(f"\n{output}: {said}.")
    click.echo(f"Next: `hephaestus check-config {output}`, then `hephaestus keys create --tenant default`.")


def _text_of(path: str) -> str:
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        said = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError.at(path, f"it cannot be read: {said}") from error


COMMANDS = (import_,)
