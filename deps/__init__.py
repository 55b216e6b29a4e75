"""What is installed, exactly: locks with hashes, and licences. Knows nothing of the service.

lock        reads locks
compile     writes them (`make locks`)
licences    what licences there are, and which may not be (`docs/licences.md`)
"""
