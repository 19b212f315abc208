"""Pictures, without torch: what comes in, the canvas between, what goes out.

Belongs here: limits, wholeness and hash of files (`inspect`, `sha256_of`), decoding (`load`),
canvas, resizing, masks, alpha, metadata, encoding (`encode`, `derive`). The daemon calls
`inspect`, `sha256_of` and `derive` only; the engine process and the library call the rest.
Does not belong here: tensors, jobs, folders.
"""

from vellumd.images.canvas import Canvas, reference_size
from vellumd.images.containers import Header
from vellumd.images.encode import derive, encode
from vellumd.images.header import inspect, inspect_file, sha256_of
from vellumd.images.mask import load_mask, paste_back
from vellumd.images.picture import Picture, check_output, flatten, load, reapply_alpha
from vellumd.images.resize import resized

__all__ = [
    "Canvas",
    "Header",
    "Picture",
    "check_output",
    "derive",
    "encode",
    "flatten",
    "inspect",
    "inspect_file",
    "load",
    "load_mask",
    "paste_back",
    "reapply_alpha",
    "reference_size",
    "resized",
    "sha256_of",
]
