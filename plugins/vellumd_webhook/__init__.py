"""Webhooks behind vellumd: when a job of any door has ended, addresses of others are told.

Here lives all that knows webhooks. `wire` is pure: what is told and how it is signed, in the
form of standardwebhooks.com. What is owed to whom, and until when, are delivery rows of the
daemon's store.
"""
