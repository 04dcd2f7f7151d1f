"""The only writer of archives: offers children, writes the snapshot, moves HEAD, cleans up."""
