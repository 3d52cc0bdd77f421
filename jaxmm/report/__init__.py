"""report: WHAT does a person see?

Figures as inline SVG and one self-contained HTML page a run or study. It imports nothing of ours
and reads only plain files (JSON, JSON lines, arrays handed in) that the others wrote.

What does not belong: measuring (`evaluate`), judging a claim (`studies.verdict`), running anything.
"""
