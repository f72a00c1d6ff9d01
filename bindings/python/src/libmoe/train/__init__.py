"""Training of language models: text in, a run's folder out.  ``python -m libmoe`` is its command line.

Examples
--------
::

    from pathlib import Path
    from libmoe.train import Settings, Trainer

    outcome = Trainer(Settings(files=("book.txt",), steps=500), Path("runs/book")).train()
    print(outcome.best_bits, "bits per byte")
"""

from .config import Settings
from .data import Corpus, Part
from .doctor import Hint, diagnose
from .errors import UserError
from .run import Trained, open_run
from .sample import sample
from .tokenizer import Tokenizer
from .trainer import Outcome, Trainer

__all__ = [
    "Corpus",
    "Hint",
    "Outcome",
    "Part",
    "Settings",
    "Tokenizer",
    "Trained",
    "Trainer",
    "UserError",
    "diagnose",
    "open_run",
    "sample",
]
