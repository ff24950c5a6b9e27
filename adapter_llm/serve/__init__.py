"""The server: OpenAI's API for chat and embeddings over a Pipeline. `launch` starts it, docs/server.md is its page."""
