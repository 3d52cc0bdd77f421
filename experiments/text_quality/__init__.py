"""Text Quality-Based Pruning (arXiv:2405.01582): claim, page and scripts."""
