"""A private MariaDB in a box: its server, its databases, and what guards both."""
