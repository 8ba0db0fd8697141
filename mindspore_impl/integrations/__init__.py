"""Other frameworks as users of our parts."""
