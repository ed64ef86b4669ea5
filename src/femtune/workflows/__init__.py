"""Do what a command does, from settings to files: the functions behind `femtune.api` and the CLI."""
