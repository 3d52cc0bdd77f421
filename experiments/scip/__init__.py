"""SCIP (arXiv:2312.02418): claim and page."""
