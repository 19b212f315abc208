"""The command line: one command a file, each with `add_arguments` and `run`.

Parsing imports nothing heavy; a command imports what it needs when it runs. Commands
talk to a running daemon by its public HTTP API, never to its store.
"""
