"""The drawing queue: pictures of many requests drawn together, each in its fair turn."""
