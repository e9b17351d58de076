"""Attention replaced by less: the smallest module that still retrieves."""
