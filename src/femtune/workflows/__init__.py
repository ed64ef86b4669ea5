"""The functions behind `femtune.api` and the CLI: each runs a command, from settings to files."""
