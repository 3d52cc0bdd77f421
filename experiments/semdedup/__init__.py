"""SemDeDup (arXiv:2303.09540): claim and page."""
