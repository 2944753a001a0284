"""What the gate costs beside HAProxy and beside no proxy at all: ``python -m tests.bench``."""
