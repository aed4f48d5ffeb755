"""Max-margin and min-norm solutions in any norm of this package."""
