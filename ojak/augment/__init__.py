"""Augmentation: raw text in, the same text with questions and answers made from it out (arXiv 2406.14491)."""
