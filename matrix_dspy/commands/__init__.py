"""Commands of the command line that come in families, and what all commands say and read."""
