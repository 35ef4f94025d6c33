"""Train many models of one architecture in one step."""
