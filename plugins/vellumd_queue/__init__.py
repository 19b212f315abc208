"""A queue server in front of vellumd: jobs are pulled from it, results are posted back.

Here lives all that knows such servers, whose names and paths differ. Translation is in
`mapping`; jobs are reached through the `TransportContext` alone. `server` is a small queue
server of our own, which no other module needs.
"""
