"""The tests; tests.support holds the harness that starts the real parts."""
