"""What detection finds in well-known networks: sites, share of the parameters reached, drift, seconds.

    python -m experiments.symmetries.run            all models; 2 minutes on two cores
    python -m experiments.symmetries.run --smoke    three small ones

torchvision's, transformers' and timm's own classes with random weights, in training mode. Prints a Markdown table and
writes all sites and refusals to symmetries.json in --out.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn

import meta_teleport as mt
from experiments.lab.script import parser, run
from experiments.lab.tables import line, table
from meta_teleport.detection.report import report
from meta_teleport.runs.provenance import provenance
from meta_teleport.runs.run import write_json

IMAGE = (2, 3, 224, 224)
CONVOLUTIONS = ("alexnet", "vgg11", "vgg11_bn", "resnet18", "densenet121", "mobilenet_v2", "convnext_tiny")
TORCHVISION = (*CONVOLUTIONS, "vit_b_16", "swin_t")
TIMM = ("vit_tiny_patch16_224", "levit_192", "mixer_s32_224", "regnetx_002", "efficientnet_b0", "nf_regnet_b0")
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
GROUPS = {"GL": "GL", "scaling": "PositiveScaling", "signs": "SignFlips", "permutation": "Permutation"}
COLUMNS = ("model", "parameters", *GROUPS, "reached", "drift", "seconds")
Built = tuple[nn.Module, Any]


def from_torchvision(name: str) -> Built:
    import torchvision

    return getattr(torchvision.models, name)(), torch.randn(IMAGE)


def from_timm(name: str) -> Built:
    import timm

    return timm.create_model(name), torch.randn(IMAGE)


def gpt2() -> Built:
    import transformers as t

    config = t.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0)
    return t.GPT2LMHeadModel(config), torch.randint(50, (2, 7))


def bert() -> Built:
    import transformers as t

    return t.BertModel(t.BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)), torch.randint(50, (2, 7))


def vit() -> Built:
    import transformers as t

    return t.ViTModel(t.ViTConfig(image_size=32, patch_size=8, **SMALL)), torch.randn(2, 3, 32, 32)


def llama() -> Built:
    import transformers as t

    config = t.LlamaConfig(vocab_size=50, num_key_value_heads=2, max_position_embeddings=16, **SMALL)
    return t.LlamaForCausalLM(config), torch.randint(50, (2, 7))


def gemma() -> Built:
    import transformers as t

    config = t.GemmaConfig(vocab_size=50, num_key_value_heads=2, head_dim=8, max_position_embeddings=16, **SMALL)
    return t.GemmaForCausalLM(config), torch.randint(50, (2, 7))


def mixtral() -> Built:
    import transformers as t

    sizes: dict[str, Any] = {"num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 16}
    config = t.MixtralConfig(vocab_size=50, bos_token_id=None, eos_token_id=None, **sizes, **SMALL)
    return t.MixtralForCausalLM(config), torch.randint(50, (2, 7))


def lora() -> Built:
    import peft

    model, inputs = gpt2()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], r=4, fan_in_fan_out=True))
    return adapted, {"input_ids": inputs}


def transformer() -> Built:
    return nn.Transformer(32, 4, 2, 2, 64, batch_first=True), (torch.randn(2, 5, 32), torch.randn(2, 6, 32))


MODELS: dict[str, Callable[[], Built]] = {
    "transformers GPT-2": gpt2,
    "transformers BERT": bert,
    "transformers ViT": vit,
    "transformers LLaMA": llama,
    "transformers Gemma": gemma,
    "transformers Mixtral": mixtral,
    "peft LoRA on GPT-2": lora,
    "nn.Transformer": transformer,
}
SMOKE = ("transformers LLaMA", "peft LoRA on GPT-2", "nn.Transformer")


def measure(build: Callable[[], Built]) -> dict[str, Any]:
    """The report on one model, and the seconds that finding its symmetries took, numeric check included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = build()
        began = perf_counter()
        mt.find_symmetries(model, inputs)
        seconds = perf_counter() - began
        return {**report(model, inputs), "seconds": seconds}


def row(name: str, found: dict[str, Any]) -> list[str]:
    kinds = Counter(site["group"] for site in found["sites"])
    counts = [str(kinds.get(kind, "")) for kind in GROUPS.values()]
    share = [f"{found['reached']:.0%}", f"{found['drift']:.0e}", f"{found['seconds']:.1f}"]
    return [name, f"{found['parameters']:,}", *counts, *share]


def main() -> None:
    args = parser("symmetries", __doc__, "three small models").parse_args()
    torch.manual_seed(0)
    builds = dict(MODELS)
    if args.smoke:
        builds = {name: MODELS[name] for name in SMOKE}
    else:
        builds |= {f"torchvision {name}": lambda name=name: from_torchvision(name) for name in TORCHVISION}  # type: ignore[misc]
        builds |= {f"timm {name}": lambda name=name: from_timm(name) for name in TIMM}  # type: ignore[misc]
    print(table(COLUMNS, []))
    results = {}
    for name, build in builds.items():
        results[name] = measure(build)
        print(line(row(name, results[name])), flush=True)
    write_json(args.out / "symmetries.json", {"models": results, "provenance": provenance("cpu")})


if __name__ == "__main__":
    run(main)
