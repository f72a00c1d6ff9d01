"""Tiny models in folders as people have them, and what transformers computes with each."""
