"""Distillation methods: one paper, one file."""
