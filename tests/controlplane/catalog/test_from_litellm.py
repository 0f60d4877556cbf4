"""A LiteLLM configuration becomes one of ours that loads; every setting is told, and no secret is copied."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any  # a foreign file holds anything

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controlplane.catalog.check import check
from controlplane.catalog.file import ConfigFile
from controlplane.catalog.from_litellm import Fate, Imported, import_litellm
from controlplane.catalog.from_litellm_reasons import REASONS, reason_of
from controlplane.catalog.load import parse
from controlplane.costs.prices import PriceBook
from controlplane.errors import ConfigError

ROOT = Path(__file__).parents[3]
EAST: dict[str, Any] = {
    "model_name": "gpt-4o",
    "litellm_params": {"model": "openai/gpt-4o", "api_key": "os.environ/OPENAI_API_KEY"},
}
WEST: dict[str, Any] = {
    "model_name": "gpt-4o",
    "litellm_params": {"model": "azure/gpt-4o", "api_base": "https://my.azure.example", "api_version": "2024-10-21"},
}
CLAUDE: dict[str, Any] = {"model_name": "claude", "litellm_params": {"model": "anthropic/claude-sonnet-4-5"}}


def imported(*models: dict[str, Any], **sections: object) -> Imported:
    """What becomes of a configuration."""
    return import_litellm(yaml.safe_dump({"model_list": list(models), **sections}), file="config.yaml")


def config(found: Imported) -> ConfigFile:
    """Ours, as the loader reads it."""
    return parse(found.text, file="hephaestus.yaml").config


def fates(found: Imported, place: str) -> list[Fate]:
    """What became of a setting."""
    return [line.fate for line in found.lines if line.place == place]


@pytest.mark.parametrize(
    ("params", "upstream", "dialect", "base_url", "model"),
    [
        ({"model": "openai/gpt-4o"}, "openai", "openai", "https://api.openai.com/v1", "gpt-4o"),
        ({"model": "gpt-4o"}, "openai", "openai", "https://api.openai.com/v1", "gpt-4o"),
        ({"model": "claude-3-haiku"}, "anthropic", "anthropic", "https://api.anthropic.com", "claude-3-haiku"),
        ({"model": "groq/llama"}, "groq", "openai", "https://api.groq.com/openai/v1", "llama"),
        ({"model": "openrouter/meta/llama"}, "openrouter", "openai", "https://openrouter.ai/api/v1", "meta/llama"),
        ({"model": "openai/x", "api_base": "http://gpu:8000/v1"}, "gpu", "openai", "http://gpu:8000/v1", "x"),
        ({"model": "hosted_vllm/x", "api_base": "http://gpu:8000/v1"}, "gpu", "openai", "http://gpu:8000/v1", "x"),
        ({"model": "bedrock/anthropic.claude"}, "bedrock", "litellm", None, "bedrock/anthropic.claude"),
        ({"model": "gemini/gemini-2.5-pro"}, "gemini", "litellm", None, "gemini/gemini-2.5-pro"),
        ({"model": "ollama/llama3", "api_base": "http://o:11434"}, "ollama", "litellm", "http://o:11434", "ollama/llama3"),
    ],
)  # fmt: skip
def test_providers_become_upstreams(
    params: dict[str, Any], upstream: str, dialect: str, base_url: str | None, model: str
) -> None:
    """Two protocols are spoken by ourselves, at their providers' addresses or the operator's; the others go through litellm."""
    ours = config(imported({"model_name": "m", "litellm_params": params}))
    (place,), (alias,) = ours.upstreams, ours.models
    assert (upstream, dialect, base_url) == (place.name, place.dialect.value, place.base_url)
    assert [(upstream, model)] == [(one.upstream, one.model) for one in alias.deployments]


def test_deployments_of_one_name_become_one_route() -> None:
    """Entries with one `model_name` are the deployments of one model, with their weights, orders, ids and prices."""
    prices = {"input_cost_per_token": 1.5e-7, "output_cost_per_token": "0.0000006"}
    ours = config(
        imported(
            {**EAST, "model_info": {"id": "east", "max_output_tokens": 4096}},
            {**WEST, "litellm_params": {**WEST["litellm_params"], "weight": 3, "order": 2, **prices}},
            EAST,
        )
    )
    (model,) = ours.models
    assert [("east", 1, 0), ("azure/gpt-4o", 3, 2), ("openai/gpt-4o", 1, 0)] == [
        (one.deployment_id, one.weight, one.order) for one in model.deployments
    ]
    assert 4096 == model.deployments[0].max_output_tokens
    price = model.deployments[1].price
    assert price is not None
    assert (150_000_000, 600_000_000) == (price.input, price.output)
    assert {"api_version": "2024-10-21"} == ours.upstreams[1].options


def test_one_id_never_means_two_deployments() -> None:
    """The same model at two places, or at two prices, has two ids, also where two aliases have it."""
    bedrock = {"model": "bedrock/anthropic.claude"}
    models: list[dict[str, Any]] = [
        {"model_name": "near", "litellm_params": bedrock},
        {"model_name": "far", "litellm_params": {**bedrock, "aws_region_name": "us-east-1"}},
        {"model_name": "both", "litellm_params": {"model": "hosted_vllm/m", "api_base": "http://gpu:1/v1"}},
        {"model_name": "both", "litellm_params": {"model": "hosted_vllm/m", "api_base": "http://gpu:2/v1"}},
        {"model_name": "dear", "litellm_params": {"model": "gpt-4o", "input_cost_per_token": 1e-6}},
        {"model_name": "cheap", "litellm_params": {"model": "gpt-4o", "input_cost_per_token": 1e-7}},
    ]
    found = imported(*models, router_settings={"model_group_alias": {"same": "near"}})
    ids = {model.name: [one.deployment_id for one in model.deployments] for model in config(found).models}
    assert ["bedrock/anthropic.claude"] == ids["near"] == ids["same"]
    assert ["bedrock/anthropic.claude/2"] == ids["far"]
    assert ["gpu/m", "gpu-2/m"] == ids["both"]
    assert (["openai/gpt-4o"], ["openai/gpt-4o/2"]) == (ids["dear"], ids["cheap"])


@pytest.mark.parametrize(
    ("figures", "strategy", "ours"),
    [
        ([{"weight": 0.7}, {"weight": 0.3}], None, [(7, 0), (3, 0)]),
        ([{"weight": 2}, {"weight": 4}], None, [(2, 0), (4, 0)]),
        ([{"weight": 1, "rpm": 10}, {"tpm": 100_000}], None, [(1, 0), (1, 1)]),
        ([{"weight": 1}, {"weight": 0}], None, [(1, 0), (1, 1)]),
        ([{"weight": 0}, {"weight": 0}], None, [(1, 0), (1, 0)]),
        ([{"weight": 0, "order": 1}, {"weight": 3, "order": 1}, {"order": 2}], None, [(1, 3), (3, 2), (1, 4)]),
        ([{"rpm": 60}, {"tpm": 90_000, "rpm": 600}], None, [(60, 0), (600, 0)]),
        ([{"tpm": 4_000_000}, {"tpm": 1_000_000}], None, [(1_000_000, 0), (250_000, 0)]),
        ([{"rpm": 60}, {}], "latency-based-routing", [(60, 0), (60, 0)]),
        ([{"rpm": "60"}, {"rpm": "os.environ/RPM"}], "simple-shuffle", [(60, 0), (1, 1)]),
    ],
)
def test_calls_are_shared_out_as_there(
    figures: list[dict[str, Any]], strategy: str | None, ours: list[tuple[int, int]]
) -> None:
    """One figure decides within a model, in proportion; who has none of it, or nothing, stands by."""
    models = [
        {"model_name": "m", "litellm_params": {"model": f"gpt-{index}", **each}} for index, each in enumerate(figures)
    ]
    found = imported(*models, router_settings={"routing_strategy": strategy} if strategy else {})
    assert ours == [(one.weight, one.order) for one in config(found).models[0].deployments]
    told = {line.place for line in found.lines}
    assert {f"model_list[{index}].litellm_params.{name}" for index, each in enumerate(figures) for name in each} <= told


def test_included_files_are_read_with_the_rest() -> None:
    """Lists grow, other settings are replaced, files include files of their own folder, and none is read twice."""
    files = {
        "conf/models.yaml": yaml.safe_dump({"include": ["more.yaml"], "model_list": [EAST]}),
        "conf/more.yaml": yaml.safe_dump(
            {"include": ["models.yaml"], "model_list": [CLAUDE], "litellm_settings": {"request_timeout": 30}}
        ),
    }
    text = yaml.safe_dump({"include": ["conf/models.yaml"], "litellm_settings": {"cache": True}})
    found = import_litellm(text, file="config.yaml", text_of=lambda path: files[path])
    assert [("gpt-4o", 30), ("claude", 30)] == [(model.name, model.timeout_s) for model in config(found).models]
    assert [Fate.MAPPED, Fate.MAPPED] == fates(found, "include")
    assert not config(found).cache.enabled
    assert [Fate.REFUSED] == fates(import_litellm(text, file="config.yaml"), "include")


@pytest.mark.parametrize(
    ("sections", "environ", "redis"),
    [
        ({"litellm_settings": {"cache": True}}, {"REDIS_HOST": "cache", "REDIS_PORT": "6380"}, "redis://cache:6380/0"),
        ({"litellm_settings": {"cache": True, "cache_params": {"type": "redis"}}}, {"REDIS_URL": "redis://c/1"}, "redis://c/1"),
        (
            {"litellm_settings": {"cache": True}, "environment_variables": {"REDIS_HOST": "own", "REDIS_PASSWORD": "hunter2"}},
            {"REDIS_HOST": "cache"},
            "redis://own:6379/0",
        ),
        ({"litellm_settings": {"cache": True, "cache_params": {"ttl": 60}}}, {"REDIS_HOST": "cache"}, None),
        ({"litellm_settings": {"cache": True}}, {}, None),
        ({}, {"REDIS_HOST": "cache"}, None),
    ],
)  # fmt: skip
def test_a_cache_that_names_no_redis_has_that_of_the_environment(
    sections: dict[str, object], environ: dict[str, str], redis: str | None
) -> None:
    """What LiteLLM takes for granted is written down, and no password with it."""
    found = import_litellm(yaml.safe_dump({"model_list": [EAST], **sections}), file="config.yaml", environ=environ)
    ours = config(found)
    assert (redis, "litellm_settings" in sections) == (ours.server.redis, ours.cache.enabled)
    assert "hunter2" not in found.text
    assert ours.server.redis_password == ("env:REDIS_PASSWORD" if "own" in str(redis) else None)


@pytest.mark.parametrize(
    ("settings", "place", "fate"),
    [
        ({}, "cache", Fate.MAPPED),
        ({"cache": False}, "cache", Fate.MAPPED),
        ({"cache": "false"}, "cache", Fate.MAPPED),
        (
            {"cache": True, "cache_params": {"type": "local", "mode": "default_off"}},
            "cache_params.mode",
            Fate.APPROXIMATED,
        ),
    ],
)
def test_a_cache_is_off_unless_it_was_on(settings: dict[str, object], place: str, fate: Fate) -> None:
    """Nobody gets stored answers by moving in: there a cache is off until it is switched on."""
    found = imported(EAST, litellm_settings=settings)
    assert not config(found).cache.enabled
    assert [fate] == fates(found, f"litellm_settings.{place}")


def test_a_time_for_streams_bounds_no_other_call() -> None:
    """`stream_timeout` is told as refused, and `timeout` as what it becomes here."""
    params = {**EAST["litellm_params"], "stream_timeout": 5, "timeout": "60"}
    found = imported({**EAST, "litellm_params": params}, router_settings={"timeout": 20, "num_retries": 1})
    assert 60 == config(found).models[0].timeout_s
    at = "model_list[0].litellm_params"
    assert ([Fate.APPROXIMATED], [Fate.REFUSED]) == (
        fates(found, f"{at}.timeout"),
        fates(found, f"{at}.stream_timeout"),
    )
    assert [Fate.REFUSED] == fates(found, "router_settings.timeout")


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"num_retries": "many"}, "num_retries"),
        ({"num_retries": float("inf")}, "num_retries"),
        ({"num_retries": 10**400}, "num_retries"),
        ({"cooldown_time": "os.environ/COOLDOWN"}, "cooldown_time"),
        ({"timeout": True}, "timeout"),
        ({"fallbacks": {"gpt-4o": ["claude"]}}, "fallbacks"),
        ({"fallbacks": ["claude"]}, "fallbacks[0]"),
        ({"model_group_alias": ["a"]}, "model_group_alias"),
        ({"routing_strategy": 3}, "routing_strategy"),
    ],
)
def test_a_value_of_another_kind_is_told(settings: dict[str, object], place: str) -> None:
    """What stands where it is read, but cannot be, is refused and not passed over."""
    found = imported(EAST, CLAUDE, router_settings=settings)
    assert [Fate.REFUSED] == fates(found, f"router_settings.{place}")
    config(found)


def test_the_provider_may_stand_beside_the_model() -> None:
    """`custom_llm_provider` says whose language is spoken, and `responses/` is no part of a model's name."""
    own = {"model": "team/llama", "custom_llm_provider": "openai", "api_base": "https://llm.corp.example/v1"}
    ours = config(
        imported(
            {"model_name": "own", "litellm_params": own},
            {"model_name": "r", "litellm_params": {"model": "openai/responses/gpt-4.1"}},
        )
    )
    assert [("llm.corp.example", "team/llama"), ("openai", "gpt-4.1")] == [
        (model.deployments[0].upstream, model.deployments[0].model) for model in ours.models
    ]


def test_a_provider_that_says_nothing_is_none() -> None:
    """As there: a model beside an empty `custom_llm_provider` says its provider itself."""
    found = imported({"model_name": "a", "litellm_params": {"model": "openai/gpt-4o", "custom_llm_provider": ""}})
    assert ["gpt-4o"] == [one.model for model in config(found).models for one in model.deployments]


def test_one_upstream_for_each_address_and_credential() -> None:
    """Deployments share an upstream only if address, credential and options are the same."""
    other = {"model_name": "m", "litellm_params": {"model": "openai/gpt-4o", "api_key": "os.environ/OTHER_KEY"}}
    ours = config(imported(EAST, EAST, other))
    assert [("openai", "env:OPENAI_API_KEY"), ("openai-2", "env:OTHER_KEY")] == [
        (one.name, one.credential) for one in ours.upstreams
    ]


@pytest.mark.parametrize(
    ("theirs", "ours", "fate"),
    [
        ("simple-shuffle", "weighted", Fate.MAPPED),
        ("least-busy", "least_busy", Fate.MAPPED),
        ("latency-based-routing", "lowest_latency", Fate.MAPPED),
        ("cost-based-routing", "cheapest", Fate.MAPPED),
        ("usage-based-routing-v2", "least_busy", Fate.APPROXIMATED),
        ("something-new", "weighted", Fate.REFUSED),
    ],
)
def test_strategies(theirs: str, ours: str, fate: Fate) -> None:
    """Each strategy has one of ours, something near, or a refusal."""
    found = imported(EAST, router_settings={"routing_strategy": theirs})
    assert [fate] == fates(found, "router_settings.routing_strategy")
    assert ours == config(found).models[0].strategy.value


def test_router_settings() -> None:
    """Retries, time-outs, fallbacks of three kinds, defaults and aliases reach every model that they are for."""
    found = imported(
        EAST,
        CLAUDE,
        router_settings={
            "num_retries": 2,
            "timeout": 45,
            "cooldown_time": 9,
            "context_window_fallbacks": [{"gpt-4o": ["claude"]}],
            "model_group_alias": {"fast": "gpt-4o", "lost": "nobody"},
        },
        litellm_settings={
            "fallbacks": [{"gpt-4o": ["claude"]}, {"nobody": ["claude"]}],
            "content_policy_fallbacks": [{"claude": ["gpt-4o", "nobody"]}],
        },
    )
    models = {model.name: model for model in config(found).models}
    assert {"gpt-4o", "claude", "fast"} == set(models)
    assert {(3, 45.0)} == {(model.attempts_max, model.timeout_s) for model in models.values()}
    assert (("claude",), ("claude",)) == (models["gpt-4o"].fallbacks.general, models["gpt-4o"].fallbacks.context_window)
    assert ("gpt-4o",) == models["claude"].fallbacks.content_policy
    assert 9.0 == config(found).breaker.open_s
    assert [Fate.REFUSED] == fates(found, "router_settings.model_group_alias.lost")
    assert [Fate.REFUSED] == fates(found, "litellm_settings.fallbacks.nobody")


@pytest.mark.parametrize(
    ("duration", "usd", "window"),
    [
        (None, "12.6", "total"), ("1h", "12.6", "hour"), ("24h", "12.6", "day"), ("7d", "1.8", "day"), ("30d", "12.6", "month"),
        ("1mo", "12.6", "month"), ("90d", "4.2", "month"),
    ],
)  # fmt: skip
def test_budgets(duration: str | None, usd: str, window: str) -> None:
    """The proxy's own budget becomes one of the only tenant's, in the nearest window of the calendar and at the same rate."""
    settings = {"max_budget": 12.6, **({} if duration is None else {"budget_duration": duration})}
    (budget,) = config(imported(EAST, litellm_settings=settings)).tenants[0].budgets
    assert (int(Decimal(usd) * 10**9), window) == (budget.usd, budget.window.value)


def test_the_cache() -> None:
    """The cache's life time and its Redis come along; a semantic one is refused."""
    redis = {"type": "redis", "host": "cache", "port": 6380, "ttl": 60, "password": "os.environ/REDIS_PW"}
    ours = config(imported(EAST, litellm_settings={"cache": True, "cache_params": redis}))
    assert (True, 60) == (ours.cache.enabled, ours.cache.ttl_s)
    assert ("redis://cache:6380/0", "env:REDIS_PW") == (ours.server.redis, ours.server.redis_password)
    semantic = imported(EAST, litellm_settings={"cache": True, "cache_params": {"type": "qdrant-semantic"}})
    assert [Fate.REFUSED] == fates(semantic, "litellm_settings.cache_params.type")


@pytest.mark.parametrize(
    ("params", "address"),
    [
        (
            {"service_name": "mymaster", "sentinel_nodes": [["a", 26379], ["b", 26380]]},
            "redis+sentinel://a:26379,b:26380/mymaster",
        ),
        (
            {"redis_startup_nodes": [{"host": "a", "port": "7001"}, {"host": "b", "port": "7002"}]},
            "redis+cluster://a:7001,b:7002",
        ),
        ({"host": "a", "ssl": True, "db": 3}, "rediss://a:6379/3"),
        ({"url": "redis://a:6390/1"}, "redis://a:6390/1"),
        ({"url": "redis://:hunter2@a:6390/1"}, None),
        ({"host": "os.environ/REDIS_HOST", "password": "os.environ/REDIS_PW"}, None),
    ],
)
def test_redis_alone_and_in_groups(params: dict[str, Any], address: str | None) -> None:
    """Servers, sentinels and clusters become one address; what cannot be known is refused, and no password stays behind."""
    found = imported(EAST, litellm_settings={"cache": True, "cache_params": {"type": "redis", **params}})
    ours = config(found)
    assert address == ours.server.redis
    assert None is ours.server.redis_password
    assert ([] if address else [Fate.REFUSED]) == [
        fate for fate in fates(found, "litellm_settings.cache_params.host") if fate is Fate.REFUSED
    ]
    assert "hunter2" not in found.text + "".join(map(str, found.lines))


def test_the_redis_of_the_router() -> None:
    """It is the same one thing here, also where no cache names it."""
    router = {"redis_host": "r", "redis_port": 6380, "redis_password": "os.environ/PW"}
    ours = config(imported(EAST, router_settings=router)).server
    assert ("redis://r:6380/0", "env:PW") == (ours.redis, ours.redis_password)


def test_credentials_that_models_share() -> None:
    """A model takes what its credential says; what it says itself comes first."""
    shared = {"api_key": "os.environ/EU_KEY", "api_base": "https://eu.api.openai.com/v1"}
    params = {"model": "openai/gpt-4o", "litellm_credential_name": "eu"}
    found = imported(
        {"model_name": "a", "litellm_params": params},
        {"model_name": "b", "litellm_params": {**params, "api_key": "os.environ/OWN_KEY"}},
        credential_list=[
            {"credential_name": "eu", "credential_values": shared, "credential_info": {"about": "Europe"}}
        ],
    )
    assert [("https://eu.api.openai.com/v1", "env:EU_KEY"), ("https://eu.api.openai.com/v1", "env:OWN_KEY")] == [
        (one.base_url, one.credential) for one in config(found).upstreams
    ]
    assert [] == [line.place for line in found.lines if line.fate is Fate.REFUSED]


def test_a_key_of_openais_goes_to_nobody_else() -> None:
    """A secret that stands in the file for somebody else's address has a variable of its own."""
    ours = config(
        imported(
            {
                "model_name": "m",
                "litellm_params": {"model": "openai/x", "api_base": "http://gpu-1:8000/v1", "api_key": "none"},
            }
        )
    )
    assert ["env:GPU_1_API_KEY"] == [one.credential for one in ours.upstreams]


def test_what_stands_in_for_a_setting_is_said() -> None:
    """Well-known settings are refused with what to do instead, and a model without an operation is not taken along."""
    rerank = {"model_name": "r", "litellm_params": {"model": "cohere/rerank"}, "model_info": {"mode": "rerank"}}
    found = imported(
        {**EAST, "model_info": {"base_model": "azure/gpt-4o"}},
        rerank,
        litellm_settings={"success_callback": ["langfuse"], "drop_params": True},
        router_settings={"enable_pre_call_checks": True},
        general_settings={"enable_jwt_auth": True, "alerting": ["slack"]},
    )
    reasons = {line.place: line.reason for line in found.lines if line.fate is Fate.REFUSED}
    assert 7 == len(reasons)
    assert reason_of("of.nothing_known") not in reasons.values()
    assert ["gpt-4o"] == [model.name for model in config(found).models]
    pages = {page for reason in REASONS.values() for page in re.findall(r"docs/[a-z/-]+\.md", reason)}
    assert pages
    assert set() == {page for page in pages if not (ROOT / page).exists()}


def test_long_prompts_and_fallbacks_with_messages() -> None:
    """A price above a threshold comes along, each kind that it leaves out at its usual price; a fallback's own messages do not."""
    prices = {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "input_cost_per_token_above_200k_tokens": 3e-6,
    }
    found = imported(
        {**EAST, "model_info": prices},
        CLAUDE,
        litellm_settings={"fallbacks": [{"gpt-4o": [{"model": "claude", "messages": []}]}]},
    )
    model = config(found).models[0]
    price = model.deployments[0].price
    assert price is not None
    assert [(200_000, 3 * 10**9, 2 * 10**9)] == [(long.above_tokens, long.input, long.output) for long in price.long]
    assert ("claude",) == model.fallbacks.general


def test_prices_of_what_is_no_token_come_along() -> None:
    """Seconds, pictures, searches in files and containers, and the tokens of images, each at the price of one or of a million."""
    units = {
        "input_cost_per_second": "0.0001",
        "output_cost_per_image": 0.04,
        "file_search_cost_per_1k_calls": 2.5,
        "code_interpreter_cost_per_session": 0.03,
        "output_cost_per_image_token": 4e-5,
    }
    price = config(imported({**EAST, "model_info": units})).models[0].deployments[0].price
    assert price is not None
    assert (0, 0, 100_000, 40_000_000) == (price.input, price.output, price.second, price.picture)
    assert (2_500_000, 30_000_000, 40 * 10**9) == (price.file_search, price.container, price.image_output)


def test_a_price_of_tools_alone_is_no_price() -> None:
    """Without a price for tokens they would be free; so it is said that it did not come along."""
    found = imported({**EAST, "model_info": {"code_interpreter_cost_per_session": 0.03}})
    assert config(found).models[0].deployments[0].price is None
    assert any(line.fate == "refused" and "code_interpreter" in line.place for line in found.lines)


def test_credentials_of_googles_in_a_file() -> None:
    """The path of a key file is no secret: the file is read where the proxy runs."""
    params = {"model": "vertex_ai/gemini-2.5-pro", "vertex_credentials": "/etc/heph/google.json"}
    (upstream,) = config(imported({"model_name": "m", "litellm_params": params})).upstreams
    assert {"vertex_credentials": "file:/etc/heph/google.json"} == upstream.options


@pytest.mark.parametrize(
    ("params", "variable"),
    [
        ({"model": "openai/x", "api_base": "os.environ/LOCAL_BASE"}, "LOCAL_BASE_API_KEY"),
        ({"model": "openai/x", "api_base": "https://evil-openai.com/v1"}, "EVIL_OPENAI_COM_API_KEY"),
        ({"model": "openai/x", "api_base": "https://eu.api.openai.com/v1"}, "OPENAI_API_KEY"),
        ({"model": "custom_openai/x", "api_base": "https://c.example/v1"}, "C_EXAMPLE_API_KEY"),
        ({"model": "anthropic/x", "api_base": "https://a.example"}, "A_EXAMPLE_API_KEY"),
        ({"model": "anthropic/x"}, "ANTHROPIC_API_KEY"),
    ],
)
def test_a_vendors_key_is_asked_for_by_that_vendor_alone(params: dict[str, Any], variable: str) -> None:
    """Also where the address is not known yet, and for whatever speaks Anthropic's language elsewhere."""
    ours = config(imported({"model_name": "m", "litellm_params": {**params, "api_key": "sk-1"}}))
    assert [f"env:{variable}"] == [one.credential for one in ours.upstreams]


AZURE: dict[str, Any] = {
    "model_name": "gpt",
    "litellm_params": {"model": "azure/gpt", "api_base": "os.environ/AZURE_BASE", "api_key": "os.environ/AZURE_KEY"},
}


def test_addresses_of_the_environment_are_written_down() -> None:
    """What the variables say now is taken, and told; keys stay references."""
    document = {
        "model_list": [AZURE],
        "litellm_settings": {
            "cache": True,
            "cache_params": {"type": "redis", "host": "os.environ/R_HOST", "port": "os.environ/R_PORT", "ttl": 9},
        },
    }
    environ = {"AZURE_BASE": "https://eu.azure.example", "AZURE_KEY": "hunter2", "R_HOST": "cache", "R_PORT": "6380"}
    found = import_litellm(yaml.safe_dump(document), file="config.yaml", environ=environ)
    ours = parse(found.text, file="hephaestus.yaml")
    assert ("https://eu.azure.example", "env:AZURE_KEY") == (
        ours.config.upstreams[0].base_url,
        ours.config.upstreams[0].credential,
    )
    assert "redis://cache:6380/0" == ours.settings.redis
    assert [Fate.APPROXIMATED] == fates(found, "model_list[0].litellm_params.api_base")
    assert [Fate.APPROXIMATED] == fates(found, "litellm_settings.cache_params.host")
    assert "hunter2" not in found.text + "".join(map(str, found.lines))


@pytest.mark.parametrize("environ", [{}, {"AZURE_BASE": "https://u:hunter2@eu.azure.example"}])
def test_an_address_that_nobody_can_write_down_keeps_its_place(environ: dict[str, str]) -> None:
    """Unset, or with a password in it: refused, and the place that is kept for it is an error of `check-config`."""
    found = import_litellm(yaml.safe_dump({"model_list": [AZURE]}), file="config.yaml", environ=environ)
    assert [Fate.REFUSED] == fates(found, "model_list[0].litellm_params.api_base")
    assert "hunter2" not in found.text
    rules = [one.rule for one in check(parse(found.text, file="h.yaml").bound, PriceBook.packaged())]
    assert "placeholder" in rules


def test_no_secret_is_copied() -> None:
    """A secret that stands in their file is in none of our words; a reference to the environment takes its place."""
    bedrock = {"model": "bedrock/x", "aws_secret_access_key": "hunter2-aws"}
    found = imported(
        {"model_name": "a", "litellm_params": {"model": "openai/a", "api_key": "sk-hunter2"}},
        {"model_name": "b", "litellm_params": bedrock},
        litellm_settings={"cache": True, "cache_params": {"type": "redis", "host": "h", "password": "hunter2"}},
        general_settings={"master_key": "sk-hunter2-master", "database_url": "postgres://u:hunter2@h/d"},
    )
    assert "hunter2" not in found.text + "".join(map(str, found.lines))
    assert ["env:OPENAI_API_KEY", None] == [one.credential for one in config(found).upstreams]


def test_whatever_is_not_read_is_told() -> None:
    """Settings that nobody looked at are refused by their place, at every depth."""
    found = imported({**EAST, "tpm_window": 1}, litellm_settings={"callbacks": ["x"]}, new_section={"a": 1})
    unread = {line.place for line in found.lines if line.fate is Fate.REFUSED}
    assert {"model_list[0].tpm_window", "litellm_settings.callbacks", "new_section"} == unread
    odd = import_litellm(yaml.safe_dump({"model_list": [3, EAST], "router_settings": "hey"}), file="config.yaml")
    assert {"model_list[0]", "router_settings"} == {line.place for line in odd.lines if line.fate is Fate.REFUSED}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "model_list"),
        ("{}", "empty"),
        ("- a", "model_list"),
        ("just text", "model_list"),
        ("model_list: 3", "model_list"),
        ("a: 1\nb: [", "line 2"),
        ("model_list: {a", "line 1"),
        ("&a [*a]", "model_list"),
    ],
)
def test_what_is_no_configuration(text: str, said: str) -> None:
    """A text that is no YAML mapping is refused with a sentence, and with the line where there is one."""
    with pytest.raises(ConfigError, match=said):
        import_litellm(text, file="config.yaml")


_SCALARS = st.none() | st.booleans() | st.integers(-10, 10**7) | st.floats(allow_nan=False) | st.text(max_size=10)
_NAMES = st.sampled_from(
    ["model", "model_name", "api_key", "api_base", "weight", "rpm", "timeout", "fallbacks", "cache", "cache_params", "ttl", "type",
     "host", "max_budget", "num_retries", "routing_strategy", "model_group_alias", "input_cost_per_token", "id", "mode", "gpt-4o"]
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4), max_leaves=12
)


@given(st.lists(st.dictionaries(_NAMES, _VALUES, max_size=4), max_size=3), _VALUES, _VALUES, _VALUES)
def test_nothing_that_is_yaml_breaks_it(models: list[object], router: object, settings: object, params: object) -> None:
    """Whatever values stand where, there is a result with every setting told, and it is YAML."""
    document = {
        "model_list": [*models, {"model_name": "gpt-4o", "litellm_params": params}],
        "router_settings": router,
        "litellm_settings": settings,
    }
    found = import_litellm(yaml.safe_dump(document), file="config.yaml")
    assert {"upstreams", "models", "tenants"} <= yaml.safe_load(found.text).keys()
