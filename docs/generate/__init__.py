"""What of the documentation is made from the code: `make docs` writes it, `make lint` checks that it is current."""
