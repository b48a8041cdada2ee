"""The search for a policy of operation pruning: what is measured, which plan follows, and the file that keeps it."""
