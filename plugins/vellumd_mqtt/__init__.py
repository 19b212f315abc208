"""The MQTT door: edits in and results out through a broker.

`connection.py` is the only module that knows paho; `wire.py` (in), `answers.py` (out),
`topics.py` and `discovery.py` are pure translation; the rest is the life of the door.
"""
