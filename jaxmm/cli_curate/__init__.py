"""WHAT can be asked of a corpus on the command line? The verbs of `jaxmm curate`, a file for each
few: options in, one call into `curation`, a line about the result out.

Nothing is computed here: that belongs to `curation`; the other verbs stand in `jaxmm/cli.py`.
"""
