"""The decoder and what belongs to it: weights from files, tokenizers, generation."""
