"""This package is the `fedcaptor` command."""
