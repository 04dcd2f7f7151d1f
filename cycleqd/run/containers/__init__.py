"""Tasks in containers of this machine, by Docker or Podman."""
