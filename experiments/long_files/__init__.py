"""Brevity is the soul of wit (arXiv:2407.00434): claim and page."""
