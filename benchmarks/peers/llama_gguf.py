"""Write a model's folder as the file that llama.cpp reads: llama_gguf.py SOURCE FOLDER FILE f32|bf16.

SOURCE is that of llama.cpp, whose own converter knows each family's names, permutations and number types.
The folder needs no tokenizer: the file has the number of words alone.
"""
# Types are checked where the converter is not at hand.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Convert."""
    source, folder, file, dtype = sys.argv[1:]
    sys.path.insert(0, source)
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from conversion.base import gguf

    config = ModelBase.load_hparams(Path(folder), False)
    kind = get_model_class(get_model_architecture(config, ModelType.TEXT))
    kind.set_vocab = count_words
    type_ = gguf.LlamaFileType.ALL_F32 if dtype == "f32" else gguf.LlamaFileType.MOSTLY_BF16
    model = kind(Path(folder), type_, Path(file))
    if model.hparams.get("q_lora_rank", 0) is None:
        # llama.cpp knows a DeepSeek-V2 without it by its number of layers, and asks for it of others.
        model.hparams["q_lora_rank"] = 0
    model.write()


def count_words(model: Any) -> None:
    """Stand in for the converter's reading of the tokenizer."""
    model.gguf_writer.add_tokenizer_model("none")
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])


main()
