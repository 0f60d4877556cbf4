"""Upstreams that litellm serves: what their entry may say, and what it must not."""

from __future__ import annotations

import openai
import pytest

from controlplane.catalog.compile import NoPrices, compile_snapshot
from controlplane.catalog.load import parse
from controlplane.catalog.state import CatalogState
from controlplane.errors import ConfigError

GOOD = """
upstreams:
  - name: bedrock
    dialect: litellm
    options: {aws_region_name: eu-west-1, aws_access_key_id: AKIA, aws_secret_access_key: env:AWS_SECRET, drop_params: "true"}
models:
  - name: m
    deployments: [{upstream: bedrock, model: bedrock/anthropic.claude-haiku-4-5}]
"""


def test_an_upstream_without_an_address_whose_options_reach_the_proxies() -> None:
    """litellm knows where Bedrock is; references stay references."""
    loaded = parse(GOOD, file="f.yaml")
    (upstream,) = compile_snapshot(loaded.config, CatalogState(), NoPrices(), now_us=0).upstreams
    assert ("litellm", "") == (upstream.dialect, upstream.base_url)
    assert {
        "aws_access_key_id": "AKIA",
        "aws_region_name": "eu-west-1",
        "aws_secret_access_key": "env:AWS_SECRET",
        "drop_params": "true",
    } == upstream.options


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{name: u}", "`base_url` is missing in `upstreams[0]`"),
        ("{name: u, dialect: anthropic}", "`base_url` is missing in `upstreams[0]`"),
        ("{name: u, base_url: 'https://h/v1', options: {a: b}}", "`options` are for `dialect: litellm` alone"),
        ("{name: u, dialect: litellm, options: {vertex_credentials: abc}}", "`vertex_credentials` must be a reference"),
        ("{name: u, dialect: litellm, options: {aws_session_token: abc}}", "`aws_session_token` must be a reference"),
        ("{name: u, dialect: litellm, options: {api_key: env:K}}", "write it as `credential` of the upstream"),
        ("{name: u, dialect: litellm, options: {api_base: 'https://h'}}", "write it as `base_url` of the upstream"),
        ("{name: u, dialect: litellm, options: {callbacks: x}}", "the proxy decides it for each call"),
        ("{name: u, dialect: litellm, options: {Odd-Name: x}}", "small letters"),
        ("{name: u, dialect: litellm, options: {a: 5}}", "text"),
    ],
)
def test_mistakes_are_named(entry: str, said: str) -> None:
    """Each says what to write instead, and none repeats what may be a secret."""
    with pytest.raises(ConfigError) as caught:
        parse(f"upstreams:\n  - {entry}\n", file="f.yaml")
    assert said in str(caught.value)
    assert "abc" not in str(caught.value)


def test_calls_may_take_as_long_as_the_vendors_sdks_wait() -> None:
    """Nothing of ours ends a long answer that a client would still wait for; a try may take half of it."""
    text = "upstreams: [{name: a, base_url: https://a.example/v1}]\nmodels: [{name: m, deployments: [{upstream: a, model: m}]}]"
    snapshot = compile_snapshot(parse(text, file="f.yaml").config, CatalogState(), NoPrices(), now_us=0)
    (upstream,), (route,) = snapshot.upstreams, snapshot.routes
    assert openai.DEFAULT_TIMEOUT.read == route.timeout_s == 2 * upstream.first_byte_timeout_s
    assert upstream.idle_timeout_s >= 60
