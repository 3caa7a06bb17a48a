"""Models of three libraries, small: every site holds in training and evaluation, on the example inputs, at another
batch and at another length. Run with ``-s`` for the table of sites and shares."""

import gc
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from detection.drift import drifts
from detection.nets import GROUPS
from torch import Tensor, nn

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.detection.report import reached

SMALL = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
    "max_position_embeddings": 32, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
GPT = {
    "vocab_size": 50, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
KEY_VALUE = {**SMALL, "num_key_value_heads": 3, "head_dim": 8}
SOUND = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "conv_dim": (16, 16),
    "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "vocab_size": 20,
}  # fmt: skip
VIT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip

TEXT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", SMALL),
    "roberta": ("RobertaModel", "RobertaConfig", {**SMALL, "max_position_embeddings": 40}),
    "electra": ("ElectraModel", "ElectraConfig", {**SMALL, "embedding_size": 24}),
    "albert": ("AlbertModel", "AlbertConfig", {**SMALL, "embedding_size": 16}),
    "distilbert": ("DistilBertModel", "DistilBertConfig",
                   {"vocab_size": 50, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 32,
                    "max_position_embeddings": 32}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig",
                {"vocab_size": 50, "hidden_size": 24, "num_layers": 2, "num_heads": 3, "max_position_embeddings": 32,
                 "attention_types": [[["global", "local"], 1]], "window_size": 4, "bos_token_id": None,
                 "eos_token_id": None}),
    "opt": ("OPTForCausalLM", "OPTConfig",
            {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 24, "bos_token_id": 1, "eos_token_id": 2}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 50, "hidden_size": 24, "n_layer": 2, "n_head": 3}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", KEY_VALUE),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**KEY_VALUE, "sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", KEY_VALUE),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", KEY_VALUE),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", KEY_VALUE),
    "cohere": ("CohereForCausalLM", "CohereConfig", KEY_VALUE),
    "phi": ("PhiForCausalLM", "PhiConfig", {**SMALL, "num_key_value_heads": 3}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {**SMALL, "num_key_value_heads": 3}),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", {**SMALL, "num_key_value_heads": 3}),
    "nemotron": ("NemotronForCausalLM", "NemotronConfig", KEY_VALUE),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", {**SMALL, "num_key_value_heads": 3}),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", {**GPT, "n_head": 4, "n_embd": 32, "rotary_dim": 4}),
}  # fmt: skip
SPEECH = {
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", SOUND),
    "hubert": ("HubertModel", "HubertConfig", SOUND),
}
PICTURES = {
    "vit": ("ViTModel", "ViTConfig", VIT),
    "deit": ("DeiTModel", "DeiTConfig", VIT),
    "beit": ("BeitModel", "BeitConfig", VIT),
    "dinov2": ("Dinov2Model", "Dinov2Config", VIT),
}
TORCHVISION = [
    "resnet18",
    "vgg11",
    "squeezenet1_1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
    "densenet121",
    "googlenet",
]
TIMM = [
    "resnet10t",
    "resnet14t.c3_in1k",
    "convnext_atto",
    "mobilenetv3_small_050",
    "lcnet_035",
    "mixnet_s",
    "ghostnet_050",
    "tf_efficientnet_lite0",
    "regnetx_002",
    "regnety_002",
    "semnasnet_075",
    "hardcorenas_a",
    "repvgg_a0",
    "edgenext_xx_small",
    "mobileone_s0",
    "fbnetc_100",
    "dla46_c",
    "darknet17",
    "selecsls42",
    "tinynet_e",
]

TOLERANCE = {"cohere": 1e-6, "gemma": 1e-6}  # whose norms compute in float32 whatever the model is in
LEAST = {"torchvision googlenet": 0.998, "wav2vec2": 0.39, "hubert": 0.43}  # shares that must be reached


def built(library: Any, model: str, config: str, options: dict[str, Any]) -> nn.Module:
    return getattr(library, model)(getattr(library, config)(**options))


def words() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(1))}


def more_words() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(1, 50, (3, 11), generator=torch.Generator().manual_seed(2))}


def noise(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def hugging(entry: tuple[str, str, dict[str, Any]]) -> Callable[[], nn.Module]:
    return lambda: built(transformers, *entry)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Callable[[], Any]]] = {
    **{name: (hugging(entry), words, more_words) for name, entry in TEXT.items()},
    **{name: (hugging(entry), noise(2, 400), noise(3, 510)) for name, entry in SPEECH.items()},
    **{name: (hugging(entry), noise(2, 3, 16, 16), noise(3, 3, 16, 16)) for name, entry in PICTURES.items()},
    **{
        f"torchvision {name}": (
            lambda name=name: getattr(torchvision.models, name)(
                weights=None, **({"init_weights": False} if name == "googlenet" else {})
            ),
            noise(2, 3, 64, 64), noise(3, 3, 80, 80),
        )
        for name in TORCHVISION
    },
    **{
        f"timm {name}": (lambda name=name: timm.create_model(name), noise(2, 3, 64, 64), noise(3, 3, 96, 96))
        for name in TIMM
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_site_holds_in_both_modes_at_other_sizes(name: str) -> None:
    build, inputs, others = MODELS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build().eval()
        found = find_symmetries(model, inputs())
        counts = Counter(GROUPS.get(type(site.group), type(site.group).__name__) for site in found.sites)
        listed = ", ".join(f"{count} {group}" for group, count in sorted(counts.items()))
        print(f"\n{name:30} {len(found.sites):4} sites {reached(model, found):6.1%}  {listed}")
        assert reached(model, found) >= LEAST.get(name, 0.0)
        assert not any("not a symmetry" in refusal.reason for refusal in found.refusals), str(found)
        for given in (inputs(), others()):
            assert drifts(model, given, found.sites, 2, alone=False)["all"] <= TOLERANCE.get(name, 1e-9)
    gc.collect()
