"""A small queue server: jobs by HTTP, kept in SQLite, leased to workers until they answer.

It is a reference for those who write one, something to try the door with, and, with its
fault mode, the adversary of our tests. The door itself does not need it.
"""
