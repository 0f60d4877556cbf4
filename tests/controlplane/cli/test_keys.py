"""Keys from the command line: made once, listed without secrets, revoked; and what they may use."""

from __future__ import annotations

import pytest

from tests.controlplane.cli.conftest import Shell


def create(shell: Shell, *words: str) -> dict[str, str]:
    """A fresh key."""
    made = shell.json("keys", "create", "--tenant", "acme", *words)
    assert isinstance(made, dict)
    return made


def rows(shell: Shell, *words: str) -> list[dict[str, object]]:
    """A list in JSON."""
    found = shell.json(*words)
    assert isinstance(found, list)
    return found


def test_a_key_is_shown_once(shell: Shell) -> None:
    """`create --json` prints id and key and nothing else; no list holds the secret or its hash."""
    made = create(shell, "--name", "ci")
    assert {"id", "key"} == set(made)
    assert made["key"].startswith("sk-heph-")
    (listed,) = rows(shell, "keys", "list")
    assert (made["id"], "acme", "ci") == (listed["id"], listed["tenant"], listed["name"])
    assert "hash" not in listed
    for text in (shell.run("keys", "list").output, shell.run("keys", "list", "--json").output):
        assert made["key"] not in text


def test_a_key_is_printed_for_people_too(shell: Shell) -> None:
    """Without `--json` the key stands on a line of its own."""
    result = shell.run("keys", "create", "--tenant", "acme")
    assert 0 == result.exit_code
    assert result.stdout.splitlines()[0].startswith("sk-heph-")
    assert "not shown again" in result.stdout


def test_keys_are_listed_by_tenant_with_their_state(shell: Shell) -> None:
    """A revoked key and one with an expiry say so."""
    gone = create(shell)
    create(shell, "--expires-in", "12h", "--model", "fast")
    shell.json("keys", "create", "--tenant", "globex")
    revoked = shell.run("keys", "revoke", gone["id"], "--reason", "leaked")
    assert (0, f"Key {gone['id']} of tenant acme is revoked.\n") == (revoked.exit_code, revoked.stdout)
    table = shell.run("keys", "list", "--tenant", "acme").stdout
    assert "revoked 20" in table
    assert "good until 20" in table
    assert "globex" not in table
    assert 3 == len(rows(shell, "keys", "list"))


def test_every_key_has_every_field_in_json(shell: Shell) -> None:
    """A script finds `name` and `expires_us` also where nothing was said of them."""
    shell.json("keys", "create", "--tenant", "acme")
    (one,) = rows(shell, "keys", "list")
    assert ("", None, None, 0) == (one["name"], one["models"], one["expires_us"], one["revoked_us"])


def test_an_empty_list_says_so(shell: Shell) -> None:
    """No table without rows, and an empty list in JSON."""
    assert "keys: none\n" == shell.run("keys", "list").stdout
    assert [] == shell.json("keys", "list")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("keys", "create", "--tenant", "nobody"), 1, "error: "),
        (("keys", "create", "--tenant", "acme", "--model", "nothing"), 1, "error: "),
        (("keys", "revoke", "key_nothing"), 1, "error: "),
        (("keys", "create"), 2, "Missing option '--tenant'"),
        (("keys", "create", "--tenant", "acme", "--expires-in", "soon"), 2, "say 90s, 15m, 12h or 30d"),
        (("keys", "create", "--tenant", "acme", "--expires-in", "0d"), 2, "no length of time"),
        (("keys", "create", "--tenant", "acme", "--expires-in", "-5d"), 2, "no length of time"),
        (("keys", "create", "--tenant", "acme", "--expires-in", "999999999d"), 2, "no length of time"),
        (("keys", "destroy"), 2, "No such command 'destroy'"),
        (("nonsense",), 2, "No such command 'nonsense'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    shell: Shell, words: tuple[str, ...], status: int, says: str
) -> None:
    """Status 1 when the answer is no, 2 when the command was used wrongly; never a traceback, and nothing on standard output."""
    result = shell.run(*words)
    assert (status, "") == (result.exit_code, result.stdout)
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert [] == shell.json("keys", "list")


def test_a_mistake_in_the_file_is_told_with_its_line(shell: Shell) -> None:
    """Every command that reads the file refuses it in the same way."""
    shell.config.write_text(shell.config.read_text().replace("tenants:", "tennants:"))
    for words in (("keys", "list"), ("tenants",), ("models",), ("budgets",), ("check-config",)):
        result = shell.run(*words, str(shell.config), config=False) if words == ("check-config",) else shell.run(*words)
        assert 1 == result.exit_code, words
        assert "hephaestus.yaml:12: unknown key `tennants`" in result.stderr, words


def test_a_data_folder_that_cannot_be_made_is_named(shell: Shell) -> None:
    """A file where the folder should be is a sentence, not a traceback."""
    result = shell.run("keys", "list", "--data", str(shell.config / "below"))
    assert 1 == result.exit_code
    assert "the data folder" in result.stderr


def test_tenants_models_and_budgets(shell: Shell) -> None:
    """What the configuration says, as tables and as JSON."""
    assert ["acme", "globex"] == [one["name"] for one in rows(shell, "tenants")]
    assert "requests_per_minute 600" in shell.run("tenants").stdout
    assert ["fast", "deep"] == [one["name"] for one in rows(shell, "models")]
    assert "a/big" in shell.run("models").stdout
    (budget,) = rows(shell, "budgets")
    assert ("acme", "month") == (budget["tenant"], budget["window"])
    assert "$50.00" in shell.run("budgets").stdout


def test_quotas_are_listed_with_the_budgets(shell: Shell) -> None:
    """Each with how much it is, per what, and what happens beyond it; as JSON with its own name."""
    text = shell.config.read_text().replace(
        "budgets: [{usd: 50, window: month}]", "quotas: [{per: agent, usd: 5, window: day}, {per: key, concurrency: 3}]"
    )
    shell.config.write_text(text)
    shown = shell.run("budgets").stdout
    assert "$5.00 per agent, hard" in shown
    assert "3 calls per key, hard" in shown
    assert ["agent-usd-day", "key-concurrency"] == [row["id"] for row in rows(shell, "budgets")]
