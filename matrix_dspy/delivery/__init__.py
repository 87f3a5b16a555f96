"""Data sets going out: read in anybody's layout, exported to others', merged, pushed to the Hub."""
