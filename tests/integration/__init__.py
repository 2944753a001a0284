"""Tests against real processes: brokers, the gate, client libraries."""
