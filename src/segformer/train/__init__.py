"""Training with Lightning. Only the command line imports this package."""
