"""What is in a data set, and what in it would spoil a training.

`command` reads and tells, `findings` counts, `page` writes.
"""
