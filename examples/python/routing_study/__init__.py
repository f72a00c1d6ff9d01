"""Train one small language model under many routing schemes; __main__.py tells the story."""
