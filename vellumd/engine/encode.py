"""Prompt and pictures to the embeddings that guide the transformer."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vellumd.engine import language
from vellumd.engine.content import Store, size_of
from vellumd.engine.copies import Copy
from vellumd.engine.vision import Tower

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
    past: language.Kept
    position: int

    def bytes(self) -> int:
        """The size of its tensors."""
        return size_of(self.hidden) + self.past.bytes()


class Encoder:
    """Qwen2.5-VL as Qwen-Image-Edit uses it: its last hidden state, template cut off.

    A prompt's tokens come after those of the pictures and see only what is before them. So
    the template and the pictures are read once for all prompts, and an embedding depends on
    its own prompt alone, whichever others are read with it: layer by layer, since layers may
    come from the host.
    """

    def __init__(self, processor: Any, model: Any, limit: int, store: Store | None = None) -> None:
        """`limit`: tokens of a prompt."""
        self._processor = processor
        self._model = model.model  # without lm_head
        self._tower = Tower(self._model.visual)
        self._limit = limit
        self._store = store or Store(0)
        special = processor.tokenizer.get_added_vocab()
        self._special = re.compile("|".join(map(re.escape, special)))

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
        count = len(model.language_model.layers) if self._unread(prompts, views) else 0
        return count + (len(model.visual.blocks) if self.looks(prompts, views) else 0)

    def _unread(self, prompts: Sequence[str], views: Sequence[Copy]) -> list[str]:
        keys = _keys(views)
        known = self._store
        return [text for text in dict.fromkeys(prompts) if ("prompt", keys, text) not in known]

    @torch.inference_mode()
    def embed(
        self, prompts: Sequence[str], views: Sequence[Copy], device: torch.device
    ) -> list[Tensor]:
        """The embeddings [1, tokens, channels] of `prompts`, each with `views`."""
        keys, unread = _keys(views), self._unread(prompts, views)
        # The known ones first: those that are read now may take their place in the store.
        known = [prompt for prompt in dict.fromkeys(prompts) if prompt not in unread]
        found: dict[str, Tensor] = {
            prompt: self._store.known(("prompt", keys, prompt)) for prompt in known
        }
        if unread:
            for prompt, made in zip(unread, self._read(unread, views, device), strict=True):
                self._store.add(("prompt", keys, prompt), made, size_of(made))
                found[prompt] = made
        return [found[prompt] for prompt in prompts]

    def _read(
        self, prompts: Sequence[str], views: Sequence[Copy], device: torch.device
    ) -> list[Tensor]:
        """The embeddings of `prompts`; what they begin with is read along where it is new."""
        key = "pictures", _keys(views)
        if key in self._store:
            seen: Seen = self._store.known(key)
            texts = [self._text(prompt, seen.past, seen.position, device) for prompt in prompts]
            read = language.read(self._model.language_model, texts)
        else:
            inputs = self._processed(views, device)
            begin, position = self._begin(inputs, self._look(inputs, device), device)
            texts = [self._text(prompt, begin.kept, position, device) for prompt in prompts]
            first, *read = language.read(self._model.language_model, [begin, *texts])
            seen = Seen(first[:, PREFIX_TOKENS:], begin.kept, position)
            self._store.add(key, seen, seen.bytes())
        return [torch.cat([seen.hidden, hidden], dim=1) for hidden in read]

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
        grids = tuple((rows, columns) for _, rows, columns in inputs["image_grid_thw"].tolist())
        return self._tower.see(inputs["pixel_values"].to(device), grids)

    def _begin(self, inputs: Any, seen: Tensor, device: torch.device) -> tuple[language.Text, int]:
        """The template with what was `seen` in its places, and the position after it.

        As the whole model's forward makes it, without its checks, each of which waits for the card.
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
        return language.Text(tokens, positions.to(device)), int(positions.max()) + 1

    def _text(
        self, prompt: str, past: language.Kept, position: int, device: torch.device
    ) -> language.Text:
        """`prompt` and the template's end, from `position` on, after the keys and values `past`."""
        ids = self._processor.tokenizer(prompt + TAIL, return_tensors="pt")["input_ids"]
        positions = torch.arange(position, position + ids.shape[1]).expand(3, 1, -1)
        tokens = self._model.get_input_embeddings()(ids.to(device))
        return language.Text(tokens, positions.to(device), past)


def _keys(views: Sequence[Copy]) -> tuple[Hashable, ...]:
    return tuple(view.key for view in views)
