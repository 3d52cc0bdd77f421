"""studies: HOW do runs follow one another?

Stages that hand over checkpoints, arms at equal budget, paired seeds, verdicts, and what is made of
runs that are there: the verbs of the command line, the quickstart, every claim.

What does not belong: how one run trains (`train`), how a number is measured (`evaluate`), how it is
shown (`report`), and a paper's own settings and claim (`experiments/<id>`).
"""
