"""The command line `imagen`: one file a command."""
