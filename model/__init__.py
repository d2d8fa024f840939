"""Batches to logits, embeddings and generated tokens: pure functions, no files, no flags."""
