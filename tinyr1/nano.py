"""The paper in one file."""
