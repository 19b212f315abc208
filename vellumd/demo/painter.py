"""The toy world's pixels: `Painter` turns scenes into pictures, as numpy's or another library's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vellumd.demo.scenes import CELL, GRID, NONE, RADII, RGB, SHAPES, SIDE, Array, Scenes

LUMA = (0.299, 0.587, 0.114)
"""Red's, green's and blue's share of grey: ITU-R BT.601."""


class Painter:
    """Scenes to pixels. Works on numpy arrays, or on those that `asarray` makes."""

    def __init__(self, asarray: Callable[[Array], Any] = np.asarray) -> None:
        """`asarray` turns a numpy array into the library's own, on its device."""
        self._asarray = asarray
        self._sprites, self._ramps, self._rgb, self._luma = (
            asarray(table) for table in (_sprites(), ramps(), RGB, np.array(LUMA, np.float32))
        )

    def __call__(self, scenes: Scenes) -> Any:
        """Pictures [N, SIDE, SIDE, 3] of `scenes`, from 0 to 1."""
        n = len(scenes)
        sprite = np.where(scenes.taken, scenes.shape * len(RADII) + scenes.size, NONE)
        cover = self._sprites[self._asarray(sprite)]
        colour = self._rgb[self._asarray(scenes.colour)][:, :, None, None] * cover[..., None]
        cover, colour = (_assemble(cells, n) for cells in (cover[..., None], colour))
        start, end, way = (self._asarray(scenes.ground[:, part].copy()) for part in range(3))
        start, end = (self._rgb[index][:, None, None] for index in (start, end))
        ground = start + (end - start) * self._ramps[way][..., None]
        picture = ground * (1 - cover) + colour
        if not scenes.gray.any():
            return picture
        gray = (picture * self._luma).sum(-1)[..., None]
        return (
            picture
            + (gray - picture) * self._asarray(scenes.gray * np.float32(1))[:, None, None, None]
        )


def _assemble(cells: Any, n: int) -> Any:
    """Cells [N, CELLS, CELL, CELL, C] as pictures [N, SIDE, SIDE, C]."""
    grid = cells.reshape(n, GRID, GRID, CELL, CELL, -1).swapaxes(2, 3)
    return grid.reshape(n, SIDE, SIDE, -1)


def _sprites() -> Array:
    """How much of each pixel a shape covers: [SHAPES·RADII + 1, CELL, CELL], the last empty."""
    fine = 8
    axis = (np.arange(CELL * fine) + 0.5) / fine - CELL / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    covers = [_inside(shape, x / radius, y / radius) for shape in SHAPES for radius in RADII]
    covers.append(np.zeros_like(x, dtype=bool))
    split = np.stack(covers).reshape(len(covers), CELL, fine, CELL, fine)
    sprites: Array = split.mean(axis=(2, 4), dtype=np.float32)
    return sprites


def _inside(shape: str, x: Array, y: Array) -> Array:
    """Which points are in `shape` of radius 1 around the origin; y points down."""
    radius = np.hypot(x, y)
    match shape:
        case "circle":
            inside = radius <= 0.95
        case "ring":
            inside = (radius <= 0.95) & (radius >= 0.5)
        case "square":
            inside = np.maximum(np.abs(x), np.abs(y)) <= 0.82
        case "triangle":
            # Apothem of an equilateral triangle: half its radius.
            slopes = [y, -y / 2 + x * np.sqrt(0.75), -y / 2 - x * np.sqrt(0.75)]
            inside = np.maximum.reduce(slopes) <= 0.5
        case _:
            # A pentagram: five lines; a point inside is beyond at most one of them.
            turns = np.arange(5) * 2 * np.pi / 5 + np.pi / 2
            lines = [x * np.cos(turn) + y * np.sin(turn) for turn in turns]
            inside = np.sum([line <= np.cos(2 * np.pi / 5) for line in lines], axis=0) >= 4
    return np.asarray(inside)


def ramps() -> Array:
    """From 0 to 1 across the picture in eight directions: [8, SIDE, SIDE]."""
    axis = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    turns = [number * np.pi / 4 for number in range(8)]
    slopes = [x * np.cos(turn) + y * np.sin(turn) for turn in turns]
    ramps = [slope / (2 * np.abs(slope).max()) + 0.5 for slope in slopes]
    return np.stack(ramps).astype(np.float32)


def to_bytes(pictures: Array) -> Array:
    """Pictures from 0 to 1 as bytes."""
    return np.round(np.clip(pictures, 0, 1) * 255).astype(np.uint8)
