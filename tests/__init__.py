"""Tests mirror the folders; helpers lie here."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
