"""Work that is handed over in one piece and done later, at half the price: OpenAI's files and batches, and what Anthropic's share with them."""
