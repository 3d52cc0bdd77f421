"""WHICH examples are worth keeping? Examples in, verdicts out.

Every method ends in one keep-list (`keep_list`): each input example once, whether it is kept, its
score and the reason. Reading examples belongs to `data`, models are handed in as
`core.protocols`, what is trained on the kept belongs to `studies`.
"""
