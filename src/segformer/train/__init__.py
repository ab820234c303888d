"""Training with Lightning. Nothing outside this package and the command line imports it."""
