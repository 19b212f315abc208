"""HTTP in front of vellumd: pictures and prompts in, jobs and results out.

Here lives all that knows HTTP. Translation is in `wire`; jobs are reached through the
`TransportContext` alone.
"""
