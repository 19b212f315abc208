"""What vellumd must not lose: one SQLite database and one folder a job.

`database.py` is the connection and its thread, `store.py` the job rows, events and
deliveries, `spool.py` the folders with pictures. Only `jobs.py` and the executor call
this package; transports never do.
"""
