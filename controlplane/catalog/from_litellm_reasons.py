"""Why a setting of LiteLLM's has no place here, and what stands in for it: by its name, wherever it is written."""

from __future__ import annotations

from collections.abc import Mapping

STRANGE = "something of another kind is read there: what it may be is in LiteLLM's documentation"
_NOT_READ = "there is nothing like it here, or it is not read"
_LOGS = "every call is a row: see docs/how-to/query-telemetry.md; logs are written as JSON where no terminal reads them"
_CALLBACKS = "every call is a row with its cost, and /metrics is always there: see docs/how-to/query-telemetry.md"
_TENANTS = "teams and users are tenants and keys: see docs/how-to/keys-and-tenants.md"
_AS_IT_CAME = "a request goes on as it came; clients set it"
_RETRIES = "retries are by class of error: see docs/how-to/retries-and-fallbacks.md"
_TRANSLATED = "what a provider does not know is left out or refused as docs/reference/translations.md says"
_REDIS_TWICE = "Redis is told once, as `server.redis`"
_PASSTHROUGH = "grant a tenant `passthrough` to an upstream's paths: see docs/explanation/passthrough.md"
_ISSUERS = "write the issuer under `issuers`: see docs/how-to/keys-and-tenants.md"
_LIMITS = "limits are those of tenants, deployments (`concurrency`) and quotas: see docs/how-to/budgets-and-limits.md"
_ABILITIES = "what a model can do is asked of the model"
_QUOTA_EACH = "write a quota `per: user`: see docs/how-to/budgets-and-limits.md"
_QUOTA = "write a quota per model: see docs/how-to/budgets-and-limits.md"

REASONS: Mapping[str, str] = {
    "access_groups": _TENANTS,
    "alerting": "incidents are announced: see docs/how-to/alerts-by-webhook.md",
    "alerting_args": "incidents are announced: see docs/how-to/alerts-by-webhook.md",
    "allowed_fails_policy": "errors weigh by class: see `breaker.weights`",
    "base_model": "a price is found by the deployment's own name: where that is not a model's, write its `price`",
    "budget_duration": _QUOTA,
    "callbacks": _CALLBACKS,
    "custom_auth": _ISSUERS,
    "default_in_memory_ttl": "memory, disk and Redis keep an answer for the same `cache.ttl_s`",
    "default_in_redis_ttl": "memory, disk and Redis keep an answer for the same `cache.ttl_s`",
    "default_internal_user_params": _TENANTS,
    "default_team_settings": _TENANTS,
    "disable_spend_logs": _LOGS,
    "drop_params": _TRANSLATED,
    "enable_jwt_auth": _ISSUERS,
    "enable_pre_call_checks": "a request that is too long for one model goes to `fallbacks.context_window`",
    "enable_tag_filtering": "tags are labels of calls: they choose no deployment; make a model of its own for them",
    "environment_variables": "set them where the proxy is started; addresses among them are written down",
    "extra_headers": "headers of an upstream are those of its protocol; clients' `openai-` and `anthropic-` ones go on",
    "failure_callback": _CALLBACKS,
    "fallbacks": "fallbacks are those of a model: write them under `fallbacks` of the model",
    "frequency_penalty": _AS_IT_CAME,
    "global_max_parallel_requests": _LIMITS,
    "guardrails": "contents are not judged here; put such a service in front of, or behind, the proxy",
    "include": "it names no files that could be read",
    "internal_user_budget_duration": _QUOTA_EACH,
    "json_logs": _LOGS,
    "keep_alive": _AS_IT_CAME,
    "litellm_jwtauth": _ISSUERS,
    "max_budget": _QUOTA,
    "max_end_user_budget": _QUOTA_EACH,
    "max_internal_user_budget": _QUOTA_EACH,
    "max_parallel_requests": _LIMITS,
    "max_retries": _RETRIES,
    "max_tokens": "a request goes on as it came; `limits.max_output_tokens` of a tenant is a ceiling",
    "max_user_budget": _QUOTA_EACH,
    "mcp_servers": "tools are between clients and models",
    "mock_response": "`make run` has a simulated provider: see docs/how-to/use-the-simulated-provider.md",
    "modify_params": _TRANSLATED,
    "namespace": "tenants never share answers, and each installation has its own keys in Redis",
    "num_retries": "tries are those of a model: write its `attempts_max`",
    "organization": "give the key of that organization's project",
    "pass_through_endpoints": _PASSTHROUGH,
    "provider_budget_config": "budgets are those of tenants; write a quota `per: model`: see docs/how-to/budgets-and-limits.md",
    "redact_messages_in_exceptions": "bodies are in no log, and in no row unless `payloads.store` says so",
    "redis_db": _REDIS_TWICE,
    "redis_host": _REDIS_TWICE,
    "redis_password": _REDIS_TWICE,
    "redis_port": _REDIS_TWICE,
    "redis_url": _REDIS_TWICE,
    "retry_after": _RETRIES,
    "retry_policy": _RETRIES,
    "routing_strategy_args": "strategies set themselves: see docs/how-to/routing-strategies.md",
    "rpm": _LIMITS,
    "sentinel_password": "sentinels are asked without a password",
    "service_callback": _CALLBACKS,
    "set_verbose": _LOGS,
    "similarity_threshold": "answers are kept for exactly the same request",
    "stream_timeout": "an upstream has `first_byte_timeout_s` and `idle_timeout_s`",
    "success_callback": _CALLBACKS,
    "supported_call_types": "what is kept is in docs/reference/endpoints.md",
    "tags": "tags are labels of calls: they choose no deployment; make a model of its own for them",
    "team_id": "give that team's tenant the model under `models`: see docs/how-to/keys-and-tenants.md",
    "temperature": _AS_IT_CAME,
    "top_p": _AS_IT_CAME,
    "tpm": _LIMITS,
    "turn_off_message_logging": "bodies are in no row unless `payloads.store` says so",
    "upperbound_key_generate_params": _TENANTS,
    "user_header_name": "`x-heph-user` names the user; LiteLLM's own headers are understood",
}

NOT_SERVED = frozenset({"batch", "ocr", "realtime", "rerank", "search", "vector_store", "video_generation"})
"""Modes of models whose paths are no operation here."""
NOT_SERVED_REASON = f"its paths are no operation here; {_PASSTHROUGH}"


def reason_of(place: str) -> str:
    """Why the setting at a place was refused."""
    name = place.rpartition(".")[2]
    return _ABILITIES if name.startswith("supports_") else REASONS.get(name, _NOT_READ)
