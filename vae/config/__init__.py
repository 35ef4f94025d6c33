"""The settings of a run: records of fields, and which of them have an effect."""
