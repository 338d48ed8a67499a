"""The fused kernels against the reference, under Triton's interpreter on the CPU.

The interpreter has to be chosen before Triton is imported, so everything runs in one process of its
own: this file, run by pytest again with TRITON_INTERPRET=1. On a machine with a GPU the same tests
(`-m gpu`) run the compiled kernels there.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import timm
import torch
from torch import Tensor

import tokenpool as tp
from tokenpool import attention, clustering, gpu
from tokenpool.methods import method
from tokenpool.methods.base import Pooled, TokenSet
from tokenpool.options import PoolOptions

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
fused = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="runs in test_under_the_interpreter"
)
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="is what it runs")
@pytest.mark.slow
def test_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr


@contextmanager
def reference() -> Iterator[None]:
    """Nothing is fused within."""
    before, gpu.LARGEST = gpu.LARGEST, 0
    try:
        yield
    finally:
        gpu.LARGEST = before


def tokens_of(kind: str, count: int, width: int, seed: int, batch: int = 2) -> Tensor:
    """Tokens `[B, N, C]`: all distinct, in groups of equals, or whole numbers that tie exactly."""
    random = torch.Generator().manual_seed(seed)
    if kind == "duplicates":
        distinct = torch.randn(batch, (count + 2) // 3, width, generator=random)
        return distinct.repeat(1, 3, 1)[:, :count].to(DEVICE)
    if kind == "ties":
        # Every length is a power of two: cosines and distances are exact and most of them tie.
        return (torch.randint(0, 2, (batch, count, 16), generator=random) * 2.0 - 1).to(DEVICE)
    return torch.randn(batch, count, width, generator=random).to(DEVICE)


def pooled_twice(
    name: str, given: TokenSet, k: int, options: PoolOptions | None = None
) -> tuple[Pooled, Pooled]:
    options = options or PoolOptions()
    assert gpu.usable(given.tokens.shape[1], given.tokens)
    ours = method(name).reduce(given, k, options)
    with reference():
        return ours, method(name).reduce(given, k, options)


def compare(name: str, given: TokenSet, k: int, options: PoolOptions | None = None) -> None:
    ours, expected = pooled_twice(name, given, k, options)
    assert torch.equal(ours.assignment, expected.assignment)
    torch.testing.assert_close(ours.tokens, expected.tokens)


# 17 tokens are less than a tile of 32 × 32, 33 one more than its rows, 130 two tiles of fp32.
SHAPES = [(2, 1), (17, 9), (33, 32), (130, 61)]
CASES = [(*shape, "random") for shape in SHAPES] + [
    (count, k, kind) for kind in ("ties", "duplicates") for count, k in SHAPES[1:3]
]


@fused
@pytest.mark.parametrize(("count", "k", "kind"), CASES)
@pytest.mark.parametrize("scored", [True, False])
def test_leader(count: int, k: int, kind: str, scored: bool) -> None:
    x = tokens_of(kind, count, 40, seed=count)
    if kind == "duplicates":
        # Beyond one of each, which of several equals leads is a matter of rounding.
        k = min(k, (count + 2) // 3)
    random = torch.Generator().manual_seed(1)
    scores = torch.rand(2, count, generator=random)
    if kind == "ties":
        scores = (scores * 3).round() / 3
    sizes = torch.randint(1, 9, (2, count), generator=random).float()
    given = TokenSet(x, x, scores.to(DEVICE) if scored else None, sizes.to(DEVICE), None)
    compare("leader", given, k)


@fused
@pytest.mark.parametrize(("count", "k", "kind"), CASES)
@pytest.mark.parametrize("name", ["kmeans", "wkmeans", "kmedoids", "wkmedoids"])
def test_the_papers(name: str, count: int, k: int, kind: str) -> None:
    x = tokens_of(kind, count, 40, seed=count + 1)
    scores = torch.rand(2, count, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    if kind == "duplicates" and name.endswith("kmeans"):
        # Two centres at one place, a mean and the token it is, are told apart by rounding alone.
        distinct = (count + 2) // 3
        k = min(k, distinct)
        scores[:, :distinct] += 1
    given = TokenSet(x, x, scores, None, None)
    if kind == "ties" and name.endswith("kmeans"):
        # Means are not exact: those of few tokens, whose sums are whole numbers, still are.
        compare(name, given, k, PoolOptions(iterations=0))
    else:
        compare(name, given, k)


@fused
@pytest.mark.parametrize("name", ["leader", "kmeans", "wkmedoids"])
def test_more_than_one_tile(name: str) -> None:
    x = tokens_of("random", 300, 24, seed=4, batch=1)
    scores = torch.rand(1, 300, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    compare(name, TokenSet(x, x, scores, None, None), 140, PoolOptions(iterations=1))


@fused
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_leader_in_half_precision(dtype: torch.dtype) -> None:
    x = tokens_of("random", 50, 40, seed=6).to(dtype)
    scores = torch.rand(2, 50, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    ours, expected = pooled_twice("leader", TokenSet(x, x, scores, None, None), 30)
    assert torch.equal(ours.assignment, expected.assignment)
    assert ours.tokens.dtype == dtype
    torch.testing.assert_close(ours.tokens, expected.tokens)


@fused
def test_means_of_weights_that_vanish() -> None:
    x = tokens_of("random", 20, 8, seed=8)
    weights = torch.zeros(2, 20, device=DEVICE)
    weights[:, :3] = 1
    start = torch.tensor([[0, 1, 5, 9]] * 2, device=DEVICE)
    features = clustering.work_features(x)
    ours = clustering.kmeans_means(x, features, start, weights, 3)
    with reference():
        expected = clustering.kmeans_means(x, features, start, weights, 3)
    torch.testing.assert_close(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])


@fused
@pytest.mark.parametrize("options", [{}, {"representative": "weighted_mean"}])
@pytest.mark.parametrize("name", ["leader", "kmeans", "wkmeans"])
def test_gradients_are_the_references(name: str, options: dict) -> None:
    random = torch.Generator().manual_seed(9)
    x = torch.randn(2, 11, 5, generator=random).to(DEVICE).requires_grad_()
    features = torch.randn(2, 11, 4, generator=random).to(DEVICE)
    scores = torch.rand(2, 11, generator=random).to(DEVICE)
    given = TokenSet(x, features, scores, None, None)
    ours, expected = pooled_twice(name, given, 6, PoolOptions(**options))
    weight = torch.randn(2, 6, 5, generator=random).to(DEVICE)
    (one,) = torch.autograd.grad((ours.tokens * weight).sum(), x)
    (other,) = torch.autograd.grad((expected.tokens * weight).sum(), x)
    torch.testing.assert_close(one, other)


@fused
@pytest.mark.filterwarnings("ignore:Input #0 requires gradient")
@pytest.mark.parametrize("name", ["leader", "kmeans"])
def test_gradcheck(name: str) -> None:
    """Means are linear in the tokens, so large steps are exact and fp32 will do."""
    random = torch.Generator().manual_seed(10)
    x = torch.randn(1, 6, 2, generator=random).to(DEVICE).requires_grad_()
    features = torch.randn(1, 6, 4, generator=random).to(DEVICE)
    scores = torch.rand(1, 6, generator=random).to(DEVICE)

    def means(tokens: Tensor) -> Tensor:
        given = TokenSet(tokens, features, scores, None, None)
        return method(name).reduce(given, 4, PoolOptions()).tokens

    assert torch.autograd.gradcheck(means, (x,), eps=0.5, atol=1e-3, rtol=1e-3, nondet_tol=0)


@fused
def test_gradients_of_centres_without_members() -> None:
    x = tokens_of("random", 9, 4, seed=11).requires_grad_()
    weights = torch.zeros(2, 9, device=DEVICE)
    weights[:, 0] = 1
    start = torch.tensor([[0, 4, 7]] * 2, device=DEVICE)
    features = clustering.work_features(x.detach())
    ours = clustering.kmeans_means(x, features, start, weights, 2)[0]
    with reference():
        expected = clustering.kmeans_means(x, features, start, weights, 2)[0]
    scale = torch.arange(1.0, 13.0, device=DEVICE).view(3, 4)
    (one,) = torch.autograd.grad((ours * scale).sum(), x)
    (other,) = torch.autograd.grad((expected * scale).sum(), x)
    torch.testing.assert_close(one, other)


@fused
@pytest.mark.parametrize("count", [5, 40, 150])
@pytest.mark.parametrize("sized", [True, False])
def test_received_attention(count: int, sized: bool) -> None:
    """150 keys in fp32 are two tiles: the log-sum-exp comes first."""
    random = torch.Generator().manual_seed(count)
    # As they come out of a projection: heads and tokens are not in order in memory.
    q, k = torch.randn(2, 2, count, 3, 24, generator=random).to(DEVICE).transpose(2, 3)
    sizes = torch.randint(1, 9, (2, count), generator=random).float().to(DEVICE)
    logits = q @ k.transpose(2, 3) * 0.2
    if sized:
        logits = logits + sizes.log()[:, None, None]
    likely = logits.softmax(-1)
    expected = (likely * sizes[:, None, :, None] if sized else likely).sum((1, 2))
    given = (sizes.log(), sizes) if sized else (None, None)
    torch.testing.assert_close(gpu.received(q, k, 0.2, *given), expected)


@pytest.mark.parametrize("head", [8, 20, 31, 30, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_as_columns_equal_a_bias(head: int, dtype: torch.dtype) -> None:
    """Also widths that fill up to a multiple of 8 in other ways, and a token of no size."""
    random = torch.Generator().manual_seed(head)
    q, k, v = torch.randn(3, 2, 3, 21, head, generator=random, dtype=torch.float64).to(DEVICE)
    sizes = torch.randint(0, 200, (2, 21), generator=random).double().to(DEVICE)
    sizes[:, 0] = 0
    bias = sizes.log()[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    q, k, v = (part.to(dtype).requires_grad_() for part in (q, k, v))
    ours = attention.sized_attention(q, k, v, sizes.float().log())
    assert ours.shape == expected.shape
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours.double(), expected, atol=tolerance, rtol=tolerance)
    ours.sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in (q, k, v))


def small_model(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5, embed_dim=48, num_heads=3
    ).to(DEVICE)
    return tp.pool(model, (12, 9, 6), name, **options)


@fused
@pytest.mark.parametrize(
    ("name", "options"),
    [("leader", {}), ("wkmeans", {"proportional_attention": True})],
)
def test_models_in_one_graph_trained_and_under_autocast(name: str, options: dict) -> None:
    model = small_model(name, **options).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with reference():
        expected = model(images)
        expected.square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.testing.assert_close(model(images), expected)
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    out = compiled(images)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    out.square().sum().backward()
    for key, parameter in compiled.named_parameters():
        expected_grad = gradients[key.removeprefix("_orig_mod.")]
        torch.testing.assert_close(parameter.grad, expected_grad, atol=1e-3, rtol=1e-3)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.isfinite(model(images)).all()


@fused
def test_operators_are_what_pytorch_asks_of_them() -> None:
    from tokenpool.gpu import operators

    x = tokens_of("random", 12, 6, seed=12)
    scores = torch.rand(2, 12, device=DEVICE)
    start = torch.tensor([[0, 4, 7]] * 2, device=DEVICE)
    learnt = x.clone().requires_grad_()
    heads = torch.randn(2, 2, 12, 8, device=DEVICE)
    torch.library.opcheck(operators.leader, (learnt, x, scores, scores, 5))
    torch.library.opcheck(operators.leader, (learnt, x, None, None, 5))
    torch.library.opcheck(operators.kmeans, (learnt, x, start, scores, 2))
    torch.library.opcheck(operators.kmedoids, (x, start, scores, 2))
    torch.library.opcheck(operators.received, (heads, heads, 0.3, scores, None))


@fused
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("name", ["leader", "kmeans", "wkmedoids"])
def test_what_is_not_finite_gives_indices_all_the_same(name: str) -> None:
    x = tokens_of("random", 20, 8, seed=13)
    x[0, 3] = torch.nan
    x[1, 5, 0] = torch.inf
    scores = torch.rand(2, 20, device=DEVICE)
    scores[1, 2] = torch.nan
    assignment = (
        method(name).reduce(TokenSet(x, x, scores, None, None), 9, PoolOptions()).assignment
    )
    assert int(assignment.min()) >= 0 and int(assignment.max()) < 9


@fused
def test_what_the_kernels_cannot_do_is_left_to_the_reference() -> None:
    x = tokens_of("random", 20, 8, seed=14)
    assert gpu.usable(20, x)
    assert gpu.usable(gpu.LARGEST, x)
    assert not gpu.usable(gpu.LARGEST + 1, x)
    assert not gpu.usable(20, x, x.double())
    assert not gpu.usable(20, x[:0])
    assert not gpu.usable(20, x.to("meta"))
    scores = torch.rand(2, 20, device=DEVICE)
    for name in ("leader", "kmeans", "wkmedoids"):
        doubled = TokenSet(x.double(), x.double(), scores.double(), None, None)
        assert method(name).reduce(doubled, 9, PoolOptions()).tokens.dtype == torch.float64


def test_without_triton_everything_works_and_nothing_of_it_is_loaded() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util, torch\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'triton' else found(name)\n"
        "import tokenpool as tp\n"
        "from tokenpool import gpu\n"
        "x = torch.randn(1, 9, 4)\n"
        "assert tp.kmeans(x, 3).centers.shape == (1, 3, 4)\n"
        "assert not gpu._runs_on('cuda') and not gpu._runs_on('cpu')\n"
        "assert 'tokenpool.gpu.operators' not in sys.modules\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
