"""Frozen teachers, ensembles of them and the networks that aggregate their images."""
