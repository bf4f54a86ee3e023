"""Operators that PyTorch lacks: checks and dispatch, one file per operator."""
