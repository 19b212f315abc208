"""How fast the transformer is here: other methods and ours, taking turns in one run.

    python -m vellumd.engine bench

prints JSON; `vellumd bench` makes a table of it.
"""
