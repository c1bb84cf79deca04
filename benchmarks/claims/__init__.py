"""What the study claims, and how each claim is put to the test: read by benchmarks/findings.py."""
