"""DBP, "Effective pruning of web-scale datasets" (arXiv:2401.04578): config, claim, page."""
