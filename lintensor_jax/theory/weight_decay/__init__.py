"""Weight decay: what flows on loss + lambda/2 |Theta|^2 minimise."""
