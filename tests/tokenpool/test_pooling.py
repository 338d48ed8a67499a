"""Pooled timm ViTs: same weights, same keys, same hooks; only fewer tokens."""

import copy
import dataclasses
import io
import pickle

import pytest
import timm
import torch
from thinning import fast
from timm.models.vision_transformer import Block, VisionTransformer
from timm.utils import ModelEmaV3
from torch import nn

import tokenpool as tp
from tokenpool.methods import method as method_named

SCHEDULE = tp.Schedule((13, 9, 9, 5))
CLUSTERING = ("kmeans", "kmedoids", "wkmeans", "wkmedoids")


def small(**options):
    torch.manual_seed(0)
    return tp.build_vit(16, 4, 24, 4, 3, 5, **options).eval()


def images(batch=3, size=16):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def randomise(model):
    """Weights large enough for attention and tokens to differ from each other."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("method", tp.METHODS)
def test_every_method_keeps_the_tokens_it_says(method):
    model, x = randomise(small()), images()
    keys = list(model.state_dict())
    assert tp.pool(model, SCHEDULE, method) is model
    assert list(model.state_dict()) == keys
    assert tp.pooling_of(model)[:2] == (SCHEDULE, method)
    kept = tp.pooling_of(model).realised
    counts = []
    for block in model.blocks:
        block.register_forward_hook(
            lambda m, i, o: counts.append((o[0] if isinstance(o, tuple) else o).shape[1] - 1)
        )
    features = model.forward_features(x)
    assert tuple(counts) == kept
    assert features.shape == (3, kept[-1] + 1, 24)
    if method not in ("grid", "tome"):
        assert kept == SCHEDULE
    assert model(x).shape == (3, 5)


@pytest.mark.parametrize("method", tp.METHODS)
def test_the_dense_schedule_changes_not_one_bit(method):
    model, x = randomise(small()), images()
    before, features = model(x), model.forward_features(x)
    tp.pool(model, tp.Schedule.dense(4, 16), method)
    assert torch.equal(model(x), before)
    assert torch.equal(model.forward_features(x), features)


def test_blocks_before_the_first_pooling_change_not_one_bit():
    model, x = randomise(small()), images()
    plain, pooled = [], []
    model.blocks[1].register_forward_hook(lambda m, i, o: plain.append(o))
    model(x)
    tp.pool(model, (16, 16, 9, 5))
    model.blocks[1].register_forward_hook(lambda m, i, o: pooled.append(o))
    model(x)
    assert torch.equal(plain[0], pooled[0])


def test_none_gives_the_very_blocks_back():
    model, x = randomise(small()), images()
    blocks, attns = list(model.blocks), [block.attn for block in model.blocks]
    before = model(x)
    tp.pool(model, SCHEDULE)
    assert not torch.equal(model(x), before)
    tp.pool(model, SCHEDULE, "tome")
    assert tp.pool(model, None) is model
    assert [id(b) for b in model.blocks] == [id(b) for b in blocks]
    assert [id(b.attn) for b in model.blocks] == [id(a) for a in attns]
    assert torch.equal(model(x), before)
    assert tp.pooling_of(model) is None
    tp.pool(model, None)


def test_what_is_changed_on_the_pooled_model_survives_unpooling():
    model = tp.pool(small(), SCHEDULE)
    model.train()
    model.blocks[1].mlp = nn.Sequential(nn.Linear(24, 24))
    model.blocks[2].attn.proj = nn.Linear(24, 24)
    mlp, proj = model.blocks[1].mlp, model.blocks[2].attn.proj
    tp.pool(model, None)
    assert model.blocks[1].mlp is mlp and model.blocks[2].attn.proj is proj
    assert all(module.training for module in model.modules())


def test_pooling_uses_the_tokens_of_the_block_and_the_attention_they_receive():
    """Block 1 against a plain rendering of it: attention, significance, top k, gather."""
    model, x = randomise(small()), images()
    tokens = {}
    model.blocks[0].register_forward_hook(lambda m, i, o: tokens.update(i=i[0], o=o))
    model(x)
    block, entered = model.blocks[0], tokens["i"]
    qkv = block.attn.qkv(block.norm1(entered)).reshape(3, 17, 3, 3, 8).permute(2, 0, 3, 1, 4)
    attention = (qkv[0] @ qkv[1].transpose(-2, -1) / 8**0.5).softmax(-1)
    received = attention.sum((1, 2))[:, 1:]
    from_cls = attention[:, :, 0].sum(1)[:, 1:]
    left = tokens["o"]
    for significance, scores in (("received", received), ("cls", from_cls)):
        tp.pool(model, (9, 9, 9, 9), "powerbert", significance=significance)
        model(x)
        best = scores.topk(9).indices.sort().values
        expected = left[:, 1:].gather(1, best[..., None].expand(-1, -1, 24))
        torch.testing.assert_close(tokens["o"][:, 1:], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tokens["o"][:, :1], left[:, :1], atol=1e-5, rtol=1e-5)
    tp.pool(model, (9, 9, 9, 9), "wkmedoids")
    model(x)
    clusters = tp.kmedoids(left[:, 1:], 9, received, init=received)
    torch.testing.assert_close(tokens["o"][:, 1:], clusters.centers, atol=1e-5, rtol=1e-5)
    tp.pool(model, (9, 9, 9, 9), "kmeans", iterations=3)
    model(x)
    means = tp.kmeans(left[:, 1:], 9, iterations=3, init=received)
    torch.testing.assert_close(tokens["o"][:, 1:], means.centers, atol=1e-5, rtol=1e-5)


def test_hooks_on_blocks_and_attention_keep_firing():
    model, x = small(), images()
    fired = []
    handles = [
        model.blocks[1].register_forward_hook(lambda m, i, o: fired.append("block")),
        model.blocks[1].attn.register_forward_hook(lambda m, i, o: fired.append("attn")),
        model.blocks[1].mlp.register_forward_pre_hook(lambda m, i: fired.append("mlp")),
    ]
    for schedule in (SCHEDULE, tp.Schedule.dense(4, 16), None):
        fired.clear()
        model = tp.pool(model, schedule)
        model(x)
        assert fired == ["attn", "mlp", "block"]
    tp.pool(model, SCHEDULE)
    model.blocks[2].attn.register_forward_hook(lambda m, i, o: fired.append("later"))
    for handle in handles:
        handle.remove()
    fired.clear()
    model(x)
    assert fired == ["later"]
    tp.pool(model, None)(x)
    assert fired == ["later", "later"]


def test_copies_pickles_and_moves_like_any_model():
    model, x = randomise(small()), images()
    tp.pool(model, SCHEDULE)
    expected = model(x)
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(twin(x), expected)
    stream = io.BytesIO(pickle.dumps(twin))
    again = pickle.load(stream)
    assert torch.equal(again(x), expected)
    tp.pool(again, None)
    assert type(again.blocks[0]) is Block
    assert again.double()(x.double()).dtype == torch.float64
    tp.pool(again, SCHEDULE)
    torch.testing.assert_close(again(x.double()).float(), expected, atol=1e-4, rtol=1e-4)
    half = tp.pool(copy.deepcopy(twin), SCHEDULE).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    # Moving swaps the parameters themselves on such devices: both the view and its origin follow.
    away = copy.deepcopy(twin).to("meta")
    assert away.blocks[0].attn.qkv.weight.device.type == "meta"
    assert tp.pool(away, None).blocks[0].attn.qkv.weight.device.type == "meta"


def test_averaged_weights_follow_a_pooled_model():
    model = tp.pool(small(), SCHEDULE)
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.add_(2.0)
    before = ema.module.blocks[0].mlp.fc1.weight.clone()
    ema.update(model)
    torch.testing.assert_close(ema.module.blocks[0].mlp.fc1.weight, before + 1.0)


def test_state_dicts_pass_between_pooled_and_plain():
    plain, pooled = randomise(small()), tp.pool(small(), SCHEDULE)
    pooled.load_state_dict(plain.state_dict())
    expected = tp.pool(copy.deepcopy(plain), SCHEDULE)(images())
    assert torch.equal(pooled(images()), expected)
    fresh = small()
    fresh.load_state_dict(pooled.state_dict())
    assert torch.equal(fresh(images()), plain(images()))


class Frozen:
    """A strategy that decides each time on what it saw first: the assignment is held fixed."""

    def __init__(self, strategy):
        self.strategy, self.seen = strategy, None

    def __getattr__(self, name):
        return getattr(self.strategy, name)

    def reduce(self, given, k, options):
        self.seen = self.seen or given
        given = given._replace(features=self.seen.features, scores=self.seen.scores)
        return self.strategy.reduce(given, k, options)


@pytest.mark.parametrize("method", [m for m in tp.METHODS if m not in ("random", "importance")])
@pytest.mark.parametrize("early", [False, True])
def test_gradients_are_right_with_the_assignment_held_fixed(method, early):
    model = randomise(small()).double()
    tp.pool(model, SCHEDULE, method, position="attention" if early else "block")
    for block in model.blocks:
        block.plan = dataclasses.replace(block.plan, method=Frozen(block.plan.method))
    tokens = torch.randn(
        1, 17, 24, dtype=torch.double, generator=torch.Generator().manual_seed(3)
    ).requires_grad_()

    def two_blocks(x):
        out = model.blocks[1](model.blocks[0](x))
        return out if torch.is_tensor(out) else out.tokens

    assert torch.autograd.gradcheck(two_blocks, (tokens,), fast_mode=True)


@pytest.mark.parametrize("method", tp.METHODS)
def test_checkpointing_gives_the_same_gradients(method):
    model, x = randomise(small()), images()
    tp.pool(model, SCHEDULE, method)
    grads = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        torch.manual_seed(7)
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", tp.METHODS)
def test_autocast_runs_and_stays_close(method):
    model, x = small(), images()
    tp.pool(model, SCHEDULE, method)
    torch.manual_seed(0)
    exact = model(x)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(x)
    cast.float().sum().backward()
    torch.testing.assert_close(cast.float(), exact, atol=0.05, rtol=0.05)
    assert all(p.grad is not None for p in model.blocks.parameters())


@pytest.mark.parametrize(
    "method",
    fast(
        2,
        ["wkmedoids", "tome", "kmeans", "powerbert", "atc", "agglomerative", "pitome", "leader"],
    ),
)
def test_compiles_to_one_graph(method):
    model, x = randomise(small()), images()
    start = {"start": "matching"} if method == "wkmedoids" else {}
    tp.pool(model, SCHEDULE, method, **start)
    torch._dynamo.reset()
    # aot_eager traces forward and backward without the minutes of code generation.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # Code generation and the C++ compiler take about a minute a method.
@pytest.mark.parametrize("method", tp.METHODS)
def test_compiles_with_inductor(method):
    model, x = randomise(small()), images()
    tp.pool(model, SCHEDULE, method)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    torch.manual_seed(0)
    result = compiled(x)
    if method not in ("random", "importance"):
        torch.testing.assert_close(result, model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", tp.METHODS)
def test_no_host_synchronisation_inside_a_pooled_model(method, monkeypatch):
    """Fake tensors have no values: any read of one by the host raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    if method in ("agglomerative", "atc"):
        # On an eager CPU they look whether they may stop; their form for graphs and GPUs must not.
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    model = tp.pool(small(), SCHEDULE, method)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(images())).shape == (3, 5)


def test_pooled_models_do_not_mix_images():
    model = randomise(small())
    x = images(5)
    for method in CLUSTERING:
        tp.pool(model, SCHEDULE, method)
        features = model.forward_features(x)
        for index in range(5):
            alone = model.forward_features(x[index : index + 1])
            # The transformer's own products may differ in the last bit with the batch.
            torch.testing.assert_close(alone[0], features[index], atol=1e-4, rtol=1e-4)


def test_random_methods_draw_from_their_generator():
    model, x = randomise(small()), images()
    for method in ("random", "importance"):
        draws = []
        for seed in (1, 1, 2):
            generator = torch.Generator().manual_seed(seed)
            tp.pool(model, SCHEDULE, method, generator=generator)
            torch.manual_seed(seed + 100 * len(draws))
            draws.append(model(x))
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_importance_draws_in_proportion():
    """With k = 1 each token is drawn as often as its share of the significance."""
    from tokenpool.methods.base import TokenSet

    scores = torch.tensor([[1.0, 2.0, 5.0, 0.0]]).expand(40_000, -1)
    tokens = torch.arange(4.0).view(1, 4, 1).expand(40_000, -1, -1)
    options = tp.PoolOptions(generator=torch.Generator().manual_seed(0))
    given = TokenSet(tokens, tokens, scores, None, None)
    drawn = method_named("importance").reduce(given, 1, options).tokens.flatten().long()
    share = torch.bincount(drawn, minlength=4) / 40_000
    torch.testing.assert_close(share, torch.tensor([0.125, 0.25, 0.625, 0.0]), atol=0.01, rtol=0)


def test_cls_only_last_is_exact():
    for options in ({}, {"reg_tokens": 2}, {"init_values": 0.1}):
        model, x = randomise(small(**options)), images()
        dense = model(x)
        tp.pool(model, tp.Schedule.dense(4, 16), cls_only_last=True)
        assert model.forward_features(x).shape[1] == 1
        torch.testing.assert_close(model(x), dense, atol=1e-5, rtol=1e-5)
        tp.pool(model, SCHEDULE)
        pooled = model(x)
        tp.pool(model, SCHEDULE, cls_only_last=True)
        torch.testing.assert_close(model(x), pooled, atol=1e-5, rtol=1e-5)


def test_proportional_attention_counts_a_merged_token_as_many():
    """Twice the same token merged into one of size 2 must attend as the two did."""
    model = randomise(small())
    block = tp.pool(model, tp.Schedule.dense(4, 16), "kmedoids", proportional_attention=True)
    from tokenpool.vit import SizedTokens

    token = torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(4))
    doubled = torch.cat((token, token[:, 3:]), 1)
    sizes = torch.tensor([[1.0, 1, 1, 2, 2, 2]])
    last = block.blocks[3]
    merged, plain = last(SizedTokens(token, sizes)), last(doubled)
    torch.testing.assert_close(merged, plain[:, :6], atol=1e-5, rtol=1e-5)


def test_tome_merges_the_most_similar_pairs_by_size():
    from tokenpool.methods.base import TokenSet

    keys = torch.tensor([[[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, 0], [0, -1]]])
    tokens = torch.arange(1.0, 7).view(1, 6, 1)
    sizes = torch.tensor([[3.0, 1, 1, 1, 1, 1]])
    pooled = method_named("tome").reduce(
        TokenSet(tokens, keys, None, sizes, None), 4, tp.PoolOptions()
    )
    # Tokens 0→1 and 2→3 are the two most similar even-odd pairs; 4 stays, first.
    torch.testing.assert_close(
        pooled.tokens.flatten(), torch.tensor([5.0, (3 * 1 + 2) / 4, (3 + 4) / 2, 6.0])
    )
    assert pooled.assignment.tolist() == [[1, 1, 2, 2, 0, 3]]


def test_tome_says_where_it_cannot_halve_again():
    model = tp.pool(small(), (7, 7, 7, 1), "tome")
    assert tp.pooling_of(model).schedule == (7, 7, 7, 1)
    assert tp.pooling_of(model).realised == (8, 7, 7, 4)
    assert model.forward_features(images()).shape[1] == 5


def test_grid_averages_cells_and_reports_what_it_keeps():
    model, x = randomise(small()), images()
    seen = {}
    model.blocks[0].register_forward_hook(lambda m, i, o: seen.update(out=o))
    model(x)
    left = seen["out"]
    tp.pool(model, (5, 5, 5, 3), "grid")
    assert tp.pooling_of(model).realised == (4, 4, 4, 2)
    model(x)
    cells = left[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    expected = torch.nn.functional.avg_pool2d(cells, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen["out"][:, 1:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 112}),
        ("vit_medium_patch16_gap_240", {}),
        ("vit_base_patch16_clip_224", {}),
        ("vit_base_patch16_siglip_224", {}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    ],
)
def test_real_timm_models(name, options):
    model = timm.create_model(name, num_classes=3, depth=3, **options).eval()
    patches, prefix = model.patch_embed.num_patches, model.num_prefix_tokens
    x = torch.randn(1, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        before = model(x)
        tp.pool(model, tp.Schedule.dense(3, patches))
        assert torch.equal(model(x), before)
        tp.pool(model, tp.Schedule.constant_rate(3, patches, 0.7))
        kept = tp.pooling_of(model).schedule[-1]
        # A head that reads patches is given back all of them.
        left = kept if model.global_pool == "token" else patches
        assert model.forward_features(x).shape[1] == left + prefix
        assert model(x).shape == (1, 3)
        if options.get("dynamic_img_size"):
            larger = model.forward_features(torch.randn(1, 3, 256, 192))
            assert larger.shape[1] == kept + prefix
            # Fewer patches than the schedule asks for: nothing to pool there.
            smaller = model.forward_features(torch.randn(1, 3, 64, 64))
            assert smaller.shape[1] == 16 + prefix
        tp.pool(model, None)
        assert torch.equal(model(x), before)


def test_prefix_tokens_are_never_pooled():
    """The class token after a pooling block is the one of the block itself."""
    model, x = randomise(small(reg_tokens=3)), images()
    seen = {}
    model.blocks[0].register_forward_hook(lambda m, i, o: seen.update(out=o))
    model(x)
    before = seen["out"][:, :4]
    for method in CLUSTERING:
        tp.pool(model, SCHEDULE, method)
        model(x)
        torch.testing.assert_close(seen["out"][:, :4], before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer cannot be pooled"),
        ("pvt_v2_b0", "PyramidVisionTransformerV2 cannot be pooled"),
        ("resnet18", "ResNet cannot be pooled"),
        ("vit_small_patch16_36x1_224", None),
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos cannot be pooled"),
    ],
)
def test_unsupported_kinds_are_refused_by_name(name, message):
    with torch.device("meta"):
        model = timm.create_model(name)
    if message is None:
        tp.pool(model, tp.Schedule.dense(36, 196))
        return
    with pytest.raises(ValueError, match=message):
        tp.pool(model, tp.Schedule.dense(12, 196))


def test_a_strange_child_of_a_block_is_refused():
    model = small()
    model.blocks[1].adapter = nn.Linear(24, 24)
    with pytest.raises(ValueError, match="block 2 has a child 'adapter'"):
        tp.pool(model, SCHEDULE)
    assert type(model.blocks[0]) is Block


def test_bad_arguments_are_refused_and_leave_the_model_alone():
    model = small()
    cases = [
        ("the schedule has 3 layers but the model has 4 blocks", ((9, 9, 9),), {}),
        ("layer 1 keeps 17 tokens but the model has only 16", ((17, 9, 9, 9),), {}),
        ("layer 2 keeps 12 tokens but layer 1 keeps only 9", ((9, 12, 9, 9),), {}),
        ("no pooling method 'kmedoid'", (SCHEDULE, "kmedoid"), {}),
        ("no pooling option 'iteration'", (SCHEDULE,), {"iteration": 3}),
        (
            "features is 'queries' but must be one of tokens, keys",
            (SCHEDULE,),
            {"features": "queries"},
        ),
        ("iterations is -1", (SCHEDULE,), {"iterations": -1}),
    ]
    for message, arguments, options in cases:
        with pytest.raises(ValueError, match=message):
            tp.pool(model, *arguments, **options)
        assert all(type(block) is Block for block in model.blocks)
    headless = VisionTransformer(
        16, 4, embed_dim=24, depth=4, num_heads=3, class_token=False, global_pool="avg"
    )
    with pytest.raises(ValueError, match="'cls' needs a class token"):
        tp.pool(headless, SCHEDULE, "wkmedoids", significance="cls")
    with pytest.raises(ValueError, match="cls_only_last needs a head"):
        tp.pool(headless, SCHEDULE, cls_only_last=True)
    tp.pool(headless, SCHEDULE)
    with pytest.raises(ValueError, match="block 1 pools 16 tokens to 13: an attention mask"):
        tp.pool(model, SCHEDULE)(images(), attn_mask=torch.zeros(17, 17))


def test_nan_images_do_not_break_the_indexing():
    """Inside a model nothing is checked (it would wait for the device), but nothing crashes."""
    x = images()
    x[0] = float("nan")
    for method in tp.METHODS:
        model = tp.pool(small(), SCHEDULE, method)
        assert torch.isfinite(model(x)[1:]).all()


def test_widths_that_heads_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match="width 100 is not divisible by its 3 heads: use 99 or 102"
    ):
        tp.build_vit(32, 4, 100, 6, 3, 10)
    with pytest.raises(ValueError, match="image size 30 is not a multiple of the patch size 4"):
        tp.build_vit(30, 4, 96, 6, 3, 10)


@pytest.mark.parametrize("method", fast(1, ["wkmedoids", "kmeans"]))
def test_a_compiler_for_a_cpu_sees_one_operator_and_an_exporter_none(method):
    """Exported programs have to run where this package is not."""
    model, x = randomise(small()), images()
    tp.pool(model, SCHEDULE, method)
    graphs = []

    def backend(graph, _):
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend=backend)(x), model(x))
    assert "torch.ops.tokenpool" in graphs[0]
    program = torch.export.export(model, (x,))
    assert "tokenpool" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x))
