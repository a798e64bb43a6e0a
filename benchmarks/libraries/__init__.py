"""The libraries that compute a graph, opened side by side and each in a process of its own."""
