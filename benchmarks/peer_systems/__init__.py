"""What `benchmarks.peers` compares: one file for each way to train a head, or to fit a probe, on a
frozen backbone.

Each system (systems.py names them) is a function `run(task, record)`. Where the job is the study's,
it loads the images, trains for so many epochs as task.settings say, validates after each, and tells
the record; `train_as_written`, where a file has it, is that training on any backbone and images. A
probe loads, fits, and tells the record how it does on held-out images. Seconds count from before
the images are loaded to its return.
"""
