"""Vocabularies by kind: what a tokenizer.json says, in the terms of llama.cpp's own tokenizers."""
