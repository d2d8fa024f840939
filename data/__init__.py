"""Text to batches: sources, tokenizer, token store, `batch(step)`."""
