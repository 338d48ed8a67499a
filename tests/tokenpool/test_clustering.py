"""K-Means and K-Medoids against plain loops, brute force, scikit-learn, and their own promises."""

import itertools

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

import tokenpool as tp
from tokenpool import kernels
from tokenpool.clustering import matched_indices

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@st.composite
def token_sets(draw, dtypes=DTYPES, most=9):
    """Small token sets of every awkward kind, with k, weights and an iteration count."""
    seed = draw(st.integers(0, 2**32 - 1))
    count, width = draw(st.integers(1, most)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["normal", "ties", "duplicates", "equal", "far", "line"]))
    dtype = draw(st.sampled_from(dtypes))
    weighting = draw(st.sampled_from(["none", "random", "some zero", "all zero", "steep"]))
    k = draw(st.integers(1, count))
    iterations = draw(st.integers(0, 5))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width))
    if kind == "ties":
        x = rng.integers(-1, 2, size=(count, width)).astype(float)
    elif kind == "duplicates":
        x = x[rng.integers(0, max(1, count // 2), size=count)]
    elif kind == "equal":
        x = np.repeat(x[:1], count, 0)
    elif kind == "far":
        x = x + 30.0
    elif kind == "line":
        x = x[:, :1].repeat(width, 1)
    weights = None
    if weighting != "none":
        weights = torch.tensor(rng.random(count))
        if weighting == "some zero":
            weights[rng.random(count) < 0.5] = 0
        elif weighting == "all zero":
            weights[:] = 0
        elif weighting == "steep":
            weights = weights**20
        weights = weights.unsqueeze(0)
    return torch.tensor(x).to(dtype).unsqueeze(0), k, weights, iterations


def as_numpy(x):
    return x[0].double().numpy()


def weights_of(weights, count):
    return np.ones(count) if weights is None else weights[0].double().numpy()


def slack(x, weights):
    """What rounding in the working dtype may add to an objective."""
    data = as_numpy(x)
    eps = torch.finfo(x.dtype).eps
    return 20 * eps * (weights_of(weights, len(data)).sum() * np.square(data).sum(1).max() + 1e-9)


@settings(max_examples=1000, deadline=None)
@given(token_sets(), st.sampled_from([tp.kmeans, tp.kmedoids]))
def test_the_objective_never_rises(case, method):
    x, k, weights, _ = case
    data, mass = as_numpy(x), weights_of(weights, x.shape[1])
    course = []
    for iterations in range(5):
        result = method(x, k, weights, iterations=iterations)
        course.append(oracles.objective(data, as_numpy(result.centers), mass))
    for before, after in itertools.pairwise(course):
        assert after <= before + slack(x, weights)


@settings(max_examples=1000, deadline=None)
@given(token_sets(), st.sampled_from([tp.kmeans, tp.kmedoids]))
def test_every_result_is_well_formed(case, method):
    x, k, weights, iterations = case
    result = method(x, k, weights, iterations=iterations)
    count = x.shape[1]
    assert result.centers.shape == (1, k, x.shape[2]) and result.centers.dtype == x.dtype
    assert torch.isfinite(result.centers).all()
    assert result.assignment.shape == (1, count)
    assert result.assignment.min() >= 0 and result.assignment.max() < k
    assert torch.equal(result.sizes[0], torch.bincount(result.assignment[0], minlength=k))
    if method is tp.kmedoids:
        medoids = result.medoids[0]
        assert len(set(medoids.tolist())) == k
        assert torch.equal(x[0, medoids], result.centers[0])
        # Each medoid is in its own cluster, so none is empty.
        assert torch.equal(result.assignment[0, medoids], torch.arange(k))
    if k == count:
        assert torch.equal(result.centers, x)


@settings(max_examples=1000, deadline=None)
@given(token_sets(dtypes=(torch.float64,)))
def test_kmedoids_is_no_better_than_the_best_medoids(case):
    x, k, weights, iterations = case
    data, mass = as_numpy(x), weights_of(weights, x.shape[1])
    centers = as_numpy(tp.kmedoids(x, k, weights, iterations).centers)
    best = oracles.best_medoids_objective(data, k, mass)
    assert oracles.objective(data, centers, mass) >= best - slack(x, weights)


def test_kmedoids_often_finds_the_best_medoids():
    """On well separated groups it must find the optimum, from any start in all groups."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        middles = torch.randn(1, 3, 1, 4, generator=generator, dtype=torch.double) * 20
        x = (middles + torch.randn(1, 3, 3, 4, generator=generator, dtype=torch.double)).flatten(
            1, 2
        )
        scores = torch.tensor([[1.0, 0, 0] * 3])
        centers = as_numpy(tp.kmedoids(x, 3, init=scores).centers)
        best = oracles.best_medoids_objective(as_numpy(x), 3, np.ones(9))
        assert oracles.objective(as_numpy(x), centers, np.ones(9)) == pytest.approx(best)


@st.composite
def whole_features(draw):
    """Integer features and weights: fp64 arithmetic on them is exact, so ties are really ties."""
    count, width = draw(st.integers(2, 12)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(-4, 5, size=(count, width)).astype(float)
    # Powers of two: dividing by the largest is exact.
    weights = 2.0 ** rng.integers(0, 3, size=count)
    k = draw(st.integers(1, count - 1))
    start = np.sort(rng.permutation(count)[:k])
    return x, weights, start, draw(st.integers(0, 5))


@settings(max_examples=1000, deadline=None)
@given(whole_features(), st.booleans())
def test_kmedoids_equals_a_plain_loop_ties_included(case, weighted):
    x, weights, start, iterations = case
    assignment, medoids = kernels.kmedoids(
        torch.tensor(x)[None],
        torch.tensor(start)[None],
        torch.tensor(weights)[None] if weighted else None,
        iterations,
    )
    expected = oracles.kmedoids(
        x, list(start), weights if weighted else np.ones(len(x)), iterations
    )
    assert (assignment[0].tolist(), medoids[0].tolist()) == expected


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 16), st.data(), st.booleans())
def test_kmeans_equals_a_plain_loop(seed, count, data, weighted):
    k = data.draw(st.integers(1, count - 1))
    iterations = data.draw(st.integers(0, 5))
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(count, 3)), rng.random(count) + 0.1
    scores = rng.permutation(count).astype(float)
    result = tp.kmeans(
        torch.tensor(x)[None],
        k,
        torch.tensor(weights)[None] if weighted else None,
        iterations,
        init=torch.tensor(scores)[None],
    )
    start = sorted(np.argsort(-scores)[:k].tolist())
    assignment, centres = oracles.kmeans(
        x, start, weights if weighted else np.ones(count), iterations
    )
    assert result.assignment[0].tolist() == assignment
    np.testing.assert_allclose(result.centers[0].numpy(), centres, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_equals_scikit_learn_from_the_same_start(weighted):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, weights = rng.normal(size=(60, 8)), rng.random(60) + 0.1
        scores = rng.random(60)
        start = x[np.sort(np.argsort(-scores)[:7])]
        # Enough iterations for both to converge: scikit-learn stops by itself.
        theirs = KMeans(7, init=start, n_init=1, max_iter=300, tol=0.0).fit(
            x, sample_weight=weights if weighted else None
        )
        ours = tp.kmeans(
            torch.tensor(x)[None],
            7,
            torch.tensor(weights)[None] if weighted else None,
            iterations=60,
            init=torch.tensor(scores)[None],
        )
        assert ours.assignment[0].tolist() == theirs.labels_.tolist()
        np.testing.assert_allclose(ours.centers[0].numpy(), theirs.cluster_centers_, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(token_sets(most=20), st.floats(0.01, 100), st.sampled_from([tp.kmeans, tp.kmedoids]))
def test_equal_weights_change_nothing(case, weight, method):
    x, k, _, iterations = case
    plain = method(x, k, iterations=iterations)
    weighted = method(x, k, torch.full(x.shape[:2], weight), iterations=iterations)
    for ours, theirs in zip(plain, weighted, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 24), st.data(), st.booleans(), st.booleans())
def test_permuting_the_tokens_permutes_the_result(seed, count, data, weighted, scored):
    """Ties aside: the two members of an unweighted pair always tie, so K-Medoids gets weights."""
    k = data.draw(st.integers(1, count))
    method = data.draw(st.sampled_from([tp.kmeans, tp.kmedoids]))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, count, 6, generator=generator, dtype=torch.double)
    weights = scores = None
    if weighted or method is tp.kmedoids:
        weights = torch.rand(1, count, generator=generator, dtype=torch.double)
    if scored:
        scores = torch.rand(1, count, generator=generator, dtype=torch.double)
    order = torch.randperm(count, generator=generator)
    first = method(x, k, weights, init=scores)
    second = method(
        x[:, order],
        k,
        None if weights is None else weights[:, order],
        init=None if scores is None else scores[:, order],
    )
    # Cluster numbers may differ; which tokens are together, and the centres, may not.
    together = first.assignment[0, :, None] == first.assignment[0, None]
    again = second.assignment[0, :, None] == second.assignment[0, None]
    assert torch.equal(together[order][:, order], again)
    own = first.centers[0, first.assignment[0]]
    torch.testing.assert_close(own[order], second.centers[0, second.assignment[0]])


@pytest.mark.parametrize("method", [tp.kmeans, tp.kmedoids])
@pytest.mark.parametrize("shape", [(7, 196, 384), (5, 64, 96), (3, 13, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_equals_its_images_one_by_one_bit_for_bit(method, shape, weighted):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    weights = torch.rand(shape[:2], generator=generator) if weighted else None
    k = shape[1] // 2
    whole = method(x, k, weights)
    for image in range(shape[0]):
        one = slice(image, image + 1)
        alone = method(x[one], k, None if weights is None else weights[one])
        for all_of_them, single in zip(whole, alone, strict=True):
            assert all_of_them is None or torch.equal(all_of_them[one], single)


def test_weights_of_members_count_and_not_of_candidates():
    """Three tokens on a line: a heavy member draws the medoid to itself; the light ones do not."""
    x = torch.tensor([[[0.0], [1.0], [3.0]]])
    assert tp.kmedoids(x, 1).medoids.tolist() == [[1]]
    assert tp.kmedoids(x, 1, torch.tensor([[1.0, 1.0, 9.0]])).medoids.tolist() == [[2]]
    # Candidate weighing would pick token 1 here, as w·Σd is least for a weight of nearly nothing.
    assert tp.kmedoids(x, 1, torch.tensor([[9.0, 0.01, 0.01]])).medoids.tolist() == [[0]]


def test_gradients_reach_tokens_through_gathers_and_means():
    x = torch.randn(2, 6, 3, dtype=torch.double, requires_grad=True)
    medoids = tp.kmedoids(x, 2)
    medoids.centers.sum().backward()
    expected = torch.zeros(2, 6, 1, dtype=torch.double).scatter(1, medoids.medoids[..., None], 1)
    torch.testing.assert_close(x.grad, expected.expand_as(x))
    assert torch.autograd.gradcheck(
        lambda y: tp.kmeans(y, 2, iterations=2).centers, (x.detach().requires_grad_(),)
    )


def test_reconstruction_error_is_the_sum_over_nearest_centres():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(3, 17, 5, generator=generator).to(dtype)
        centers, weights = x[:, ::4] + 0.1, torch.rand(3, 17, generator=generator)
        plain, weighed = (
            tp.reconstruction_error(x, centers),
            tp.reconstruction_error(x, centers, weights),
        )
        assert plain.shape == (3,) and plain.dtype == dtype
        for image in range(3):
            data, kept = x[image].double().numpy(), centers[image].double().numpy()
            ones = np.ones(17)
            assert plain[image].item() == pytest.approx(
                oracles.objective(data, kept, ones), rel=1e-5
            )
            mass = weights[image].double().numpy()
            assert weighed[image].item() == pytest.approx(
                oracles.objective(data, kept, mass), rel=1e-5
            )
    assert tp.reconstruction_error(x, x).tolist() == [0, 0, 0]


def test_bad_input_is_refused_by_name():
    x = torch.randn(2, 5, 3)
    nan = x.clone()
    nan[0, 1, 2] = float("nan")
    inf = x.clone()
    inf[1, 0, 0] = float("inf")
    for method in (tp.kmeans, tp.kmedoids):
        for bad in (nan, inf):
            with pytest.raises(ValueError, match="tokens hold 1 NaN or infinite"):
                method(bad, 2)
        for k in (0, 6, -1):
            with pytest.raises(ValueError, match=rf"k is {k} but must lie in 1\.\.5"):
                method(x, k)
        with pytest.raises(ValueError, match=r"weights must not be negative.*-1"):
            method(x, 2, torch.full((2, 5), -1.0))
        with pytest.raises(ValueError, match="weights hold 10 NaN"):
            method(x, 2, torch.full((2, 5), float("nan")))
        with pytest.raises(ValueError, match=r"weights must be \[2, 5\]"):
            method(x, 2, torch.ones(2, 4))
        with pytest.raises(ValueError, match=r"\[B, N, C\], not \[5, 3\]"):
            method(x[0], 2)
        with pytest.raises(ValueError, match="floating point"):
            method(torch.zeros(1, 4, 2, dtype=torch.long), 2)
        with pytest.raises(ValueError, match="iterations is -1"):
            method(x, 2, iterations=-1)
    with pytest.raises(ValueError, match="tokens must be"):
        tp.reconstruction_error(x, torch.randn(2, 2, 4))
    with pytest.raises(ValueError, match="not be negative"):
        tp.reconstruction_error(x, x, -torch.ones(2, 5))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.data())
def test_matching_drops_the_tokens_nearest_to_another(seed, count, data):
    """Round by round against a plain loop; k distinct tokens, in order."""
    k = data.draw(st.integers(1, count))
    x = np.random.default_rng(seed).normal(size=(count, 3))
    left = list(range(count))
    while len(left) > k:
        first, second = left[::2], left[1::2]
        near = {i: min(np.square(x[i] - x[j]).sum() for j in second) for i in first}
        dropped = sorted(first, key=near.__getitem__)[: min(len(left) - k, len(left) // 2)]
        left = [i for i in left if i not in dropped]
    assert matched_indices(torch.tensor(x)[None], k)[0].tolist() == left


def test_starting_by_matching_loses_less_at_high_keep_rates():
    """Pairs of near twins: matching drops one of each; a start at the loudest cannot recover."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, 16, 32, generator=generator)
    x = torch.stack((first, first + 0.01 * torch.randn(8, 16, 32, generator=generator)), 2)
    x = x.flatten(1, 2)
    start = torch.zeros(8, 32).scatter(1, matched_indices(x, 16), 1)
    matched = tp.kmedoids(x, 16, init=start)
    loudest = tp.kmedoids(x, 16, init=torch.rand(8, 32, generator=generator))
    errors = [tp.reconstruction_error(x, r.centers).sum() for r in (matched, loudest)]
    assert errors[0] < 0.01 * errors[1]


def test_autocast_does_not_reach_the_distances():
    x = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(3)) + 50
    plain = tp.kmedoids(x, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tp.kmedoids(x, 9)
        error = tp.reconstruction_error(x, cast.centers)
    assert torch.equal(plain.assignment, cast.assignment)
    assert error.dtype == torch.float32


@pytest.mark.parametrize("name", ["kmedoids", "kmeans"])
@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_operator_a_compiler_sees_keeps_its_promises(name, iterations, weighted):
    """Shapes, no aliasing, no mutation (`torch.library.opcheck`); and the same result."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 4, generator=generator)
    weights = torch.rand(2, 9, generator=generator) if weighted else None
    start = torch.tensor([[0, 3, 5], [1, 2, 8]])
    op = getattr(kernels, f"_{name}_op")
    torch.library.opcheck(op, (x, start, weights, iterations))
    ours, theirs = (
        op(x, start, weights, iterations),
        getattr(kernels, name)(x, start, weights, iterations),
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_the_operator_for_sums_has_the_right_gradient():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 4, generator=generator, dtype=torch.double, requires_grad=True)
    members = torch.randint(0, 3, (2, 9), generator=generator)
    torch.library.opcheck(kernels._segment_sum_op, (x, members, 4))
    assert torch.autograd.gradcheck(lambda x: kernels._segment_sum_op(x, members, 4), (x,))
    assert torch.equal(kernels._segment_sum_op(x, members, 4), kernels.segment_sum(x, members, 4))
