"""The processes and threads that compute, and how they exchange batches."""
