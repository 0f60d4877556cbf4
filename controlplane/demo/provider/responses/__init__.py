"""OpenAI's Responses API, with the conversations that it remembers."""
