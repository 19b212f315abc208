"""Folders in front of vellumd: drop pictures into `inbox/`, find edits in `outbox/`.

Here lives all that knows hot folders. The scan is the truth and events only wake it;
`settle` and `plan` are pure and decide what is an edit and when; `claims` and `boxes`
move files so that a crash at any point leaves nothing lost and nothing twice. Jobs are
reached through the `TransportContext` alone.
"""
