"""The commands; a file a command."""
