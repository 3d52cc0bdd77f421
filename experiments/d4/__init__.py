"""D4 (arXiv:2308.12284): claim and page."""
