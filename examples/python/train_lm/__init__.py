"""Train a small Mixture-of-Experts transformer on real text, beside its peers; __main__.py tells the story."""
