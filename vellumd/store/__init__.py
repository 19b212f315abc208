"""What vellumd must not lose: one SQLite database and one folder a job.

`database.py` is the connection and its thread, `store.py` the job rows, events and
deliveries (`rows.py`: as objects), `spool.py` the folders with pictures (`story.py`: the
files in them that tell what happened). `schema.py` migrates, `integrity.py` finds damage,
`recovery.py` opens and mends with `rebuild.py`. Only `jobs.py`, the executor and the
daemon call this package; transports never do.
"""
