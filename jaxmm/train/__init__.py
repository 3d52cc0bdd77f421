"""HOW do parameters change, and survive?

The loop, the step, the state and its optimizers, the log of a run. What is minimised does not
belong here: that is a Task in `models` or `tokenizers`. How one run follows another is `studies`;
how a state lies on disk is `checkpoint`; how records become batches is `data`.
"""
