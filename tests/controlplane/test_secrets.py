"""Secrets are made once, read back, and never shown."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controlplane.contract.keys import PEPPER_BYTES
from controlplane.errors import SecretUnavailable
from controlplane.secrets import Secret, is_reference, load_secrets, resolve

WORD = "correct-horse"


@pytest.mark.parametrize("shown", [repr, str, "{}".format, "{:>20}".format, lambda s: f"{[s]}", lambda s: "%s" % s])  # noqa: UP031
def test_a_secret_does_not_show_itself(shown) -> None:  # type: ignore[no-untyped-def]
    """However a secret is turned into text, the text does not contain it."""
    text = shown(Secret(WORD))
    assert WORD not in text
    assert "***" in text


def test_a_secret_is_neither_pickled_nor_hashed() -> None:
    """A secret cannot be written down by accident or become the key of a mapping."""
    with pytest.raises(TypeError):
        pickle.dumps(Secret(WORD))
    with pytest.raises(TypeError):
        hash(Secret(WORD))


def test_secrets_are_compared_by_what_they_hold() -> None:
    """Equality and matching look at the text; a surrogate in a candidate is a mismatch, not an error."""
    assert Secret(WORD) == Secret(WORD)
    assert Secret(WORD) != Secret("other")
    assert Secret(WORD) != WORD
    assert Secret(WORD).matches(WORD)
    assert not Secret(WORD).matches("correct-hors\udce9")


def test_own_secrets_are_made_once_for_their_owner_only(tmp_path: Path) -> None:
    """The first start makes three different secrets of mode 0600; the next start reads the same ones."""
    first, second = load_secrets(tmp_path, {}), load_secrets(tmp_path, {})
    assert first == second
    assert 3 == len({first.key_pepper.reveal(), first.internal_token.reveal(), first.operator_token.reveal()})
    assert PEPPER_BYTES == len(first.key_pepper_bytes)
    files = sorted((tmp_path / "secrets").iterdir())
    assert ["internal-token", "key-pepper", "operator-token"] == [file.name for file in files]
    assert {0o600} == {file.stat().st_mode & 0o777 for file in files}


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    """Sixteen starters at once all end up with the same secrets and leave no draft behind."""
    with ThreadPoolExecutor(16) as pool:
        seen = {
            s.key_pepper.reveal() + s.operator_token.reveal()
            for s in pool.map(lambda _: load_secrets(tmp_path, {}), range(16))
        }
    assert 1 == len(seen)
    assert 3 == len(list((tmp_path / "secrets").iterdir()))


def test_environment_wins_and_writes_nothing(tmp_path: Path) -> None:
    """A value in the environment is used as it is and no file is made for it."""
    own = load_secrets(tmp_path, {"HEPH_KEY_PEPPER": "ab" * 32, "HEPH_INTERNAL_TOKEN": "i", "HEPH_OPERATOR_TOKEN": "o"})
    assert {"HEPH_KEY_PEPPER": "ab" * 32, "HEPH_INTERNAL_TOKEN": "i"} == own.proxy_environment()
    assert "o" == own.operator_token.reveal()
    assert not (tmp_path / "secrets").exists()


@pytest.mark.parametrize(
    "environ", [{"HEPH_KEY_PEPPER": "short"}, {"HEPH_KEY_PEPPER": "zz" * 32}, {"HEPH_INTERNAL_TOKEN": " "}], ids=str
)
def test_unusable_values_are_refused_without_being_shown(tmp_path: Path, environ: dict[str, str]) -> None:
    """A pepper of the wrong form and an empty token stop the start; the message names the variable, not the value."""
    with pytest.raises(SecretUnavailable) as caught:
        load_secrets(tmp_path, environ)
    ((name, value),) = environ.items()
    assert name in str(caught.value)
    assert " " == value or value not in str(caught.value)


def test_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """When the folder is a file, the message says which path cannot be made."""
    (tmp_path / "data").write_text("")
    with pytest.raises(SecretUnavailable, match="key-pepper"):
        load_secrets(tmp_path / "data", {})


def test_references_are_resolved(tmp_path: Path) -> None:
    """`env:` and `file:` references give the secret without surrounding white space."""
    (tmp_path / "s").write_text("  from-file\n")
    assert "from-env" == resolve("env:NAME", {"NAME": "from-env\n"}).reveal()
    assert "from-file" == resolve(f"file:{tmp_path / 's'}", {}).reveal()


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("env:MISSING", "MISSING is not set"),
        ("env:EMPTY", "EMPTY is not set"),
        ("env:", "never as the secret itself"),
        ("file:/nowhere/at/all", "No such file"),
        ("file:/", "Is a directory"),
        ("vault:x", "`env:NAME` or `file:/path`"),
        ("sk-live-1234567890", "never as the secret itself"),
        ("", "never as the secret itself"),
    ],
)
def test_bad_references_say_what_to_do(reference: str, says: str) -> None:
    """Each bad reference is refused with its reason; a secret written in place of a reference is not repeated."""
    with pytest.raises(SecretUnavailable) as caught:
        resolve(reference, {"EMPTY": " "})
    assert says in str(caught.value)
    assert "sk-live" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", b"x" * 70_000], ids=["empty", "blank", "binary", "huge"])
def test_bad_secret_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """An empty, binary or huge file is not a secret."""
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(SecretUnavailable):
        resolve(f"file:{tmp_path / 's'}", {})


def test_form_of_references() -> None:
    """Only `env:` and `file:` with a name count as references."""
    assert [True, True, False, False, False] == [is_reference(r) for r in ("env:A", "file:/a", "env:", "A", "env: A")]
