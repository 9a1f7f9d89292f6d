"""The subcommands. Each imports the one function it needs where it runs, so that `--help` answers at once."""
