"""Attacks on the promises of docs/privacy.md, one file a promise, by who attacks: `server` or `phone`.

Many attacks stand beside the code that they attack. The table at the end of docs/privacy.md names all of them, and
`make attack` runs what it names.
"""
