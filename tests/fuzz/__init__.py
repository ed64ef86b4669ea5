"""What `fuzzing.py` gives to what reads: by where it comes from, and how it is made wrong."""
