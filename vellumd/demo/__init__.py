"""The embedded model (`model/`), the toy world it knows, its judge, and its training."""
