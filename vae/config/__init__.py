"""What a run is: its settings, each with its sentence and its range, and which of them matter."""
