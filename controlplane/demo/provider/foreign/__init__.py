"""Providers that speak neither OpenAI's nor Anthropic's protocol, as exactly as litellm's clients for them need it."""
