"""The operator on a text transformer: padding is neither counted nor kept."""

import pytest
import torch
from torch import nn

from tokenpool.clustering import kmedoids
from tokenpool.study.text_encoder import PooledEncoder, masked_kmedoids


def encoder(norm_first=False, layers=3):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(16), enable_nested_tensor=False)


def sentences(lengths, most, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), most, 16, generator=generator)
    padding = torch.arange(most) >= torch.tensor(lengths)[:, None]
    return x, padding


@pytest.mark.parametrize("norm_first", [False, True])
def test_keeping_everything_is_the_encoder_itself(norm_first):
    plain = encoder(norm_first)
    x, padding = sentences([7, 4], 7)
    tokens, mask = PooledEncoder(plain, (7, 7, 7))(x, padding)
    expected = plain(x, src_key_padding_mask=padding)
    assert torch.equal(mask, padding)
    torch.testing.assert_close(tokens[~mask], expected[~padding], atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing():
    """A padded sentence gives what it gives alone, whatever is in the padding."""
    pooled = PooledEncoder(encoder(), (6, 5, 3), prefix=1).eval()
    x, padding = sentences([12, 9, 8], 12)
    x[padding] = torch.randn(int(padding.sum()), 16) * 50
    together, mask = pooled(x, padding)
    assert together.shape == (3, 4, 16) and not mask.any()
    for index, length in enumerate([12, 9, 8]):
        alone, _ = pooled(x[index : index + 1, :length])
        torch.testing.assert_close(together[index], alone[0], atol=1e-4, rtol=1e-4)


def test_short_sentences_keep_all_they_have():
    pooled = PooledEncoder(encoder(), (8, 6, 6)).eval()
    x, padding = sentences([10, 3, 7], 10)
    tokens, mask = pooled(x, padding)
    assert (~mask).sum(1).tolist() == [6, 3, 6]
    alone = encoder()(x[1:2, :3])
    kept = tokens[1][~mask[1]]
    torch.testing.assert_close(kept, alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_masked_clustering_equals_clustering_the_real_tokens(weighted):
    x, padding = sentences([11, 6, 9], 11, seed=3)
    x = x.double()
    scores = torch.rand(3, 11, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    medoids, assignment = masked_kmedoids(x, 4, padding, scores, weighted=weighted)
    for index, length in enumerate([11, 6, 9]):
        own = scores[index : index + 1, :length]
        alone = kmedoids(x[index : index + 1, :length], 4, own if weighted else None, init=own)
        assert torch.equal(medoids[index], alone.medoids[0])
        assert torch.equal(assignment[index, :length], alone.assignment[0])


def test_scores_of_nothing_do_not_let_padding_in():
    x, padding = sentences([5, 4], 9)
    medoids, _ = masked_kmedoids(x, 3, padding, torch.zeros(2, 9))
    assert not padding.gather(1, medoids).any()


def test_it_learns():
    """Which of two words occurs in the sentence: learned through pooled tokens in seconds."""
    torch.manual_seed(0)
    embed, head = nn.Embedding(12, 16), nn.Linear(16, 2)
    pooled = PooledEncoder(encoder(layers=2), (6, 3), prefix=1)
    parameters = [*embed.parameters(), *pooled.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    generator = torch.Generator().manual_seed(1)
    hits = []
    for _ in range(80):
        words = torch.randint(4, 12, (32, 12), generator=generator)
        words[:, 0] = 1
        lengths = torch.randint(6, 13, (32,), generator=generator)
        labels = torch.randint(0, 2, (32,), generator=generator)
        words[torch.arange(32), torch.randint(1, 6, (32,), generator=generator)] = 2 + labels
        padding = torch.arange(12) >= lengths[:, None]
        tokens, _ = pooled(embed(words), padding)
        logits = head(tokens[:, 0])
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hits.append((logits.argmax(1) == labels).float().mean().item())
    assert sum(hits[-20:]) / 20 > 0.95


def test_what_cannot_be_pooled_is_refused():
    layer = nn.TransformerEncoderLayer(16, 4, 32)
    with pytest.raises(ValueError, match="layer 1 is a TransformerEncoderLayer: only"):
        PooledEncoder(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (4, 4))
    with pytest.raises(ValueError, match="2 layers but the model has 3"):
        PooledEncoder(encoder(), (4, 4))
    with pytest.raises(ValueError, match="layer 2 keeps 5"):
        PooledEncoder(encoder(), (4, 5, 4))
