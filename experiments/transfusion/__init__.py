"""Transfusion (arXiv:2408.11039)."""
