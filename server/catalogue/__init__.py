"""Serve signed files to enrolled phones: a store on disk, and Read of google.bytestream over it."""
