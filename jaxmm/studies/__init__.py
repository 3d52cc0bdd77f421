"""studies: HOW do runs follow one another?

Stages that hand over checkpoints, arms at equal budget, paired seeds, verdicts, and the studies made
of them (quickstart, every claim).

What does not belong: how one run trains (`train`), how a number is measured (`evaluate`), how it is
shown (`report`), and a paper's own settings and claim (`experiments/<id>`).
"""
