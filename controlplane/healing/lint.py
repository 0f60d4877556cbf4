"""Reads playbooks and refuses bad ones, with file, line and what to do; nothing runs that did not pass here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path as FilePath

import msgspec

from controlplane.errors import ConfigError, Problem
from controlplane.healing.actions import ACTIONS, METRICS
from controlplane.healing.document import Document, Path, path_of, read_document
from controlplane.healing.gates import FACTS
from controlplane.healing.playbook import (
    Condition,
    Of,
    Playbook,
    Step,
    Validate,
    canonical,
    content_hash,
    decode_playbook,
    override,
)
from controlplane.healing.values import parse_value
from controlplane.settings import Autonomy

STEPS_MAX = 20
PLAYBOOKS_MAX = 200
TTL_S_MIN = 5.0
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(\w+)`")

Overrides = Mapping[str, Mapping[str, str | int | float | bool]]
"""By playbook id: single values below `spec` to replace, e.g. {"provider-outage-failover": {"validate.bake": "10s"}}."""


class LoadedPlaybook(msgspec.Struct, frozen=True):
    """A playbook that passed, with its canonical text and hash as runs carry them."""

    playbook: Playbook
    text: str
    hash: str
    file: str


def load_library(folder: FilePath | None = None, overrides: Overrides | None = None) -> tuple[LoadedPlaybook, ...]:
    """The built-in playbooks and those of a folder (`*.yaml`), sorted by id; one of the folder replaces a built-in one of its id.

    Raises ConfigError with every problem of every file. Reads files.
    """
    problems: list[Problem] = []
    loaded: dict[str, LoadedPlaybook] = {}
    for file, text in _files(folder):
        try:
            name = lint(text, file).id
            loaded[name] = _finished(text, file, (overrides or {}).get(name))
        except ConfigError as error:
            problems += error.problems
    problems += [
        Problem("settings", 0, f"`healing` overrides a playbook `{name}` that does not exist", _nearest(name, loaded))
        for name in overrides or {}
        if name not in loaded and not problems
    ]
    if problems:
        raise ConfigError(problems)
    return tuple(loaded[name] for name in sorted(loaded))


def lint(text: str, file: str) -> Playbook:
    """The playbook in a text; raises ConfigError with all that is wrong with it."""
    return _check(read_document(text, file))


def _finished(text: str, file: str, changes: Mapping[str, str | int | float | bool] | None) -> LoadedPlaybook:
    document = read_document(text, file)
    data = document.data
    if changes:
        try:
            data = override(data, changes)
        except KeyError as error:
            raise ConfigError.at(file, f"`healing` overrides {error}, which is not in this playbook") from error
    playbook = _check(Document(file=file, data=data, lines=document.lines))
    canonical_text = canonical(data)
    return LoadedPlaybook(playbook=playbook, text=canonical_text, hash=content_hash(canonical_text), file=file)


def _files(folder: FilePath | None) -> Iterator[tuple[str, str]]:
    built_in = resources.files("controlplane.healing").joinpath("library")
    for entry in sorted(built_in.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            yield f"library/{entry.name}", entry.read_text(encoding="utf-8")
    if folder is None:
        return
    try:
        own = sorted(folder.glob("*.yaml"))[: PLAYBOOKS_MAX + 1]
        if len(own) > PLAYBOOKS_MAX:
            raise ConfigError.at(str(folder), f"more than {PLAYBOOKS_MAX} playbooks")
        for path in own:
            yield str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError.at(str(folder), f"cannot read the playbooks: {error}") from error


def _check(document: Document) -> Playbook:
    try:
        playbook = decode_playbook(document.data)
    except msgspec.ValidationError as error:
        message, path = path_of(error)
        raise ConfigError([_shape_problem(document, message, path)]) from error
    found = [Problem(document.file, document.line(path), message, hint) for path, message, hint in _problems(playbook)]
    if found:
        raise ConfigError(sorted(found, key=lambda problem: problem.line))
    return playbook


def _shape_problem(document: Document, message: str, path: Path) -> Problem:
    unknown = _UNKNOWN_FIELD.search(message)
    if unknown is None:
        return Problem(document.file, document.line(path), message)
    name = unknown[1]
    return Problem(document.file, document.line((*path, name)), f"unknown key `{name}`", _near_key(path, name))


def _near_key(path: Path, name: str) -> str:
    """The known key of that part of the schema that looks most like a name."""
    struct: object = Playbook
    for step in path:
        if isinstance(step, str) and isinstance(struct, type) and issubclass(struct, msgspec.Struct):
            fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
            struct = _struct_in(fields.get(step))
    if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
        return _nearest(name, [field.encode_name for field in msgspec.structs.fields(struct)])
    return ""


def _struct_in(kind: object) -> object:
    """The struct in `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    for argument in getattr(kind, "__args__", ()):
        if (found := _struct_in(argument)) is not None:
            return found
    return None


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean `{near[0]}`?" if near else ""


Found = Iterator[tuple[Path, str, str]]


def _problems(playbook: Playbook) -> Found:
    """Everything that the shape alone does not say: path, message, hint."""
    spec = playbook.spec
    if spec.blast_radius is None:
        yield ("spec",), "there is no `blast_radius`", "say how much the playbook may touch"
    if spec.rollback is None and not spec.irreversible:
        yield ("spec",), "there is no `rollback`", "add one, or `irreversible: true`"
    if spec.irreversible and spec.autonomy.default is Autonomy.AUTO:
        yield ("spec", "autonomy"), "what is irreversible is never `auto`", "set `default: approve`"
    if playbook.metadata.risk == "high" and spec.autonomy.default is Autonomy.AUTO:
        yield ("spec", "autonomy"), "what has a high risk is never `auto`", "set `default: approve`"
    match = spec.trigger.incident
    if not match.kind and not match.severity:
        yield ("spec", "trigger", "incident"), "the trigger would answer every incident", "name a `kind`"
    if not 1 <= len(spec.steps) <= STEPS_MAX:
        yield ("spec", "steps"), f"there must be 1 to {STEPS_MAX} steps, not {len(spec.steps)}", ""
    ids = [step.id for step in spec.steps]
    for index, step in enumerate(spec.steps):
        if step.id in ids[:index]:
            yield ("spec", "steps", index), f"two steps have the id `{step.id}`", ""
        yield from _step_problems(step, ("spec", "steps", index))
    for index, condition in enumerate(spec.preconditions.all):
        yield from _condition_problems(condition, ("spec", "preconditions", "all", index), baseline=False)
    if spec.validation is None:
        yield ("spec",), "there is no `validate`", "say how success is measured"
    else:
        yield from _validate_problems(spec.validation)


def _step_problems(step: Step, path: Path) -> Found:
    action = ACTIONS.get(step.action)
    if action is None:
        yield (*path, "action"), f"unknown action `{step.action}`", _nearest(step.action, ACTIONS) or _one_of(ACTIONS)
        return
    if action.leased and step.effect == "none":
        yield (*path, "effect"), f"`{action.name}` has an effect", "remove `effect: none` and give it a `lease`"
    if not action.leased and (step.effect == "lease" or step.lease is not None):
        yield path, f"`{action.name}` changes nothing, so it holds no lease", "say `effect: none` and no `lease`"
    if action.leased and step.lease is None:
        yield path, f"step `{step.id}` has no `lease`, so its override would have no TTL", "add `lease: {ttl, max_ttl}`"
    if step.lease is not None and not TTL_S_MIN <= step.lease.ttl <= step.lease.max_ttl:
        yield (*path, "lease"), f"`ttl` must be from {TTL_S_MIN:g}s to `max_ttl`", ""
    if step.timeout <= 0:
        yield (*path, "timeout"), "`timeout` must be longer than nothing", ""
    try:
        msgspec.convert(step.params, action.params, dec_hook=parse_value)
    except msgspec.ValidationError as error:
        message, inner = path_of(error)
        unknown = _UNKNOWN_FIELD.search(message)
        if unknown is not None:
            known = [field.encode_name for field in msgspec.structs.fields(action.params)]
            message = f"`{action.name}` knows no parameter `{unknown[1]}`"
            yield (*path, "params", unknown[1]), message, _nearest(unknown[1], known) or _one_of(known)
        else:
            yield (*path, "params", *inner), f"parameters of `{action.name}`: {message}", ""
    if step.gate is not None:
        for index, condition in enumerate(step.gate.passes):
            yield from _condition_problems(condition, (*path, "gate", "pass", index), baseline=False)
        if not 0 < step.gate.window <= step.gate.timeout:
            yield (*path, "gate"), "`window` must be more than nothing and at most `timeout`", ""


def _validate_problems(validation: Validate) -> Found:
    path: Path = ("spec", "validate")
    if not any(condition.metric for condition in validation.success.all):
        yield path, "`success` measures nothing", "name at least one metric that the action does not set itself"
    if not 0 < validation.every <= validation.bake:
        yield path, "`every` must be more than nothing and at most `bake`", ""
    if validation.timeout is not None and validation.timeout < validation.bake:
        yield (*path, "timeout"), "`timeout` must not be shorter than `bake`", ""
    for index, condition in enumerate(validation.success.all):
        yield from _condition_problems(condition, (*path, "success", "all", index), baseline=True)
    for index, condition in enumerate(validation.harm.any):
        yield from _condition_problems(condition, (*path, "harm", "any", index), baseline=True)


def _condition_problems(condition: Condition, path: Path, *, baseline: bool) -> Found:
    if (condition.metric is None) == (condition.fact is None):
        yield path, "a condition has either a `metric` or a `fact`", ""
        return
    if condition.metric is not None:
        if condition.metric not in METRICS:
            hint = _nearest(condition.metric, METRICS) or _one_of(METRICS)
            yield (*path, "metric"), f"unknown metric `{condition.metric}`", hint
        elif (METRICS[condition.metric] == "alias") != (condition.of is Of.ROUTES):
            wanted = "`of: routes`" if METRICS[condition.metric] == "alias" else "`of: target` or `of: failover`"
            yield path, f"`{condition.metric}` is measured with {wanted}", ""
    if condition.fact is not None and condition.fact not in FACTS:
        yield (*path, "fact"), f"unknown fact `{condition.fact}`", _nearest(condition.fact, FACTS) or _one_of(FACTS)
    if condition.value.of_baseline and (not baseline or condition.fact is not None):
        yield (*path, "value"), "only metrics in `validate` have a baseline", "write a number"


def _one_of(known: Iterable[str]) -> str:
    return "one of " + ", ".join(f"`{name}`" for name in known)
