"""Train a language model of bytes whose body is a libmoe layer; __main__.py tells the story."""
