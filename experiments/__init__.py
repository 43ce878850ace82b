"""The paper's experiments: one file for each verb of the command line, its paper's numbers in a TOML file beside it."""
