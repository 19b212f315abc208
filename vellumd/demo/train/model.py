"""The demo's components: the classes of Qwen-Image-Edit-2511 at toy size, and their folder.

Sizes are chosen so that all weights fit in 18 MB of bfloat16 and an edit of 128x128 pixels
takes well under a second on two cores. A component starts with random weights;
`save` writes a folder that loads like any other checkpoint.
"""

# diffusers and transformers annotate in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from vellumd import model_card
from vellumd.demo import world
from vellumd.demo.scenes import COLOURS, SHAPES, SIDE, WAYS
from vellumd.engine.encode import TEMPLATE
from vellumd.engine.vae import flatten

SEED = 20_260
STEPS = 8
LORA = "demo-lightning-8steps"
PATCH = 16
"""Pixels of a vision patch's side; four patches are one token."""
VIEW = 64
"""Pixels of the side of the copy of a picture that the vision tower sees."""

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
LINEARS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip
"""The linears of a block that a Lightning LoRA adapts."""

INWARD = "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"
OUTWARD = "to_out.0", "to_add_out"
SIZES = {
    **{f"{name}.{of}": 1 / 8 for name in INWARD for of in ("weight", "bias", "lora_up.weight")},
    **{f"{name}.{of}": 8.0 for name in OUTWARD for of in ("weight", "lora_up.weight")},
}
"""What `save` multiplies an attention's tensors with. Muon leaves weights of about 0.25, ten
times those of the real model, and formats without a scale are judged by how they treat
small ones. Nothing else changes: norms take the size from q and k, the outputs give it back
to v, and powers of two are exact."""

_PARTS = {
    "processor": ("transformers", "Qwen2VLProcessor"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
    "tokenizer": ("transformers", "Qwen2Tokenizer"),
    "transformer": ("diffusers", "QwenImageTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLQwenImage"),
}
_FILES = {"text_encoder": "model"}
SAMPLES = tuple(
    model_card.Sample(prompt=prompt, images=tuple(f"samples/{name}.png" for name in names))
    for prompt, *names in (
        ("make the circle blue", "shapes"),
        ("remove the square", "shapes"),
        ("turn the circle into a star", "shapes"),
        ("use a green background", "shapes"),
        ("move the star left", "star"),
        ("put the star of picture 2 into picture 1", "shapes", "star"),
        ("use the background of picture 2", "shapes", "backdrop"),
        ("use the background of picture 2 and the star of picture 3", "shapes", "backdrop", "star"),
    )
)
CARD = model_card.ModelCard(
    name="demo",
    canvas_area=SIDE**2,
    vision_area=VIEW**2,
    largest_area=1536 * 1024,  # what OpenAI's clients ask for; beyond, steps take many seconds
    loras={"lightning-8": model_card.LoraRole(file=LORA, scheduler="lightning")},
    steps=STEPS,
    true_cfg_scale=1.5,
    # Its LoRA guided once more, as `balanced` does, adds shapes twice.
    preset="fastest",
    prompt_tokens=256,
    example=model_card.Example(image="samples/shapes.png", prompt="make the circle blue"),
    samples=SAMPLES,
    license="Apache-2.0",
    demo=True,
    note="a toy: it edits coloured shapes on 128x128 pixels",
    knows="Circles, squares, triangles, stars and rings in eight colours, on a plain or graded "
    "ground. It recolours, removes, adds, moves and exchanges them, and takes a shape or a ground "
    "from another picture.",
)


@dataclass
class Components:
    """The parts of one demo model. `vae` is flat (see `vellumd.engine.vae`)."""

    words: Qwen2Tokenizer
    text_encoder: Any
    transformer: Any
    vae: Any
    lora: dict[str, Tensor]
    card: model_card.ModelCard = CARD


def components(seed: int = SEED) -> Components:
    """An untrained model. Equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = tokenizer()
        parts = Components(words, text_encoder(words), transformer(), flatten(vae()), {})
        parts.lora = lora(parts.transformer, rank=4)
    return parts


def build(folder: Path, seed: int = SEED) -> None:
    """Write an untrained model into `folder`, which need not exist: its pictures are noise."""
    save(components(seed), folder)


def save(parts: Components, folder: Path) -> None:
    """Write `parts` into `folder` in the layout of a real checkpoint, weights in bfloat16."""
    for name in ("text_encoder", "transformer", "vae"):
        part = getattr(parts, name)
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        (part.config.save_pretrained if name == "text_encoder" else part.save_config)(target)
        # lm_head turns hidden states into words, which an image model never asks for.
        tensors = {
            key: sized(key, tensor).to("cpu", torch.bfloat16).contiguous()
            for key, tensor in part.state_dict().items()
            if not key.startswith("lm_head")
        }
        file = _FILES.get(name, "diffusion_pytorch_model")
        save_file(tensors, target / f"{file}.safetensors", metadata={"format": "pt"})
    parts.words.save_pretrained(folder / "tokenizer")
    processor(parts.words).save_pretrained(folder / "processor")
    scheduler().save_pretrained(folder / "scheduler")
    (folder / "loras").mkdir(exist_ok=True)
    adapter = {
        key: sized(key, tensor).to("cpu", torch.bfloat16) for key, tensor in parts.lora.items()
    }
    save_file(adapter, folder / "loras" / f"{LORA}.safetensors", metadata={"format": "pt"})
    index = {"_class_name": "QwenImageEditPlusPipeline", **_PARTS}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    card = parts.card.model_dump_json(indent=2, exclude_unset=True)
    (folder / model_card.FILE).write_text(card + "\n")


def sized(key: str, tensor: Tensor) -> Tensor:
    """A transformer's or a LoRA's `tensor` by its factor in SIZES."""
    return tensor * SIZES.get(key.partition(".attn.")[2], 1.0)


def sentences() -> list[str]:
    """Every instruction of the toy world, those held out too."""
    lists = (SHAPES, SHAPES, COLOURS, tuple(WAYS))
    names = ("shape", "other", "colour", "way")
    found: dict[str, None] = {}
    for kind in world.KINDS.values():
        for phrasing in (*kind.phrasings, *kind.trained, *kind.held_out):
            for chosen in itertools.product(*lists):
                sentence = phrasing.format(**dict(zip(names, chosen, strict=True)))
                found[world.polished(sentence)] = None
    return list(found)


def tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE that knows each word of template and toy world, and bytes for all else.

    So the template's prefix has 64 tokens as with the real vocabulary, and no prompt in
    any language fails.
    """
    plain: Any = Qwen2Tokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = TEMPLATE.replace("<|im_start|>", "").replace("<|im_end|>", "")
    learner.train_from_iterator([text.format("Picture 1:"), *sentences()], trainer)
    learned = json.loads(learner.to_str())["model"]
    given: dict[str, Any] = {
        "vocab": learned["vocab"],
        "merges": [tuple(pair) for pair in learned["merges"]],
        "eos_token": None,
        "unk_token": None,
    }
    words = Qwen2Tokenizer(**given)
    words.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return words


def processor(words: Qwen2Tokenizer) -> Any:
    """The vision side's preparation, with patches of 16 pixels merged two by two."""
    sizes: dict[str, Any] = {
        "patch_size": PATCH, "merge_size": 2, "min_pixels": 32 * 32, "max_pixels": 2048 * 2048,
    }  # fmt: skip
    return Qwen2VLProcessor(Qwen2VLImageProcessor(**sizes), words, Qwen2VLVideoProcessor(**sizes))


def text_encoder(words: Qwen2Tokenizer) -> Any:
    """A Qwen2.5-VL of 2 layers and 192 channels, with a vision tower of 2 and 64."""
    text = {
        "vocab_size": len(words), "hidden_size": 192, "intermediate_size": 384,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "initializer_range": 0.05,
        "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [4, 6, 6],
        },
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
        "patch_size": PATCH, "window_size": 128, "out_hidden_size": 192,
        "fullatt_block_indexes": [1], "initializer_range": 0.05,
    }  # fmt: skip
    token: Any = words.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        tie_word_embeddings=True,  # so that no file needs the lm_head
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def transformer() -> Any:
    """A transformer of 5 blocks with 6 heads of 32 channels.

    Modulation and output start at zero, so that each block starts as the identity
    (adaLN-Zero of Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023).
    """
    model: Any = QwenImageTransformer2DModel(
        num_layers=5,
        num_attention_heads=6,
        attention_head_dim=32,
        joint_attention_dim=192,
        axes_dims_rope=(8, 12, 12),
        zero_cond_t=True,
    )
    with torch.no_grad():
        outputs = [model.norm_out.linear, model.proj_out]
        for block in model.transformer_blocks:
            outputs += [block.img_mod[1], block.txt_mod[1]]
        for linear in outputs:
            linear.weight.zero_()
            linear.bias.zero_()
    return model


def vae() -> Any:
    """A VAE with 16 base channels, as diffusers makes it."""
    return AutoencoderKLQwenImage(
        base_dim=16, num_res_blocks=1, latents_mean=[0.0] * 16, latents_std=[1.0] * 16
    )


def scheduler() -> Any:
    """The base scheduler of Qwen-Image-Edit-2511, leaning more to noise, of which each step draws
    new: the next one sees no more of what it got wrong than is in the picture.

    Where noise is strong it is decided what will be where. How it was chosen: docs/demo.md.
    """
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=1.25,
        max_shift=1.25,
        max_image_seq_len=8192,
        shift_terminal=None,
        time_shift_type="exponential",
        stochastic_sampling=True,
    )


def lora(model: Any, rank: int) -> dict[str, Tensor]:
    """A random LoRA under the key names of the Lightning files, alpha half its rank."""
    found = {}
    for index, block in enumerate(model.transformer_blocks):
        for name in LINEARS:
            linear = block.get_submodule(name)
            key = f"transformer_blocks.{index}.{name}"
            down = torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features)
            found[f"{key}.lora_down.weight"] = down
            found[f"{key}.lora_up.weight"] = torch.randn(linear.out_features, rank) * 0.2
            found[f"{key}.alpha"] = torch.tensor(rank / 2)
    return found
