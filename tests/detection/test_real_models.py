"""Models as people use them, with random weights: their sites counted by hand, block by block, and tried on numbers."""

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import peft
import pytest
import timm
import torch
import torchvision
import transformers
from detection.drift import drifts
from detection.nets import GROUPS
from torch import Tensor, nn

from meta_teleport.detection.check import TOLERANCE, Check
from meta_teleport.detection.detect import find_symmetries
from meta_teleport.detection.report import reached
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.tracing.trace import Examples, given


@dataclass(frozen=True)
class Real:
    """A model, its inputs, how many sites of each kind it has, the share of its numbers that they reach, refusals."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Examples]
    sites: dict[str, int]
    share: float
    refusals: tuple[str, ...]

    def __hash__(self) -> int:
        return hash(self.name)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.build().eval()


def vision(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(weights=None, **options)


def small_vgg(name: str) -> nn.Module:
    """A VGG that flattens 2 x 2 places in front of its hidden layers instead of 7 x 7: 40 instead of 133 million
    numbers, and the same sites."""
    model = vision(name)()
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier[0] = nn.Linear(512 * 4, 4096)
    return model


def images(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def text() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(1))}


def sequences() -> tuple[Tensor, Tensor]:
    source, target = torch.randn(2, 2, 5, 16, generator=torch.Generator().manual_seed(1))
    return source, target[:, :4]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=None
    )
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertModel(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, image_size=16, patch_size=8
    )
    return transformers.ViTModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=16, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gemma() -> nn.Module:
    config = transformers.GemmaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=16, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    return transformers.GemmaForCausalLM(config)


def nemotron() -> nn.Module:
    config = transformers.NemotronConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=16, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.NemotronForCausalLM(config)


def falcon() -> nn.Module:
    config = transformers.FalconConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=6, num_kv_heads=2,
        new_decoder_architecture=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.FalconForCausalLM(config)


def neox() -> nn.Module:
    config = transformers.GPTNeoXConfig(
        vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config)


def beit() -> nn.Module:
    """With layer scales and a head large enough that what is done below them is seen."""
    model = timm.create_model(
        "beit_base_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=3, num_classes=5, init_values=1.0
    )
    nn.init.normal_(model.head.weight)
    return model


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=16, num_local_experts=4, num_experts_per_tok=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def gpt2_with_adapters() -> nn.Module:
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    return peft.get_peft_model(gpt2(), config)


def dense_sites(width: int, layers: tuple[int, ...]) -> dict[str, int]:
    """The sites of a DenseNet that begins with ``width`` channels and halves them behind each block but the last."""
    sites = Counter()
    for count in layers:
        sites[f"permute {width}"] += 1
        sites.update({"permute 128": count, "scale 128": count})
        sites.update(f"scale {width + 32 * i}" for i in range(count + 1))
        width = (width + 32 * count) // 2
    return dict(sites)


# Fast ones: two layers each, width 24 in heads of 8 (LLaMA: six query heads and two key heads of 4).
SMALL = [
    Real(
        "transformer",
        lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True),
        sequences,
        # 2 encoder layers with one attention, 2 decoder layers with two; the hidden layer of each has dropout, so no
        # permutations; all norms stand in front of another norm but the encoder's last, which every decoder layer reads
        {"gl 8x2 query-key": 6, "gl 8x2 value-output": 6, "scale 32": 4, "scale 16": 1},
        10_688 / 11_200,
        ("normalized by layer_norm in 'decoder.norm'", "are outputs of the model"),
    ),
    Real(
        "gpt2",
        gpt2,
        text,
        # per block: two norms that linear maps read, both pairs of attention, a hidden layer with gelu; the last norm
        # is read by the tied head
        {"gl 8x3 query-key": 2, "gl 8x3 value-output": 2, "scale 24": 4, "permute 96": 2},
        2 * 4_776 / 16_080,
        (
            "pass, and are not positively homogeneous: pow in 'transformer.h.0.mlp.act'",
            "depend on 'transformer.wte.weight', which embedding in 'transformer.wte' (Embedding) and linear in "
            "'lm_head' (Linear) share",
        ),
    ),
    Real(
        "gpt2_with_adapters",
        gpt2_with_adapters,
        text,
        # three linear maps per block have adapters, all else is frozen
        {"gl 4": 6},
        1.0,
        ("depend on 'base_model.model.transformer.h.0.ln_1.weight', which is frozen",),
    ),
    Real(
        "bert",
        bert,
        text,
        # norms stand behind the sums, so what they make is normalized again or returned
        {"gl 8x3 query-key": 2, "gl 8x3 value-output": 2, "permute 32": 2},
        2 * 2_376 / 10_456,
        ("normalized by layer_norm in 'encoder.layer.0.output.LayerNorm' (LayerNorm)", "tanh in 'pooler.activation'"),
    ),
    Real(
        "vit",
        vit,
        images(16),
        # as GPT-2, but the last norm is an output
        {"gl 8x3 query-key": 2, "gl 8x3 value-output": 2, "scale 24": 4, "permute 32": 2},
        2 * 3_240 / 13_600,
        ("gelu in 'layers.0.mlp.activation_fn'", "are outputs of the model"),
    ),
    Real(
        "llama",
        llama,
        text,
        # two norms per block and the last, which the untied head reads; the ungated half of each hidden layer;
        # queries and keys are rotated, two pairs of numbers in each of two key heads
        {"gl 4x2 value-output": 2, "scale 4": 2, "scale 24": 5, "scale 40": 2, "permute 40": 2},
        10_152 / 11_352,
        ("silu in 'model.layers.0.mlp.act_fn'",),
    ),
    Real(
        "nemotron",
        nemotron,
        text,
        # layer norms with scales 1 + gamma; the squared relu is no layer of gates; half of each head is rotated
        {
            "gl 4x2 value-output": 2,
            "gl 2x2 query-key": 2,
            "scale 2": 2,
            "scale 24": 5,
            "permute 40": 2,
        },
        1 - (50 * 24 + 2 * 24 * 40) / 9_552,
        ("square in 'model.layers.0.mlp.act_fn' (ReLUSquaredActivation)",),
    ),
    Real(
        "falcon",
        falcon,
        text,
        # as LLaMA, packed; both norms of the block stand beside one another, the tied head reads the last; gelu
        # keeps what reads the hidden layer
        {"gl 4x2 value-output": 1, "scale 4": 1, "scale 24": 2, "permute 96": 1},
        (24 * 40 + 24 * 24 + 24 * 96 + 2 * 48) / 7_488,
        ("gelu in 'transformer.h.0.mlp.act'",),
    ),
    Real(
        "neox",
        neox,
        text,
        # two heads of 12, of which 4 are rotated; three norms
        {"gl 8x2 query-key": 1, "gl 12x2 value-output": 1, "scale 4": 1, "scale 24": 3, "permute 32": 1},
        (24 * 72 + 72 + 24 * 24 + 24 * 32 + 3 * 48 + 50 * 24) / 6_536,
        ("gelu in 'gpt_neox.layers.0.mlp.act'",),
    ),
    Real(
        "beit",
        beit,
        images(32),
        # the bias of queries, zeros and the bias of values side by side; layer scales are layers
        {"gl 8x3 query-key": 1, "gl 8x3 value-output": 1, "scale 24": 5},
        (4 * 24 * 24 + 3 * 24 + 2 * 24 * 96 + 24 + 2 * 24 + 3 * 48 + 5 * 24) / 25_937,
        ("is used by index in 'blocks.0.attn' (Attention)",),
    ),
]

ROUNDED = [  # which compute in float32 inside, whatever they are given
    Real(
        "gemma",
        gemma,
        text,
        # as LLaMA, with scales 1 + gamma; the tied head reads the last norm
        {"gl 4x2 value-output": 2, "scale 4": 2, "scale 24": 4, "scale 40": 2, "permute 40": 2},
        1 - (50 * 24 + 24) / 10_152,
        ("gelu in 'model.layers.0.mlp.act_fn'", "pow in 'model.layers.0.input_layernorm' (GemmaRMSNorm)"),
    ),
    Real(
        "mixtral",
        mixtral,
        text,
        # as LLaMA, but the norm in front of the experts is read by them and by their router; four experts, which can
        # be exchanged
        {"gl 4x2 value-output": 2, "scale 4": 2, "scale 24": 5, "scale 40": 2, "permute 40": 2, "permute 4": 2},
        1 - 1_200 / 28_824,
        ("softmax in 'model.layers.0.mlp.gate'",),
    ),
]

# Slow ones: at the smallest images that they take.
LARGE = [
    Real(
        "alexnet",
        vision("alexnet"),
        images(64),
        # five convolutions, two hidden layers; no permutations through dropout, which comes before the hidden layers
        {
            "scale 64": 1, "scale 192": 1, "scale 384": 1, "scale 256": 2, "scale 4096": 2,
            "permute 64": 1, "permute 192": 1, "permute 384": 1, "permute 256": 1, "permute 4096": 1,
        },
        1 - 1_000 / 61_100_840,
        ("are outputs of the model",),
    ),
    Real(
        "vgg11",
        lambda: small_vgg("vgg11"),
        images(32),
        # eight convolutions, two hidden layers with dropout behind them
        {
            "scale 64": 1, "scale 128": 1, "scale 256": 2, "scale 512": 4, "scale 4096": 2,
            "permute 64": 1, "permute 128": 1, "permute 256": 2, "permute 512": 4,
        },
        1 - 1_000 / 38_491_496,
        ("are outputs of the model",),
    ),
    Real(
        "vgg11_bn",
        lambda: small_vgg("vgg11_bn"),
        images(32),
        # the scales of the norms instead of the convolutions; permutations take the running statistics along
        {
            "scale 64": 1, "scale 128": 1, "scale 256": 2, "scale 512": 4, "scale 4096": 2,
            "permute 64": 1, "permute 128": 1, "permute 256": 2, "permute 512": 4,
        },
        1 - 5_480 / 38_497_000,
        ("normalized by batch_norm in 'features.1' (BatchNorm2d)",),
    ),
    Real(
        "resnet18",
        vision("resnet18"),
        images(64),
        # per stage: one stream that the norms of both blocks feed, and the first norm of each block
        {f"{group} {width}": 3 for group in ("scale", "permute") for width in (64, 128, 256, 512)},
        1 - 10_408 / 11_689_512,
        ("normalized by batch_norm in 'layer2.0.downsample.1' (BatchNorm2d)",),
    ),
    Real(
        "densenet121",
        vision("densenet121"),
        images(64),
        # blocks of 6, 12, 24 and 16 layers. Permutations: the stem, in every layer a bottleneck of 128, and 128, 256
        # and 512 channels between the blocks, not the 32 new channels of a layer, which may be dropped. Scales: both
        # norms of every layer, and the one behind each block
        dense_sites(64, (6, 12, 24, 16)),
        1 - (9_408 + 128 + 1_000) / 7_978_856,
        ("normalized by batch_norm in 'features.norm5' (BatchNorm2d)",),
    ),
    Real(
        "mobilenet_v2",
        vision("mobilenet_v2"),
        images(64),
        # one linear bottleneck per stage; all else passes ReLU6: the stem, and what each block expands to six times
        # the width of its input, changes places with the depthwise convolution behind it; dropout in front of the head
        {
            **{f"{group} {width}": 1 for group in ("scale", "permute") for width in (16, 24, 64, 160, 320)},
            "scale 32": 1, "permute 32": 2, "scale 96": 1, "permute 96": 2,
            "permute 144": 2, "permute 192": 3, "permute 384": 4, "permute 576": 3, "permute 960": 3,
        },
        1_164_480 / 3_504_872,
        ("hardtanh in 'features.0.2' (ReLU6)",),
    ),
    Real(
        "vit_b_16",
        vision("vit_b_16", image_size=64),
        images(64),
        # 12 blocks as in GPT-2 and the last norm; no permutations of hidden layers, behind which there is dropout
        {"gl 64x12 query-key": 12, "gl 64x12 value-output": 12, "scale 768": 25},
        57_457_152 / 86_429_416,
        ("normalized by layer_norm in 'encoder.layers.encoder_layer_0.ln_1' (LayerNorm)",),
    ),
    Real(
        "convnext_tiny",
        vision("convnext_tiny"),
        images(64),
        # 3, 3, 9, 3 blocks: a norm that a linear map reads, the second linear map that the layer scale reads, a hidden
        # layer of four times the width; one norm behind each stage
        {
            "scale 96": 7, "scale 192": 7, "scale 384": 19, "scale 768": 7,
            "permute 384": 3, "permute 768": 3, "permute 1536": 9, "permute 3072": 3,
        },
        28_224_192 / 28_589_128,
        ("normalized by layer_norm in 'features.1.0.block.2' (LayerNorm)",),
    ),
    Real(
        "swin_t",
        vision("swin_t"),
        images(64),
        # 2, 2, 6, 2 blocks with two norms each; merging norms of 384, 768 and 1536 between the stages; the last norm;
        # dropout behind the hidden layers
        {
            "gl 32x3 query-key": 2, "gl 32x6 query-key": 2, "gl 32x12 query-key": 6, "gl 32x24 query-key": 2,
            "gl 32x3 value-output": 2, "gl 32x6 value-output": 2, "gl 32x12 value-output": 6,
            "gl 32x24 value-output": 2,
            "scale 96": 4, "scale 192": 4, "scale 384": 13, "scale 768": 6, "scale 1536": 1,
        },
        19_606_464 / 28_288_354,
        ("is used by index in 'features.1.0.attn' (ShiftedWindowAttention), on which no group acts",),
    ),
    Real(
        "timm_vit_tiny",
        lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False),
        images(224),
        # dropout of rate zero stands behind the hidden units, so they do not change places
        {"gl 64x3 query-key": 12, "gl 64x3 value-output": 12, "scale 192": 25},
        3_747_456 / 5_717_416,
        ("normalized by layer_norm in 'blocks.0.norm1' (LayerNorm)",),
    ),
    Real(
        "timm_mixer_s32",
        lambda: timm.create_model("mixer_s32_224", pretrained=False),
        images(224),
        # 8 blocks; a linear map over places reads all 512 units of the first norm alike: one number for all of them
        {"scale 1": 8, "scale 512": 9},
        9_018_368 / 19_104_624,
        ("gelu in 'blocks.0.mlp_tokens.act'",),
    ),
    Real(
        "timm_levit_192",
        lambda: timm.create_model("levit_192"),
        images(224),
        # a norm behind every linear map, so that streams scale but the last one, which the heads normalize: 192 in
        # front of the first reduction (read by 4 blocks of queries, keys and values, and of hidden layers, and by the
        # reduction), 288 in front of the second (by one more hidden layer); queries with keys of all 12 blocks and
        # both reductions; what the heads read. hardswish keeps the rest in size. Values are twice as wide as keys,
        # four times in reductions
        {
            "scale 192": 6, "scale 96": 4, "scale 160": 4, "scale 288": 2, "scale 384": 2,
            "permute 24": 1, "permute 48": 1, "permute 96": 1, "permute 192": 1, "permute 288": 1,
            "permute 32x3": 4, "permute 32x5": 4, "permute 32x6": 5, "permute 32x9": 1,
            "permute 64x3": 4, "permute 64x5": 4, "permute 64x6": 4, "permute 128x6": 1, "permute 128x9": 1,
        },
        (
            192 * (4 * (384 + 384) + 960 + 192) + 288 * (4 * 640 + 5 * 576 + 1440 + 288) + 2 * 384 * 1000
            + 2 * (9 * 192 + 10 * 288 + 4 * (384 + 640 + 768) + 960 + 192 + 1440 + 288 + 2 * 384)
        ) / 10_947_069,
        ("hardswish in 'stem.act1' (Hardswish)", "batch_norm in 'head.bn' (BatchNorm1d)"),
    ),
    Real(
        "timm_nf_regnet_b0",
        lambda: timm.create_model("nf_regnet_b0"),
        images(64),
        # convolutions whose weights are standardized: channels of the stem and of each stage change places, their gains
        # meet other standardized weights; 16 squeezes of 1 + 1 + 3 + 6 + 5 blocks with a relu between two plain maps
        {
            **{f"{group} {width}": count for group in ("scale", "permute")
               for width, count in ((24, 1), (48, 1), (96, 3), (184, 6), (368, 5))},
            "permute 40": 2, "permute 80": 1, "permute 160": 1, "permute 328": 1,
        },
        sum(n * (2 * c * r + r) for n, r, c in ((1, 24, 40), (1, 48, 88), (3, 96, 184), (6, 184, 360), (5, 368, 736)))
        / 8_764_288,
        ("not positively homogeneous: silu", "not positively homogeneous: sigmoid"),
    ),
]  # fmt: skip

MODELS = [*SMALL, *(pytest.param(real, marks=pytest.mark.slow) for real in LARGE)]


def kind(site: Site) -> str:
    """``gl 8x2 query-key``, ``scale 24``: what the counts are of."""
    size = "x".join(map(str, (site.group.k, *site.group.blocks)))
    role = next((f" {role}" for role in ("query-key", "value-output") if role in site.name), "")
    return f"{GROUPS[type(site.group)]} {size}{role}"


@cache
def found(real: Real) -> Symmetry:
    return find_symmetries(real.model(), real.inputs())


@pytest.mark.parametrize("real", [*MODELS, *ROUNDED], ids=lambda real: real.name)
def test_sites_are_those_counted_by_hand(real: Real) -> None:
    symmetry = found(real)
    assert Counter(map(kind, symmetry.sites)) == real.sites
    assert reached(real.model(), symmetry) == pytest.approx(real.share, abs=1e-6)
    for reason in real.refusals:
        assert any(reason in refusal.reason for refusal in symmetry.refusals), symmetry.refusals
    gc.collect()


@pytest.mark.parametrize("real", MODELS, ids=lambda real: real.name)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_outputs_stay_at_twenty_elements_of_all_sites(real: Real, dtype: torch.dtype, tolerance: float) -> None:
    model, inputs = real.model(), real.inputs()
    sites = found(real).sites
    assert drifts(model, inputs, sites, 20, alone=False, dtype=dtype, modes=(False,))["all"] <= tolerance
    gc.collect()


@pytest.mark.parametrize("real", ROUNDED, ids=lambda real: real.name)
def test_outputs_stay_but_for_rounding_in_float32(real: Real) -> None:
    """The check knows what they compute in, and a site that lacks one view moves the outputs by far more."""
    model, sites = real.model(), found(real).sites
    assert Check(model, [given(model, real.inputs())]).lowest is torch.float32

    def moves(sites: tuple[Site, ...], trials: int) -> float:
        return drifts(model, real.inputs(), sites, trials, alone=False, dtype=torch.float32, modes=(False,))["all"]

    assert moves(sites, 5) <= TOLERANCE[torch.float32]
    lacking = [moves((next(lacking_one(site))[0],), 1) for site in sites]
    assert sum(drift > 10 * TOLERANCE[torch.float32] for drift in lacking) > len(lacking) / 2, lacking


@pytest.mark.parametrize("real", SMALL, ids=lambda real: real.name)
def test_outputs_stay_in_training_too(real: Real) -> None:
    worst = drifts(real.model(), real.inputs(), found(real).sites, 5, modes=(True,))
    assert max(worst.values()) <= 1e-10, worst


def lacking_one(site: Site) -> Iterator[tuple[Site, View]]:
    """The site without one of its producers or consumers, each in turn, and the one that it lacks."""
    for i, view in enumerate(site.producers):
        yield replace(site, producers=site.producers[:i] + site.producers[i + 1 :]), view
    for i, view in enumerate(site.consumers):
        yield replace(site, consumers=site.consumers[:i] + site.consumers[i + 1 :]), view


@pytest.mark.parametrize("real", SMALL, ids=lambda real: real.name)
def test_a_site_that_lacks_one_view_moves_the_outputs(real: Real) -> None:
    """All do but one kind: what the bias of the keys adds is the same for every key, and softmax ignores it. Query-key
    pairs move the outputs least (1e-6), as small random weights attend to all places nearly alike."""
    model, inputs = real.model(), real.inputs()
    seen, ignored = [], []
    for site in found(real).sites:
        for lacking, view in lacking_one(site):
            key_bias = "query-key" in site.name and view.ndim == 1 and view in site.consumers
            drift = drifts(model, inputs, (lacking,), 1, alone=False, modes=(False,))["all"]
            (ignored if key_bias else seen).append(drift)
    assert max(seen) > 1e-3
    assert min(seen) > 1e-7
    assert max(ignored, default=0.0) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "build", "size"),
    [(name, vision(name), 32) for name in ("vgg11", "vgg11_bn")] + [("vit_b_16", vision("vit_b_16"), 224)],
    ids=lambda value: str(value) if isinstance(value, (str, int)) else "",
)
def test_full_size_changes_nothing(name: str, build: Callable[[], nn.Module], size: int) -> None:
    with torch.no_grad():
        symmetry = find_symmetries(build().eval(), images(size)(), check=False)
    assert Counter(map(kind, symmetry.sites)) == next(real.sites for real in LARGE if real.name == name)
    gc.collect()
