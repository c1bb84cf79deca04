"""What `benchmarks.peers` compares: one file for each way to train a head on a frozen backbone.

Each system (systems.py names them) is a function `run(task, record)`: it loads the images, trains
for so many epochs as task.settings say, validates after each, and tells the record. Seconds count
from before the images are loaded to its return.
"""
