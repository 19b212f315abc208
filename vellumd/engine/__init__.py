"""The engine process: the only part of vellumd that may import torch.

It is started as `python -m vellumd.engine` and talks frames (see `vellumd.protocol`).
`worker`, `report` and `finish` know no torch, so that any engine runs in them, and `start`
none until the model was looked at; the rest edits with Qwen-Image-Edit. Nothing outside
imports this package, with one exception: `vellumd.QwenImageEditEngine`, the library, lives in
`library`.
"""
