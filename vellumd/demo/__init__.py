"""The embedded model: its card (`vellumd.json`) and, once trained, its weights."""
