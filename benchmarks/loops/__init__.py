"""Training loops that users of other projects run, to time our own against."""
