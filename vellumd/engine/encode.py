"""Prompt and pictures to the embeddings that guide the transformer."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vellumd.engine.content import Store, size_of
from vellumd.engine.copies import Copy

TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "
    "texture, objects, background), then explain how the user's text instruction should alter "
    "or modify the image. Generate a new image that meets the user's requirements while "
    "maintaining consistency with the original input where appropriate.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What Qwen-Image-Edit was trained with; diffusers' QwenImageEditPlusPipeline has the same."""

HEAD, TAIL = TEMPLATE.split("{}")

PREFIX_TOKENS = 64
"""Tokens of the template before the user's part; the transformer never sees them."""

PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Seen:
    """What all prompts about the same pictures begin with, read once.

    `hidden` [1, tokens, channels] without the template's part; `past`, the keys and values
    of all its tokens; `position`, that of the first token after it.
    """

    hidden: Tensor
    past: Any
    position: int

    def bytes(self) -> int:
        """The size of its tensors."""
        tensors = [tensor for layer in self.past.layers for tensor in (layer.keys, layer.values)]
        return sum(map(size_of, [self.hidden, *tensors]))


class Encoder:
    """Qwen2.5-VL as Qwen-Image-Edit uses it: its last hidden state, template cut off.

    A prompt's tokens come after those of the pictures and see only what is before them. So
    the template and the pictures are read once for all prompts, and an embedding depends on
    its own prompt alone, whichever others are read with it.
    """

    def __init__(self, processor: Any, model: Any, limit: int, store: Store | None = None) -> None:
        """`limit`: tokens of a prompt."""
        self._processor = processor
        self._model = model.model  # without lm_head
        self._limit = limit
        self._store = store or Store(0)
        special = processor.tokenizer.get_added_vocab()
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len)[::-1])))
        language = inspect.signature(self._model.language_model.forward).parameters
        self._past = "cache" if "cache" in language else "past_key_values"  # before 5.24

    def readable(self, prompt: str) -> tuple[str, bool]:
        """The part of `prompt` that is read, and whether something was cut off.

        Special tokens written by a user are broken up: an `<|image_pad|>` more than
        there are pictures would end the edit.
        """
        prompt = self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", prompt)
        starts = self._processor.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        if len(starts) <= self._limit:
            return prompt, False
        return prompt[: starts[self._limit][0]], True

    def looks(self, prompts: Sequence[str], views: Sequence[Copy]) -> bool:
        """Whether `embed` will look at the `views`."""
        return bool(self._unread(prompts, views)) and ("pictures", _keys(views)) not in self._store

    def blocks(self, prompts: Sequence[str], views: Sequence[Copy]) -> int:
        """How many of the model's blocks `embed` will run."""
        model = self._model
        count = len(self._unread(prompts, views)) * len(model.language_model.layers)
        if self.looks(prompts, views):
            count += len(model.visual.blocks) + len(model.language_model.layers)
        return count

    def _unread(self, prompts: Sequence[str], views: Sequence[Copy]) -> list[str]:
        keys = _keys(views)
        return [text for text in {*prompts} if ("prompt", keys, text) not in self._store]

    @torch.inference_mode()
    def embed(
        self, prompts: Sequence[str], views: Sequence[Copy], device: torch.device
    ) -> list[Tensor]:
        """The embeddings [1, tokens, channels] of `prompts`, each with `views`."""
        keys = _keys(views)
        seen: list[Seen] = []

        def read(prompt: str) -> Tensor:
            if not seen:
                key = ("pictures", keys)
                seen.append(self._store.get(key, lambda: self._see(views, device), Seen.bytes))
            return self._read(prompt, seen[0])

        found = {
            prompt: self._store.get(("prompt", keys, prompt), partial(read, prompt), size_of)
            for prompt in dict.fromkeys(prompts)
        }
        return [found[prompt] for prompt in prompts]

    def _see(self, views: Sequence[Copy], device: torch.device) -> Seen:
        """Run the vision tower, and the template with the pictures through the model."""
        inputs = self._processed(views, device)
        return self._begin(inputs, self._look(inputs, device), device)

    def _processed(self, views: Sequence[Copy], device: torch.device) -> Any:
        """Tokens of the template with the pictures, and the pictures' patches."""
        numbered = "".join(PICTURE.format(number) for number in range(1, len(views) + 1))
        return self._processor(
            text=[HEAD + numbered],
            images=[view.picture() for view in views],
            images_kwargs={"device": device},  # bytes go to the card, an eighth of the patches
            return_tensors="pt",
        )

    def _look(self, inputs: Any, device: torch.device) -> Tensor:
        """What the vision tower sees [tokens, channels]."""
        seen: Tensor = self._model.visual(
            inputs["pixel_values"].to(device), grid_thw=inputs["image_grid_thw"].to(device)
        ).pooler_output
        return seen

    def _begin(self, inputs: Any, seen: Tensor, device: torch.device) -> Seen:
        """Read the template with what was `seen` in its places.

        As the whole model's forward does, without its checks, each of which waits for the card.
        """
        ids, model = inputs["input_ids"], self._model
        # mm_token_type_ids gives picture tokens their rows and columns; without them
        # transformers 5 counts positions one by one and the embeddings change silently
        # (huggingface/diffusers#14194). On the CPU, since each is read back.
        positions, _ = model.get_rope_index(
            ids,
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"].cpu(),
        )
        tokens = model.get_input_embeddings()(ids.to(device))
        places = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
        tokens[0, places.to(device)] = seen.to(tokens.dtype)
        output = model.language_model(
            inputs_embeds=tokens, position_ids=positions.to(device), use_cache=True
        )
        hidden = output.last_hidden_state[:, PREFIX_TOKENS:]
        return Seen(hidden, output[self._past], int(positions.max()) + 1)

    def _read(self, prompt: str, seen: Seen) -> Tensor:
        """The embedding of `prompt`, which follows what was `seen`."""
        tokens = self._processor.tokenizer(prompt + TAIL, return_tensors="pt")["input_ids"]
        positions = torch.arange(seen.position, seen.position + tokens.shape[1])
        device = seen.hidden.device
        output = self._model.language_model(
            inputs_embeds=self._model.get_input_embeddings()(tokens.to(device)),
            position_ids=positions.expand(3, 1, -1).to(device),
            use_cache=True,
            **{self._past: _continued(seen.past)},
        )
        return torch.cat([seen.hidden, output.last_hidden_state], dim=1)


def _keys(views: Sequence[Copy]) -> tuple[Hashable, ...]:
    return tuple(view.key for view in views)


def _continued(past: Any) -> Any:
    """A cache that goes on where `past` ends, which stays as it is.

    Its layers get new tensors as they grow, so the old ones need no copies.
    """
    continued = copy.copy(past)
    continued.layers = [copy.copy(layer) for layer in past.layers]
    return continued
