"""Families of image files, each read by the library that knows it best."""
