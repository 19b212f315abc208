"""Weight files known by their headers: what they hold, for which part, and how it is stored.

Standard library only, no torch: the engine plans its reads with this before torch is
imported, and `vellumd doctor` looks at the same facts in a client. Bytes of tensors are
read in `vellumd.engine.reading`, nowhere else; nothing is ever unpickled.
"""
