"""Images on disk to batches in memory.

`folder` says which files there are and what they show (it opens none), `decode` turns a file into pixels within a
bound, `preprocess` turns pixels into what a model takes, `loader` makes batches of them (with the help of `workers`),
and `samples` unpacks the data that ships with edgetune. Nothing here imports torch; `folder` and `samples` need neither
numpy nor Pillow.
"""
