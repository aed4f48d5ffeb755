"""The loss landscape: first- and second-order tests of a point."""
