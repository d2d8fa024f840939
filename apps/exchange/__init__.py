"""Models of other houses: what their files hold and what ours do, in both directions."""
