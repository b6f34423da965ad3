"""The real model on the real documents, where their packages are installed."""

import sys

import pytest
import torch

from sparsekern.demo import minilm
from sparsekern.demo.evaluate import rate

pytestmark = pytest.mark.skipif(any(minilm.missing()), reason="the demo's packages are not installed")


@pytest.fixture(scope="module")
def tokenizer():
    return minilm.load_tokenizer()


def test_corpora_have_their_published_size(tokenizer):
    documents, background = (minilm.load_documents(tokenizer, name) for name in ("lee.cor", "lee_background.cor"))
    assert len(documents) == 50 and len(background) == 300
    assert sum(document.numel() for document in background) == 59_722
    assert max(document.shape[1] for document in background) == minilm.MAX_TOKENS
    ratings = minilm.load_ratings()
    assert ratings.shape == (50, 50) and not ratings.tril(-1).any() and 0 <= ratings.min() <= ratings.max() <= 1
    batch = minilm.token_batch(background, 8, 128)
    assert batch.shape == (8, 128) and torch.equal(batch[0], background[0][0, :128])


def test_dense_model_agrees_with_people_as_published(tokenizer):
    quality = rate(minilm.load_model(), minilm.load_documents(tokenizer, "lee.cor"), minilm.load_ratings())
    assert quality.pearson == pytest.approx(0.656, abs=0.002)
    assert quality.spearman == pytest.approx(0.508, abs=0.002)


def test_model_is_transformers_own_and_gensim_is_only_read():
    model = minilm.load_model()
    assert type(model).__module__.startswith("transformers.") and not model.training
    assert sum(isinstance(module, torch.nn.Linear) for module in model.modules()) == 36
    assert "gensim" not in sys.modules and minilm.MODEL_PACKAGE not in sys.modules
