"""The `fedcaptor` command."""
