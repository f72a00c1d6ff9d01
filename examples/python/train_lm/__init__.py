"""Train a small Mixture-of-Experts transformer on real text; __main__.py tells the story."""
