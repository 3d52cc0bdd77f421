"""CRT, "When Worse is Better" (arXiv:2412.16326): configs, claim, page."""
